"""Does memory grow with the number of tasks? ``python -m benchmarks.memory``.

One million ``delay()`` in one process, which keeps the last results in a bounded window, and one
million tasks through one worker. After a warm-up the memory and the open files of each process are
looked at again and again; none may have grown by more than 5 MB, or a few files, at the end.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import NamedTuple

import psutil
from celery import group

from benchmarks.contenders import BY_NAME
from benchmarks.machine import other_load
from benchmarks.worker import running_worker
from benchmarks.worker import WorkerProcess

_WARM_UP = 10_000
_CHUNK = 1_000
#: How many results a producer keeps, if it keeps any.
_WINDOW = 1_000
#: How often the processes are looked at.
_LOOKS = 10
_MOST = 5.0
#: A few are open for a moment now and then.
_FILES = 3


class Look(NamedTuple):
    """What one process has, at one moment: memory of its own in MB, and open files."""

    memory: float
    files: int

    @classmethod
    def at(cls, process: psutil.Process) -> Look:
        """Look at a process. What it shares with others is not its own growth."""
        return cls(process.memory_full_info().uss / 1e6, process.num_fds())


class Growth:
    """The looks at each process, by what it is called, printed as they are taken."""

    def __init__(self) -> None:
        self._looks: dict[str, list[Look]] = {}

    def look(self, tasks: int, processes: dict[str, psutil.Process]) -> None:
        """Look at the processes after so many tasks."""
        for name, process in processes.items():
            look = Look.at(process)
            self._looks.setdefault(name, []).append(look)
            print(f"| {name} | {tasks:,} | {look.memory:.1f} | {look.files} |", flush=True)

    def too_much(self) -> list[str]:
        """Return a sentence on each process that grew."""
        return [
            f"{name}: {looks[-1].memory - looks[0].memory:+.1f} MB, "
            f"{looks[-1].files - looks[0].files:+} files"
            for name, looks in self._looks.items()
            if looks[-1].memory - looks[0].memory > _MOST
            or looks[-1].files - looks[0].files > _FILES
        ]


def main() -> int:
    """Run it; return 1 if anything grew."""
    options = _parse()
    growth = Growth()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as name:
        folder = Path(name)
        environment = BY_NAME["celeriac-normal"].environment(folder)
        # Neither the disk nor the time is to be filled by results.
        environment["BENCHMARK_EXPIRES"] = "10"
        os.environ.update(environment)
        print(f"other load: {other_load():.0f} % of all processors", flush=True)
        print("| process | tasks | memory, MB | files |\n| --- | ---: | ---: | ---: |")
        if options.only != "worker":
            _produce(growth, "producer", options.tasks, keep=0)
            _produce(growth, "producer, keeps results", options.tasks, keep=_WINDOW)
        if options.only != "producer":
            _work(growth, folder, environment, options.tasks)
    grown = growth.too_much()
    print(*grown, "" if grown else "nothing grew", sep="\n")
    return int(bool(grown))


def _produce(growth: Growth, name: str, tasks: int, *, keep: int) -> None:
    from benchmarks.apps.celeriac_app import add_together
    from celeriac.engines import open_engine

    myself = {name: psutil.Process()}
    results: deque[Any] = deque(maxlen=keep)
    for number in _steps(tasks, 1, lambda done: growth.look(done, myself)):
        results.append(add_together.delay(number, number))
        if number % _WARM_UP == 0:  # Nobody runs them, and the disk is not what is measured.
            open_engine(os.environ["BENCHMARK_BROKER_URL"]).purge("celery")


def _work(growth: Growth, folder: Path, environment: dict[str, str], tasks: int) -> None:
    commands = BY_NAME["celeriac-normal"].commands(folder)
    log = folder / "worker.log"
    with running_worker(commands, log=log, environment=environment) as worker:
        looks = _steps(tasks, _CHUNK, lambda done: growth.look(done, _named(worker)))
        for _ in looks:
            worker.check()
            _run_chunk()


def _run_chunk() -> None:
    """Have the worker run some tasks; it has always some more to do."""
    from benchmarks.apps.celeriac_app import add_together
    from celeriac.engines import open_engine

    calls: Any = (add_together.s(x, x) for x in range(_CHUNK))
    group(calls).apply_async()
    engine = open_engine(os.environ["BENCHMARK_BROKER_URL"])
    while engine.queue_sizes()["celery"] > 5 * _CHUNK:
        time.sleep(0.02)


def _named(worker: WorkerProcess) -> dict[str, psutil.Process]:
    parent, *children = worker.tree()
    return {"worker": parent, **{f"child {i}": child for i, child in enumerate(children, 1)}}


def _steps(tasks: int, size: int, look: Any) -> Iterator[int]:
    """Count the tasks in steps, looking after the warm-up and then so many times."""
    between = max(size, (tasks // _LOOKS // size) * size)
    for done in range(0, _WARM_UP + tasks, size):
        past = done - _WARM_UP
        if past >= 0 and past % between == 0:
            gc.collect()
            look(past)
        yield done
    gc.collect()
    look(tasks)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--only", choices=["producer", "worker"], help="of the two")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="for the file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
