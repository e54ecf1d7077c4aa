"""Runs plans on a worker, and checks that everything ends as the model foresees.

What must hold of each canvas: every id of its result tree is terminal soon after its last task,
``get()`` returns or raises, tasks ran and callbacks were called as often as foreseen, the value
is the foreseen one. And in the end nothing is left: no message, no chord.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections import Counter
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from typing import NamedTuple

from celery import states
from celery.exceptions import TimeoutError
from celery.result import AsyncResult
from celery.result import GroupResult
from celery.signals import before_task_publish
from programs import celery_command
from programs import Program

from .plans import build
from .plans import foresee
from .plans import Plan

TESTS = Path(__file__).parents[1]
#: Every id is terminal so long after the last task of its canvas has ended (seconds).
SOON = 5.0
#: When nothing happens for so long, nothing more will (seconds).
QUIET = 6.0


class Line(NamedTuple):
    """A line of the journal."""

    what: str
    key: int
    task_id: str
    at: float


class Sent(NamedTuple):
    """A canvas that was sent."""

    seed: str
    plan: Plan
    result: Any
    #: Every id that the result tree names.
    ids: frozenset[str]


class Report(NamedTuple):
    """What became of a canvas."""

    sent: Sent
    #: In words, all that is not as it must be.
    complaints: list[str]
    #: How long after its last task the last of its ids was terminal (seconds).
    delay: float
    #: The value, or the name of the error's class; ``None`` if it never ends.
    outcome: Any


class Ground:
    """A queue, and a worker of two processes that runs the program on it.

    :param folder: for the queue file, the journal and the log.
    :param url: of another broker, with results in it: Celery's own worker runs there.
    """

    def __init__(self, folder: Path, url: str = "", queue: str = "celery") -> None:
        self.folder = folder
        self.url = url or f"sqlite:///{folder}/queue.sqlite3?durability=normal"
        self.env = {
            "CANVAS_FOLDER": str(folder),
            "CANVAS_URL": self.url,
            "CANVAS_QUEUE": queue,
            "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        }
        self.program = self._load()
        self.app: Any = self.program.celery
        #: Whether processes are killed while canvases run.
        self.with_deaths = False
        #: How many ids there were that no message names, so that nothing can ever end them.
        self.phantoms = 0
        self._texts: list[str] = []
        # Before Celery 5.7 an app asks only once who wants to hear of this.
        before_task_publish.connect(self._note)

    def start(self) -> Program:
        """Start the worker, and return it ready."""
        command = celery_command("-A", "canvas.program", "worker", "-c", "2", "-l", "INFO")
        log_path = self.folder / "worker.log"
        command += [*("-n", "canvas@localhost"), "--without-gossip", "--without-mingle"]
        worker = Program(command, log_path=log_path, cwd=self.folder, env=self.env)
        worker.wait_for_log(" ready.")
        return worker

    def run(self, plans: list[tuple[str, Plan]]) -> list[Report]:
        """Send the canvases all at once, wait until all has ended, and judge each."""
        begun = (self.folder / "journal").stat().st_size if self._has_journal() else 0
        sent = [self._send(seed, plan) for seed, plan in plans]
        self._wait(frozenset().union(*(each.ids for each in sent)))
        lines = self._read_journal(begun)
        return [self._judge(each, lines) for each in sent]

    def leftovers(self) -> list[str]:
        """Return, in words, what is in the store though all has ended."""
        found = []
        with closing(sqlite3.connect(self.folder / "queue.sqlite3")) as db:
            # Celery tells a size of some groups that are no chords; nothing ever counts in them.
            for name in (
                "celeriac_tasks WHERE status <> 'dead'",
                "celeriac_chords WHERE done",
                "celeriac_chord_parts",
            ):
                (count,) = db.execute(f"SELECT count(*) FROM {name}").fetchone()
                found += [f"{count} rows are left in {name}"] if count else []
        if "chord_unlock[" in (self.folder / "worker.log").read_text(errors="replace"):
            found.append("a celery.chord_unlock was received")
        return found

    def close(self) -> None:
        """Listen no more."""
        before_task_publish.disconnect(self._note)
        self.app.close()

    def _note(self, body: Any = None, headers: Any = None, **kwargs: Any) -> None:
        self._texts.append(json.dumps([body, headers], default=str))

    def _load(self) -> ModuleType:
        os.environ.update({k: v for k, v in self.env.items() if k.startswith("CANVAS_")})
        try:
            sys.modules.pop("canvas.program", None)
            from canvas import program  # type: ignore[attr-defined]

            del sys.modules["canvas.program"], sys.modules["canvas"].program  # type: ignore[attr-defined]
            program.celery.finalize()
            return program  # type: ignore[no-any-return]
        finally:
            for name in [name for name in os.environ if name.startswith("CANVAS_")]:
                del os.environ[name]

    def _send(self, seed: str, plan: Plan) -> Sent:
        revoked: list[str] = []
        # Keys are told apart by the canvas, so that one journal does for many at once.
        base = int(seed.rpartition(":")[2]) * 1000
        signature = build(_moved(plan, base), self.app, revoked)
        for task_id in revoked:
            self.app.control.revoke(task_id)
        self._texts.clear()
        result = signature.apply_async()
        text = "".join(self._texts)
        # Celery gives some tasks two ids, and tells the one that it does not use.
        ids = {task_id for task_id in _ids(result) if task_id in text}
        self.phantoms += len(set(_ids(result)) - ids)
        return Sent(seed, plan, result, frozenset(ids))

    def _wait(self, ids: frozenset[str]) -> None:
        """Wait until all ids are terminal and no message is left, or nothing happens any more."""
        seen, quiet_since = None, time.monotonic()
        while True:
            open_ids = len(ids - self._terminal(ids))
            left = self._messages()
            if not open_ids and not left:
                return
            size = (self.folder / "journal").stat().st_size if self._has_journal() else 0
            if (open_ids, left, size) != seen:
                seen, quiet_since = (open_ids, left, size), time.monotonic()
            elif time.monotonic() - quiet_since > QUIET:
                return
            time.sleep(0.1)

    def _has_journal(self) -> bool:
        return (self.folder / "journal").exists()

    def _messages(self) -> int:
        if self.url.startswith("sqlite"):
            return len(self.app.backend.engine.list_tasks(limit=10_000))
        with self.app.connection_for_read() as connection:
            return int(connection.default_channel.client.llen(self.app.conf.task_default_queue))

    def _terminal(self, ids: frozenset[str]) -> set[str]:
        metas = self._metas(ids)
        return {task_id for task_id, meta in metas.items() if meta["status"] in states.READY_STATES}

    def _metas(self, ids: frozenset[str]) -> dict[str, dict[str, Any]]:
        backend = self.app.backend
        if self.url.startswith("sqlite"):
            found = backend.engine.get_results(list(ids))
            return {task_id: backend.decode(each.meta) for task_id, each in found.items()}
        keys = list(ids)
        values = backend.mget([backend.get_key_for_task(each) for each in keys])
        return {
            key: backend.decode(value) for key, value in zip(keys, values, strict=True) if value
        }

    def _read_journal(self, begun: int) -> dict[int, list[Line]]:
        lines: dict[int, list[Line]] = defaultdict(list)
        if self._has_journal():
            with (self.folder / "journal").open() as file:
                file.seek(begun)
                for words in map(str.split, file):
                    line = Line(words[0], int(words[1]), words[2], float(words[3]))
                    lines[line.key // 1000].append(line._replace(key=line.key % 1000))
        return lines

    def _judge(self, sent: Sent, journal: dict[int, list[Line]]) -> Report:
        lines = journal[int(sent.seed.rpartition(":")[2])]
        foreseen = foresee(sent.plan)
        # A process that dies takes what its other tasks did in the last milliseconds with it.
        complaints = [] if self.with_deaths else list(_miscounted(foreseen, lines))
        ignored = {line.task_id for line in lines if line.key in foreseen.ignored}
        metas = self._metas(sent.ids)
        ended = [line.at for line in lines if line.what in ("ran", "ended")]
        done = [_instant(meta["date_done"]) for meta in metas.values() if meta.get("date_done")]
        delay = max(done) - max(ended) if ended and done else 0.0
        waiting = {each for each in sent.ids - ignored if each not in self._terminal(sent.ids)}
        if waiting:
            complaints.append(f"{len(waiting)} ids are not terminal: {sorted(waiting)}")
        if delay > SOON:
            complaints.append(f"the last id was terminal {delay:.1f} s after the last task")
        # Celery waits for the members of a group in a group without a time-out.
        is_over = self._terminal(sent.ids) == sent.ids
        is_whole = set(_ids(sent.result)) == sent.ids
        outcome = self._outcome(sent) if is_over and is_whole else None
        if outcome is None and is_whole and not ignored:
            complaints.append("get() does not return")
        if self.with_deaths:
            pass
        elif foreseen.end.broken:
            # Celery has a group of nothing succeed before it is sent.
            if outcome != [] and (isinstance(outcome, list) or outcome == foreseen.end.value):
                complaints.append(f"it succeeded with {outcome}, but {foreseen.end.broken}")
        elif is_whole and outcome != foreseen.end.value:
            complaints.append(f"its value is {outcome}, not {foreseen.end.value}")
        return Report(sent, complaints, delay, outcome)

    def _outcome(self, sent: Sent) -> Any:
        try:
            return sent.result.get(timeout=0.5)
        except TimeoutError:
            return None
        except Exception as exc:
            return {"error": type(exc).__name__}


def _miscounted(foreseen: Any, lines: list[Line]) -> Iterator[str]:
    for what, wanted in [
        ("ran", foreseen.runs),
        ("link", foreseen.links),
        ("errback", foreseen.errbacks),
    ]:
        counted = Counter(line.key for line in lines if line.what == what)
        for key in sorted(counted.keys() | wanted.keys()):
            if counted[key] != wanted[key]:
                yield f"{what} {key}: {counted[key]} times, not {wanted[key]}"


def _moved(plan: Any, base: int) -> Any:
    """Return the plan with all keys moved by ``base``."""
    moved: Plan = dict(plan)
    if "key" in moved:
        moved["key"] += base
    moved["links"] = [key + base for key in moved.get("links", ())]
    moved["errbacks"] = [[name, key + base] for name, key in moved.get("errbacks", ())]
    for name in ("chain", "group", "chord"):
        if name in moved:
            moved[name] = [_moved(each, base) for each in moved[name]]
    for name in ("body", "plan"):
        if name in moved:
            moved[name] = _moved(moved[name], base)
    return moved


def _ids(result: Any) -> Iterator[str]:
    """Yield the id of every task in a result tree."""
    stack, seen = [result], set()
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        stack.append(node.parent)
        if isinstance(node, GroupResult):
            stack.extend(list(node.results))
        elif isinstance(node, AsyncResult):
            yield node.id


def _instant(text: str) -> float:
    instant = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    return instant.timestamp()


def repro(report: Report) -> str:
    """Return what to type to see a canvas again, and its plan."""
    lines = [f"canvas {report.sent.seed}: {'; '.join(report.complaints)}"]
    lines.append(f"    python -m tests.canvas --only {report.sent.seed}")
    return "\n".join([*lines, f"    {json.dumps(report.sent.plan)}"])
