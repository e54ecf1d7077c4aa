"""Does the queue file stop growing? ``python -m benchmarks.retention``.

A real worker runs one million tasks whose results expire after seconds, or exceed ``--max-size``,
while this process enqueues and looks at the size of the file. Then it waits for the end: until all
has expired, and the space is given back.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

from celery import group

from benchmarks.contenders import BY_NAME
from benchmarks.machine import other_load
from benchmarks.worker import running_worker
from benchmarks.worker import WorkerProcess

_CHUNK = 1_000
#: How many messages wait at most: it is the results that are measured.
_BACKLOG = 20_000
_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
#: Beyond the time to expire, until the last clean-up is over.
_END_SECONDS = 70.0


@dataclass
class Sizes:
    """The sizes of the queue file and its log, as they were seen, in MB."""

    path: Path
    seen: list[tuple[int, float, float]] = field(default_factory=list)

    def look(self, tasks: int) -> tuple[float, float]:
        """Note the sizes after so many tasks."""
        file, log = (_megabytes(f"{self.path}{suffix}") for suffix in ("", "-wal"))
        self.seen.append((tasks, file, log))
        return file, log

    def most(self, after: int, until: int) -> float:
        """Return the greatest size of the file in a part of the run."""
        return max(file for tasks, file, _ in self.seen if after < tasks <= until)


def main() -> int:
    """Run it; return 1 if the file grew on in the second half."""
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as name:
        folder = Path(name)
        contender = BY_NAME["celeriac-normal"]
        environment = contender.environment(folder)
        for variable in environment:
            environment[variable] += f"&max_size={options.max_size}"
        environment["BENCHMARK_EXPIRES"] = str(options.expires)
        os.environ.update(environment)
        print(f"other load: {other_load():.0f} % of all processors", flush=True)
        commands = contender.commands(folder)
        log = folder / "worker.log"
        with running_worker(commands, log=log, environment=environment) as worker:
            sizes = _run(worker, folder / "queue.sqlite3", options)
        print("", *_warnings(log), sep="\n")
    first = sizes.most(0, options.tasks // 2)
    second = sizes.most(options.tasks // 2, options.tasks)
    print(f"at most {first:.1f} MB in the first half, {second:.1f} MB in the second")
    return int(second > 1.2 * first)


def _run(worker: WorkerProcess, path: Path, options: argparse.Namespace) -> Sizes:
    sizes = Sizes(path)
    print("| tasks | tasks/s | file, MB | log, MB |\n| ---: | ---: | ---: | ---: |")
    steps = iter(int(share * options.tasks) for share in _SHARES)
    step = next(steps)
    began, last = time.monotonic(), 0
    for tasks in _enqueue(options.tasks):
        worker.check()
        file, log = sizes.look(tasks)
        if tasks >= step:
            ended = time.monotonic()
            _row(f"{tasks:,}", f"{(tasks - last) / (ended - began):,.0f}", file, log)
            began, last, step = ended, tasks, next(steps, sys.maxsize)
    file, log = _end(sizes, options.expires)
    _row("after the end", "", file, log)
    return sizes


def _enqueue(tasks: int) -> Iterator[int]:
    """Enqueue, never far ahead of the worker; yield how many were enqueued so far."""
    from benchmarks.apps.celeriac_app import add_together
    from celeriac.engines import open_engine

    engine = open_engine(os.environ["BENCHMARK_BROKER_URL"])
    for done in range(_CHUNK, tasks + 1, _CHUNK):
        calls: Any = (add_together.s(x, x) for x in range(_CHUNK))
        group(calls).apply_async()
        while engine.queue_sizes().get("celery", 0) > (_BACKLOG if done < tasks else 0):
            time.sleep(0.05)
        yield done


def _end(sizes: Sizes, expires: float) -> tuple[float, float]:
    """Wait until the file has stayed as it is for a while."""
    time.sleep(min(expires, _END_SECONDS))
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        sizes.look(0)
        time.sleep(1.0)
    return sizes.look(0)


def _warnings(log: Path) -> list[str]:
    """Return what the worker said, without its banner."""
    return [line for line in log.read_text().splitlines() if line.startswith("[")]


def _row(tasks: str, rate: str, file: float, log: float) -> None:
    print(f"| {tasks} | {rate} | {file:.1f} | {log:.1f} |", flush=True)


def _megabytes(path: str) -> float:
    try:
        return os.stat(path).st_size / 1e6
    except FileNotFoundError:
        return 0.0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retention", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--expires", type=float, default=10.0, help="seconds; %(default)s")
    parser.add_argument("--max-size", default="4GB", help="of the queue file; %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="for the file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
