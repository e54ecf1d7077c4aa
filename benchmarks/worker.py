"""A contender's workers: real processes, watched from outside and ended by their own pids."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
#: Longer than any needs that ends at all: workers of TaskIQ on a Redis stream do not.
_STOP_SECONDS = 15


class WorkerFailed(Exception):
    """A worker ended by itself; the message holds the end of what it wrote."""


class WorkerProcess:
    """Running workers and the children they forked."""

    def __init__(self, commands: list[list[str]], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as output:
            self._processes = [
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**os.environ, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                for command in commands
            ]

    def check(self) -> None:
        """Raise :exc:`WorkerFailed` if a worker has ended."""
        for process in self._processes:
            if process.poll() is not None:
                end = self._log.read_text(errors="replace")[-2000:]
                raise WorkerFailed(f"a worker ended with {process.returncode}:\n{end}")

    def tree(self) -> list[psutil.Process]:
        """Return the workers and all that they forked."""
        parents = [
            psutil.Process(process.pid) for process in self._processes if process.poll() is None
        ]
        return [each for parent in parents for each in (parent, *parent.children(recursive=True))]

    def memory(self) -> float:
        """Return the memory of the tree in MB, each shared page divided among its users."""
        return sum(process.memory_full_info().pss for process in self.tree()) / 1e6

    def cpu_seconds(self) -> float:
        """Return the processor time that the tree has used."""
        times = [process.cpu_times() for process in self.tree()]
        return sum(each.user + each.system for each in times)

    def stop(self) -> float:
        """End the workers by SIGTERM, as an operator does; return how long it took.

        What is left of their trees after that, or after too long, is killed.
        """
        tree = self.tree()
        began = time.monotonic()
        for process in self._processes:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in self._processes:
                process.wait(_STOP_SECONDS)
        seconds = time.monotonic() - began
        _kill(tree)
        for process in self._processes:
            process.wait()
        return seconds


@contextlib.contextmanager
def running_worker(
    commands: list[list[str]], *, log: Path, environment: dict[str, str]
) -> Iterator[WorkerProcess]:
    """Start workers; stop them at the end of the block, whatever happened in it."""
    worker = WorkerProcess(commands, log, environment)
    try:
        yield worker
    finally:
        worker.stop()


def _kill(tree: list[psutil.Process]) -> None:
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
