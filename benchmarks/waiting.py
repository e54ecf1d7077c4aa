"""How many tasks can wait at once? ``python -m benchmarks.waiting``.

For each pool a worker of its own runs a thousand tasks that do nothing but sleep for a second, all
at once: plain functions and ``async def``. The ideal is one second. The worker may have 1,024 open
files, as most systems let a program have that does not ask for more.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from typing import NamedTuple

from celery import group

from benchmarks.contenders import BY_NAME
from benchmarks.machine import other_load
from benchmarks.run import number
from benchmarks.worker import running_worker
from benchmarks.worker import WorkerProcess

#: How many files a program may have open by default, nearly everywhere.
_FILES = 1024
_NAP = 1.0
#: How long anything may take (seconds).
_LONG = 120.0
_POOLS = ("threads", "gevent")


class Look(NamedTuple):
    """What a worker has, at one moment: memory in MB, open files and threads of its system's."""

    memory: float
    files: int
    threads: int

    @classmethod
    def at(cls, worker: WorkerProcess) -> Look:
        """Look at a worker and its children."""
        tree = worker.tree()
        files = max(process.num_fds() for process in tree)
        return cls(worker.memory(), files, sum(process.num_threads() for process in tree))


class Wave(NamedTuple):
    """What became of many tasks that were sent together (seconds)."""

    #: From the first start to the last end.
    seconds: float
    #: Until the median task had begun, and the last.
    median_start: float
    last_start: float
    #: From sending to having the last result.
    whole: float
    #: The worker's processor time.
    cpu: float
    most: Look


def main() -> None:
    """Print a table with one line for each pool and kind of task."""
    options = _parse()
    print(f"other load: {other_load():.0f} % of all processors", flush=True)
    names = [
        *("pool", "tasks", "ready, s", "idle, MB", "idle, % of a processor"),
        *("all done, s", "half begun, s", "all begun, s", "all results, s", "processor, s"),
        *("MB", "files", "threads", "stopped, s"),
    ]
    print(f"| {' | '.join(names)} |\n|{' --- |' * 2}{' ---: |' * (len(names) - 2)}")
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        environment = BY_NAME["celeriac-normal"].environment(Path(folder))
        os.environ.update(environment)
        for pool in options.pools:
            for kind in options.kinds:
                for line in _lines(pool, kind, Path(folder) / f"{pool}-{kind}.log", options):
                    print(f"| {' | '.join(line)} |", flush=True)


def _lines(pool: str, kind: str, log: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """Run the waves in one worker; yield a line for each."""
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.apps.waiting_app", "worker"]
    command += ["-l", "WARNING", "-P", pool, "-c", str(options.concurrency)]
    began = time.monotonic()
    with _few_files(), running_worker([command], log=log, environment={}) as worker:
        task = _task(kind)
        assert task.delay(0).get(timeout=_LONG)
        ready = time.monotonic() - began
        memory, idle = _idle(worker, options.idle)
        before = [number(ready), number(memory), f"{idle:.1f}"]
        for _ in range(options.waves):
            wave = _run(worker, task, options.tasks)
            yield [
                *(pool, f"{options.tasks:,} {kind}", *before),
                *(f"{seconds:.2f}" for seconds in wave[:5]),
                *map(number, wave.most),
                "",
            ]
            before = ["", "", ""]
        yield ["", "", *before, *[""] * 8, f"{worker.stop():.1f}"]
    print(*_complaints(log), sep="", end="", flush=True)


def _run(worker: WorkerProcess, task: Any, count: int) -> Wave:
    cpu = worker.cpu_seconds()
    sent = time.monotonic()
    results = group(task.s(_NAP) for _ in range(count)).apply_async()
    looks: list[Look] = []
    with _looking(worker, looks):
        naps: Sequence[tuple[float, float]] = results.get(timeout=_LONG)
    whole = time.monotonic() - sent
    starts = [began for began, _ in naps]
    first = min(starts)
    return Wave(
        max(ended for _, ended in naps) - first,
        statistics.median(starts) - first,
        max(starts) - first,
        whole,
        worker.cpu_seconds() - cpu,
        Look(*map(max, zip(*looks, strict=True))),
    )


def _idle(worker: WorkerProcess, seconds: float) -> tuple[float, float]:
    """Return the memory of a worker with nothing to do, and how busy it keeps one processor."""
    time.sleep(2.0)  # It has just begun, and runs its chores for the first time.
    cpu = worker.cpu_seconds()
    time.sleep(seconds)
    return worker.memory(), 100 * (worker.cpu_seconds() - cpu) / seconds


@contextmanager
def _looking(worker: WorkerProcess, looks: list[Look]) -> Iterator[None]:
    """Look at a worker again and again, and at least once."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.2) or not looks:
            looks.append(Look.at(worker))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _few_files() -> Iterator[None]:
    """Have what is started in this block begin with the usual number of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _task(kind: str) -> Any:
    from benchmarks.apps import waiting_app

    return {"plain": waiting_app.nap, "async": waiting_app.nap_async}[kind]


def _complaints(log: Path) -> Iterator[str]:
    """Yield what the worker had to say, but for its banner."""
    for line in log.read_text().splitlines():
        if any(mark in line for mark in ("WARNING", "ERROR", "CRITICAL", "Error")):
            yield line + "\n"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting", description=__doc__)
    add = parser.add_argument
    add("--tasks", type=int, default=1000, help="sent together; default: %(default)s")
    add("--concurrency", "-c", type=int, default=1000, help="default: %(default)s")
    add("--waves", type=int, default=2, help="how often that is; default: %(default)s")
    add("--idle", type=float, default=5.0, help="seconds that an idle worker is looked at")
    add("--pools", nargs="*", default=_POOLS)
    add("--kinds", nargs="*", default=("plain", "async"), choices=["plain", "async"])
    add("--folder", type=Path, default=Path("/var/tmp"), help="for the queue files")
    return parser.parse_args()


if __name__ == "__main__":
    main()
