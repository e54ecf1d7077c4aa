"""What one step costs in a file of ever more messages and results: ``python -m benchmarks.growth``.

No worker and no Celery in between: the engine alone, with a message and a result as Celery makes
them. A file grows by tenfold steps, one in messages that wait and one in results; at each
size single steps are timed. The bytes are those of the file's pages, indexes
included.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import BY_NAME
from benchmarks.machine import refuse_unreal_disk
from benchmarks.run import number
from celeriac.engines import open_engine
from celeriac.engines.base import Delivery
from celeriac.engines.base import Engine
from celeriac.engines.base import Message
from celeriac.engines.base import Outcome
from celeriac.engines.base import Result
from celeriac.engines.base import Worker
from celeriac.template import new_task_id

_QUEUE = "celery"
_WORKER = "benchmark"
#: Rows in one transaction while the file grows.
_BATCH = 10_000
#: Times that each step is done.
_TIMES = 200
_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


@dataclass(frozen=True)
class Step:
    """Something that is timed, and what is done after it and not timed."""

    work: Callable[[], Any]
    #: Given what the work returned.
    undo: Callable[[Any], object] = lambda done: None


def main() -> None:
    """Print two tables: with messages waiting, and with results stored."""
    options = _parse()
    refuse_unreal_disk(options.folder)
    sizes = [size for size in _SIZES if size <= options.most]
    with _engine(options) as (engine, _):
        samples = _samples(engine)
    for kind in (MessagesWaiting, ResultsStored):
        with _engine(options) as (engine, path):
            _print_table(kind(engine, path, *samples), sizes)


class Growing:
    """A queue file of ever more rows of one kind."""

    heading: str

    def __init__(self, engine: Engine, path: Path, message: Message, result: Result) -> None:
        self.engine = engine
        self._path = path
        self._message = message
        self._result = result
        #: How many there are, those of the steps included.
        self.rows = 0
        _register(engine)

    def add(self, count: int) -> None:
        """Add rows in one transaction."""
        raise NotImplementedError

    def steps(self) -> dict[str, Step]:
        """Return what is timed at each size."""
        raise NotImplementedError

    def new_message(self) -> Message:
        """Return the message of a task of its own."""
        return self._message._replace(task_id=new_task_id())

    def new_result(self) -> Result:
        """Return the result of a task of its own."""
        return self._result._replace(task_id=new_task_id())

    def claim(self, limit: int) -> list[Delivery]:
        """Claim the oldest messages."""
        return self.engine.claim([_QUEUE], limit, worker=_WORKER)

    def bytes(self) -> int:
        """Return the size of the file's pages, those in the write-ahead log included."""
        with contextlib.closing(sqlite3.connect(self._path)) as connection:
            (pages,), (size,) = (
                connection.execute(f"PRAGMA {name}").fetchone()
                for name in ("page_count", "page_size")
            )
            return int(pages * size)


class MessagesWaiting(Growing):
    """Claiming should cost the same however many wait."""

    heading = "messages waiting"

    def add(self, count: int) -> None:
        self.engine.publish([self.new_message() for _ in range(count)])
        self.rows += count

    def steps(self) -> dict[str, Step]:
        return {
            "publish": Step(lambda: self.add(1)),
            "claim 1": Step(lambda: self.claim(1), self.engine.release),
            "claim 100": Step(lambda: self.claim(100), self.engine.release),
        }


class ResultsStored(Growing):
    """So should storing and reading one result, however many there are."""

    heading = "results stored"

    def add(self, count: int) -> None:
        results = [self.new_result() for _ in range(count)]
        self.engine.store_results(results)
        self.rows += count
        self._known = results[-1].task_id

    def steps(self) -> dict[str, Step]:
        return {
            "store": Step(lambda: self.add(1)),
            "read": Step(lambda: self.engine.get_results([self._known])),
            "publish, claim, complete": Step(self._live),
        }

    def _live(self) -> None:
        """Lead one message through its whole life."""
        self.engine.publish([self.new_message()])
        (delivery,) = self.claim(1)
        self.engine.complete([Outcome(delivery, results=[self.new_result()])])
        self.rows += 1


def _print_table(growing: Growing, sizes: Sequence[int]) -> None:
    """Let it grow, and print a line at each size."""
    empty = growing.bytes()
    headings = [growing.heading, "bytes each", *(f"{name}, µs" for name in growing.steps())]
    print(f"| {' | '.join(headings)} |\n|{' ---: |' * len(headings)}")
    for size in sizes:
        while growing.rows < size:
            growing.add(min(_BATCH, size - growing.rows))
        each = (growing.bytes() - empty) / growing.rows
        times = [_microseconds(step) for step in growing.steps().values()]
        print(f"| {size:,} | {' | '.join(map(number, [each, *times]))} |", flush=True)
    print()


def _microseconds(step: Step) -> float:
    """Return the median of many times, after one that is not counted."""
    times = [_timed(step) for _ in range(_TIMES + 1)]
    return statistics.median(times[1:]) * 1e6


def _timed(step: Step) -> float:
    began = time.perf_counter()
    done = step.work()
    seconds = time.perf_counter() - began
    step.undo(done)
    return seconds


@contextlib.contextmanager
def _engine(options: argparse.Namespace) -> Iterator[tuple[Engine, Path]]:
    """Yield an engine on a new file, and the file."""
    contender = BY_NAME[f"celeriac-{options.durability}"]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        engine = open_engine(contender.urls(Path(folder))[0])
        with contextlib.closing(engine):
            yield engine, Path(folder) / "queue.sqlite3"


def _samples(engine: Engine) -> tuple[Message, Result]:
    """Return a message and a result, as Celery makes them for a real task."""
    os.environ["BENCHMARK_BROKER_URL"] = os.environ["BENCHMARK_RESULT_BACKEND"] = engine.url
    from benchmarks.apps.celeriac_app import add_together
    from benchmarks.apps.celeriac_app import celery

    _register(engine)
    task_id = add_together.delay(1, 1).id
    (delivery,) = engine.claim([_QUEUE], 1, worker=_WORKER)
    celery.backend.store_result(task_id, add_together(1, 1), "SUCCESS")
    fields = {name: getattr(delivery, name) for name in ("queue", "envelope", "body", "task")}
    return Message(**fields), engine.get_results([task_id])[task_id]


def _register(engine: Engine) -> None:
    engine.register(Worker(_WORKER, _WORKER, os.getpid(), (_QUEUE,), frozenset()))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    add = parser.add_argument
    add("--most", type=int, default=1_000_000, help="rows of each kind; default: %(default)s")
    add("--durability", choices=["full", "normal"], default="normal")
    add("--folder", type=Path, default=Path("/var/tmp"), help="for the queue files")
    return parser.parse_args()


if __name__ == "__main__":
    main()
