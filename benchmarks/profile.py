"""Where the microseconds of one task go: ``python -m benchmarks.profile``.

One process enqueues tasks and then runs them by the worker's own loop, first undisturbed and
then with a stopwatch around each phase. A phase's time is what passes in it and in no phase
inside it. The stopwatch costs time itself, so its figures are scaled to add up to the
undisturbed time. Nothing is sampled, and no profiler slows small functions more than large ones.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import group
from celery.app.trace import build_tracer

from benchmarks.contenders import BY_NAME
from celeriac import template
from celeriac.context import app_context
from celeriac.engines.base import Worker
from celeriac.engines.group_commit import GroupCommit
from celeriac.envelope import Envelope
from celeriac.publish import EngineProducer
from celeriac.template import Template
from celeriac.worker.arguments import Arguments
from celeriac.worker.board import Board
from celeriac.worker.child import make_claimant
from celeriac.worker.child import Settings
from celeriac.worker.claimant import Claimant
from celeriac.worker.claimant import Orders
from celeriac.worker.completion import Completer
from celeriac.worker.request import Limits
from celeriac.worker.request import Requests

#: Enqueued one by one, and by ``group()`` or ``delay_many()``.
_SINGLES = 2_000
_CHUNK = 1_000

Phase = tuple[Any, str, str]


class Stopwatch:
    """Adds up the time that passes in each phase, whichever phases it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = threading.local()
        self._originals: list[tuple[Any, str, Any]] = []

    def put_on(self, phases: list[Phase]) -> None:
        """Time these attributes of these objects from now on."""
        for owner, name, label in phases:
            original = getattr(owner, name)
            self._originals.append((owner, name, vars(owner).get(name)))
            timed = self._timed(original, label)
            is_class_method = isinstance(vars(owner).get(name), classmethod)
            setattr(owner, name, staticmethod(timed) if is_class_method else timed)

    def take_off(self) -> None:
        """Undo :meth:`put_on`."""
        for owner, name, original in reversed(self._originals):
            if original is None:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
        self._originals.clear()

    def _timed(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        now, inner, seconds = time.perf_counter, self._inner, self.seconds

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            stack = inner.__dict__.setdefault("stack", [0.0])
            stack.append(0.0)
            began = now()
            try:
                return function(*args, **kwargs)
            finally:
                total = now() - began
                seconds[label] += total - stack.pop()
                stack[-1] += total

        return timed


def main() -> None:
    """Measure the way in and the way through; print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--durability", choices=["full", "normal"], default="full")
    parser.add_argument("--tasks", type=int, default=10_000, help="to run; default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="for the queue file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        contender = BY_NAME[f"celeriac-{options.durability}"]
        os.environ.update(contender.environment(Path(folder)))
        _measure(Path(folder), options.tasks)


def _measure(folder: Path, tasks: int) -> None:
    from benchmarks.apps.celeriac_app import add_together
    from benchmarks.apps.celeriac_app import celery

    def enqueue() -> None:
        for x in range(_SINGLES):
            add_together.delay(x, x)

    def enqueue_many() -> None:
        for _ in range(0, tasks, _CHUNK):
            group(add_together.s(x, x) for x in range(_CHUNK)).apply_async()

    def enqueue_many_shortly() -> None:
        for _ in range(0, tasks, _CHUNK):
            add_together.delay_many((x, x) for x in range(_CHUNK))

    add_together.delay(1, 1)
    short, long = _phases_of_short_calls(celery), _phases_of_long_calls(celery, add_together)
    _report("delay()", enqueue, short, count=_SINGLES)
    _report("delay_many(), per task", enqueue_many_shortly, short, count=tasks)
    _report("group(), per task", enqueue_many, long, count=tasks)
    claimant = _claimant(celery, folder)

    def drain() -> None:
        while claimant.step():
            pass

    drain()
    enqueue_many()
    undisturbed = _seconds(drain)
    enqueue_many()
    phases = _phases_of_running(celery, add_together)
    _table("one task in the worker, one process", phases, drain, undisturbed, tasks)


def _report(title: str, work: Callable[[], None], phases: list[Phase], *, count: int) -> None:
    _table(title, phases, work, _seconds(work), count)


def _table(
    title: str, phases: list[Phase], work: Callable[[], None], undisturbed: float, count: int
) -> None:
    """Do the work once more with the stopwatch on, and print what it found."""
    watch = Stopwatch()
    watch.put_on(phases)
    try:
        measured = _seconds(work)
    finally:
        watch.take_off()
    rest = measured - sum(watch.seconds.values())
    shares = {**watch.seconds, "everything between": rest}
    scale = undisturbed / measured / count * 1e6
    print(f"| {title} | µs | share |\n| --- | ---: | ---: |")
    for label, seconds in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"| {label} | {seconds * scale:.1f} | {seconds / measured:.0%} |")
    print(f"| **together** | **{undisturbed / count * 1e6:.1f}** | |\n")


def _claimant(celery: Any, folder: Path) -> Claimant:
    """Return a worker's loop over the engine, with everything real but the processes."""
    engine = celery.backend.engine
    for name, task in celery.tasks.items():
        task.__trace__ = build_tracer(name, task, celery.loader, "benchmark", app=celery)
    names = frozenset(celery.tasks)
    engine.register(Worker("benchmark", "benchmark", os.getpid(), ("celery",), names))
    board = Board(folder / "board", sorted(names))
    settings = Settings(
        celery, engine, "benchmark", "benchmark", board, names, limits=Limits(None, None)
    )
    orders = Orders(queues=("celery",))
    return make_claimant(settings, 0, lambda: orders, pid=os.getpid())


def _phases_of_short_calls(celery: Any) -> list[Phase]:
    # A stopwatch on Celery's own functions would send all calls the long way.
    return [
        (GroupCommit, "commit", "store the message, and commit"),
        (type(celery.backend.engine), "publish", "wake who waits"),
        (template, "_way", "see that nobody looks in"),
        (Template, "message", "fill in the template"),
        (template, "_result", "make the result"),
    ]


def _phases_of_long_calls(celery: Any, task: Any) -> list[Phase]:
    return [
        (type(celery.backend.engine), "publish", "store the message, and commit"),
        (EngineProducer, "publish", "encode the message"),
        (celery.amqp, "create_task_message", "make Celery's message"),
        (celery.amqp.router, "route", "find the queue"),
        (type(celery), "send_task", "Celery.send_task"),
        (type(task.apply_async.__self__), "apply_async", "Task.apply_async"),
    ]


def _phases_of_running(celery: Any, task: Any) -> list[Phase]:
    engine = type(celery.backend.engine)
    return [
        (engine, "claim", "claim"),
        (engine, "revocations", "ask for revocations"),
        (engine, "complete", "complete: results and acknowledgement, and commit"),
        (Completer, "add", "gather outcomes"),
        (Completer, "stand_by", "gather outcomes"),
        (Board, "begin", "note the start and the end"),
        (Board, "end", "note the start and the end"),
        (Envelope, "unpack", "decode the envelope"),
        (Arguments, "decode", "decode the arguments"),
        (Requests, "_context", "make the request"),
        (Requests, "run", "around the tracer"),
        (app_context, "push", "app context"),
        (app_context, "pop", "app context"),
        (task, "__trace__", "Celery's tracer, and the task's own function"),
        # A stopwatch on what is inside would send all results the long way.
        (type(celery.backend), "mark_as_done", "encode the result"),
    ]


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
