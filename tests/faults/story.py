"""What a run left behind: of each task its story, of each process its deaths.

From the journal and the store; :mod:`.check` holds it against what was promised.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import NamedTuple

from faults.arena import Arena
from faults.journal import Event

#: SQLite 3.40 looks for the values of a table without rowid in the wrong order of its columns.
FALSE_ALARM = "NULL value in celeriac_bindings.type"
#: The cause of a death that the process brought about, or its task.
ITSELF = "itself"
#: How long a child of a killed process may live on (seconds).
FOLLOWS = 0.5
#: Kinds whose tasks end their process, or have it ended.
FATAL = frozenset({"exits", "kills", "hard", "terminated"})


class Start(NamedTuple):
    """A run of a task that began, or one that came to its end."""

    at: float
    pid: int
    retries: int
    #: The arguments, as the task saw them; of a start only.
    args: str = ""


class Death(NamedTuple):
    """The end of a process that somebody wanted, between two moments."""

    at: float
    until: float
    #: The fault, :data:`ITSELF`, or the signal that its worker was sent.
    cause: str

    def later(self) -> Death:
        """Return the death of a child of this process."""
        return self._replace(until=self.until + FOLLOWS)

    @property
    def is_sure(self) -> bool:
        """Whether it is that, and not the wish that it may end."""
        return not self.cause.startswith("SIG")


@dataclass
class Story:
    """What became of one task."""

    kind: str = ""
    confirmed: bool = False
    refused: bool = False
    #: When the call that revoked it returned.
    revoked: float | None = None
    starts: list[Start] = field(default_factory=list)
    #: Runs that came to the end of the function, and those that raised.
    ends: list[Start] = field(default_factory=list)
    raised: list[Start] = field(default_factory=list)
    #: When somebody was told that it failed.
    failed: list[float] = field(default_factory=list)
    #: Starts at a moment at which it was not to start: ``early``, ``late``.
    untimely: list[tuple[float, str]] = field(default_factory=list)
    state: str = "PENDING"
    #: Of a failure: the error, and the arguments kept with it.
    failure: str = ""
    args: str = ""

    @property
    def was_lost(self) -> bool:
        """Whether it is recorded as lost with its worker."""
        return self.failure.startswith("WorkerLostError")

    @property
    def process(self) -> int:
        """The process with which it was lost, as users are told."""
        found = re.search(r"process (\d+)", self.failure)
        return int(found[1]) if found else 0

    def finish(self, start: Start) -> Start | None:
        """Return the end of the run that began so."""
        for each in (*self.ends, *self.raised):
            if each[1:3] == start[1:3] and each.at >= start.at:
                return each
        return None


@dataclass
class Run:
    """All that a run left behind."""

    #: By the id of the task.
    stories: dict[str, Story] = field(default_factory=lambda: defaultdict(Story))
    #: By the id of the process.
    deaths: dict[int, list[Death]] = field(default_factory=lambda: defaultdict(list))
    #: The worker of each child.
    parents: dict[int, int] = field(default_factory=dict)
    #: When the file was locked, its disk full, or a process stopped: from, until.
    obstacles: list[tuple[float, float]] = field(default_factory=list)
    #: When the clock was changed.
    jumps: list[float] = field(default_factory=list)
    #: How often each kind of event, and each fault, happened.
    events: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    #: How many processes were killed, by what they were.
    killed: Counter[str] = field(default_factory=Counter)
    #: Tasks whose ``SUCCESS`` was seen during the run, and is another one now.
    changed: list[str] = field(default_factory=list)
    #: Faults that are not possible where it ran.
    impossible: list[str] = field(default_factory=list)
    #: Messages that were still there in the end.
    left: list[str] = field(default_factory=list)
    #: What SQLite says of the file.
    integrity: str = "ok"

    @classmethod
    def read(cls, arena: Arena) -> Run:
        """Return what a run left behind."""
        run = cls(left=[str(info) for info in arena.left()], impossible=[*arena.impossible()])
        fault = ""
        for event in arena.journal.read():
            fault = event.words[0] if event.what == "fault" else fault
            run._take(event, fault)
        run._note_own_deaths()
        run._read_results(arena)
        run.integrity = integrity(arena.disk)
        return run

    @property
    def tasks(self) -> int:
        """How many tasks were confirmed."""
        return sum(story.confirmed for story in self.stories.values())

    def death(self, start: Start) -> Death | None:
        """Return the death of the process that was killed after it began this run."""
        deaths = [each for each in self._deaths(start) if each.is_sure]
        return min((each for each in deaths if each.until >= start.at), default=None)

    def may_have_died(self, start: Start, until: float) -> bool:
        """Say whether the process that began this run may have ended before ``until``."""
        # A worker that was told to end may end its children, at a moment that nobody notes.
        return any(
            each.at <= until and (each.until >= start.at or not each.is_sure)
            for each in self._deaths(start)
        )

    def _deaths(self, start: Start) -> list[Death]:
        # The kernel kills the children of a process that dies, as Celery's ask it to, but only
        # when it has taken the process down.
        of_parent = self.deaths[self.parents.get(start.pid, 0)]
        return [*self.deaths[start.pid], *(each.later() for each in of_parent)]

    def _take(self, event: Event, fault: str) -> None:
        self.events[event.what] += 1
        take = getattr(self, f"_take_{event.what}", None)
        if take is not None:
            take(event, fault)

    def _take_fault(self, event: Event, fault: str) -> None:
        self.faults[fault] += 1

    def _take_jumped(self, event: Event, fault: str) -> None:
        self.jumps.append(event.at)

    def _take_obstacle(self, event: Event, fault: str) -> None:
        self.obstacles.append((event.at, event.at + float(event.words[0])))

    def _take_killed(self, event: Event, fault: str) -> None:
        what, pid, at = event.words
        self.killed[what] += 1
        self.deaths[int(pid)].append(Death(float(at), event.at, fault))

    def _take_signalled(self, event: Event, fault: str) -> None:
        pid, signal = event.words
        self.deaths[int(pid)].append(Death(event.at, event.at, signal))

    def _take_child(self, event: Event, fault: str) -> None:
        self.parents[event.pid] = int(event.words[0])

    def _take_sending(self, event: Event, fault: str) -> None:
        for story in self._sent(event):
            story.kind = event.words[0]

    def _take_sent(self, event: Event, fault: str) -> None:
        for story in self._sent(event):
            story.confirmed = True

    def _take_refused(self, event: Event, fault: str) -> None:
        for story in self._sent(event):
            story.refused = True

    def _sent(self, event: Event) -> Iterator[Story]:
        return (self.stories[task_id] for task_id in event.words[1:])

    def _take_revoked(self, event: Event, fault: str) -> None:
        self.stories[event.words[0]].revoked = event.at

    def _take_start(self, event: Event, fault: str) -> None:
        task_id, retries, args = event.words
        start = Start(event.at, event.pid, int(retries), args)
        self.stories[task_id].starts.append(start)

    def _take_end(self, event: Event, fault: str) -> None:
        task_id, retries = event.words
        self.stories[task_id].ends.append(Start(event.at, event.pid, int(retries)))

    def _take_raised(self, event: Event, fault: str) -> None:
        task_id, retries = event.words
        self.stories[task_id].raised.append(Start(event.at, event.pid, int(retries)))

    def _take_failed(self, event: Event, fault: str) -> None:
        self.stories[event.words[0]].failed.append(event.at)

    def _take_untimely(self, event: Event, fault: str) -> None:
        task_id, how = event.words
        self.stories[task_id].untimely.append((event.at, how))

    def _note_own_deaths(self) -> None:
        for story in self.stories.values():
            for start in story.starts:
                if story.kind in FATAL and story.finish(start) is None:
                    self.deaths[start.pid].append(Death(start.at, start.at, ITSELF))

    def _read_results(self, arena: Arena) -> None:
        from faults.program import as_word
        from faults.program import celery

        ids = list(self.stories)
        for first in range(0, len(ids), 500):
            some = ids[first : first + 500]
            for task_id, result in arena.engine.get_results(some).items():
                story = self.stories[task_id]
                story.state = result.state
                if result.state == "FAILURE":
                    found = celery.AsyncResult(task_id)
                    story.failure = f"{type(found.result).__name__}: {found.result}"
                    story.args = as_word(found.args or ()) if found.args is not None else ""
                if arena.seen.get(task_id, result.meta) != result.meta:
                    self.changed.append(task_id)


def integrity(folder: Path) -> str:
    """Return what SQLite finds wrong with the queue file in a folder, or ``ok``."""
    with closing(sqlite3.connect(folder / "queue.sqlite3")) as connection:
        found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    return "; ".join(text for text in found if text != FALSE_ALARM) or "ok"
