"""Journal and store, held against what was promised.

The promises are those of ``docs/guarantees.rst``. Each function here is one of them and yields a
sentence for each time that it was broken.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

from celeriac.engines.base import FINISHED
from faults.arena import Arena
from faults.journal import Event

#: Kinds whose tasks are all ``acks_late``.
LATE = frozenset({"quick_late", "slow_late", "long_late", "later", "steps", "counted"})
#: SQLite 3.40 looks for the values of a table without rowid in the wrong order of its columns.
FALSE_ALARM = "NULL value in celeriac_bindings.type"
#: Kinds that are to fail.
FAILING = frozenset({"fails", "exits", "kills"})


@dataclass
class Story:
    """What became of one task."""

    kind: str = ""
    confirmed: bool = False
    refused: bool = False
    starts: list[tuple[Event, int]] = field(default_factory=list)
    ends: list[tuple[Event, int]] = field(default_factory=list)
    state: str = "PENDING"
    failure: str = ""

    @property
    def was_lost(self) -> bool:
        """Whether it is recorded as lost with its worker."""
        return "WorkerLostError" in self.failure


@dataclass
class Run:
    """All that a run left behind."""

    #: By the id of the task.
    stories: dict[str, Story] = field(default_factory=lambda: defaultdict(Story))
    #: When each process was killed.
    killed: dict[int, float] = field(default_factory=dict)
    #: How often each kind of event happened.
    events: Counter[str] = field(default_factory=Counter)
    #: Messages that were still there in the end.
    left: list[str] = field(default_factory=list)
    #: What SQLite says of the file.
    integrity: str = "ok"

    @classmethod
    def read(cls, arena: Arena) -> Run:
        """Return what a run left behind."""
        run = cls(left=[str(info) for info in arena.engine.list_tasks()])
        for event in arena.journal.read():
            run._take(event)
        run._read_results(arena)
        run.integrity = integrity(arena.folder)
        return run

    def _take(self, event: Event) -> None:
        self.events[event.what] += 1
        if event.what == "killed":
            self.killed[int(event.words[0])] = event.at
        elif event.what in ("sending", "sent", "refused"):
            kind, *ids = event.words
            for task_id in ids:
                story = self.stories[task_id]
                story.kind = kind
                story.confirmed |= event.what == "sent"
                story.refused |= event.what == "refused"
        elif event.what in ("start", "end"):
            task_id, retries = event.words
            story = self.stories[task_id]
            (story.starts if event.what == "start" else story.ends).append((event, int(retries)))

    def _read_results(self, arena: Arena) -> None:
        from faults.program import celery

        ids = list(self.stories)
        for first in range(0, len(ids), 500):
            some = ids[first : first + 500]
            for task_id, result in arena.engine.get_results(some).items():
                self.stories[task_id].state = result.state
                if result.state == "FAILURE":
                    error = celery.AsyncResult(task_id).result
                    self.stories[task_id].failure = f"{type(error).__name__}: {error}"

    @property
    def tasks(self) -> int:
        """How many tasks were confirmed."""
        return sum(story.confirmed for story in self.stories.values())


def nothing_is_lost(run: Run) -> Iterator[str]:
    """A confirmed task ends in a final state."""
    for task_id, story in run.stories.items():
        if story.confirmed and story.state not in FINISHED:
            yield f"{story.kind} {task_id} is {story.state}, started {len(story.starts)} times"


def early_tasks_start_once(run: Run) -> Iterator[str]:
    """A task that is not ``acks_late`` starts at most once, its retries apart."""
    for task_id, story in run.stories.items():
        tries = [retries for _, retries in story.starts]
        if story.kind not in LATE and story.kind != "kills" and len(set(tries)) < len(tries):
            yield f"{story.kind} {task_id} started {len(tries)} times: {tries}"


def success_is_true(run: Run) -> Iterator[str]:
    """What is recorded as a success was run to its end."""
    for task_id, story in run.stories.items():
        if story.state == "SUCCESS" and not story.ends:
            yield f"{story.kind} {task_id} is a SUCCESS and never ended"


def late_tasks_end(run: Run) -> Iterator[str]:
    """A task that is ``acks_late`` fails only by its own error or by its third death."""
    for task_id, story in run.stories.items():
        if story.confirmed and story.kind in LATE and story.state != "SUCCESS":
            if "death no. 3" not in story.failure:
                yield f"{story.kind} {task_id} is {story.state}: {story.failure}"


def failures_are_explained(run: Run) -> Iterator[str]:
    """A task that should succeed and failed had its process killed."""
    for task_id, story in run.stories.items():
        if story.state == "FAILURE" and story.kind not in FAILING:
            if "WorkerLostError" not in story.failure and "ChordError" not in story.failure:
                yield f"{story.kind} {task_id}: {story.failure}"


def refused_means_refused(run: Run) -> Iterator[str]:
    """A call that raised enqueued nothing."""
    for task_id, story in run.stories.items():
        if story.refused and story.starts:
            yield f"{story.kind} {task_id} was refused, and ran"


def nothing_is_left(run: Run) -> Iterator[str]:
    """When all is done the queues are empty, and the file is whole."""
    if run.left:
        yield f"{len(run.left)} messages are left, the first is {run.left[0]}"
    if run.integrity != "ok":
        yield run.integrity


PROMISES: tuple[Callable[[Run], Iterator[str]], ...] = (
    nothing_is_lost,
    early_tasks_start_once,
    success_is_true,
    late_tasks_end,
    failures_are_explained,
    refused_means_refused,
    nothing_is_left,
)


def recoveries(run: Run) -> list[float]:
    """Return how long it took, after each kill of a process that ran a task, until that task ran
    again or was recorded as lost (seconds)."""
    found = []
    finished = _finished_at(run)
    for task_id, story in run.stories.items():
        ended = {event.pid for event, _ in story.ends}
        for event, _ in story.starts:
            at = run.killed.get(event.pid)
            if at is None or event.pid in ended:
                continue
            later = [other.at for other, _ in story.starts if other.at > at]
            again = min([*later, finished.get(task_id, float("inf"))])
            if again != float("inf"):
                found.append(max(0.0, again - at))
    return sorted(found)


def integrity(folder: Path) -> str:
    """Return what SQLite finds wrong with the queue file in a folder, or ``ok``."""
    with closing(sqlite3.connect(folder / "queue.sqlite3")) as connection:
        found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    return "; ".join(text for text in found if text != FALSE_ALARM) or "ok"


def _finished_at(run: Run) -> dict[str, float]:
    from faults.program import celery

    lost = (task_id for task_id, story in run.stories.items() if story.was_lost)
    done = {task_id: celery.AsyncResult(task_id).date_done for task_id in lost}
    return {task_id: at.timestamp() for task_id, at in done.items() if at}
