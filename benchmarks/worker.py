"""A contender's worker: a real process, watched from outside and ended by its own pid."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
_STOP_SECONDS = 30


class WorkerFailed(Exception):
    """The worker ended by itself; the message holds the end of what it wrote."""


class WorkerProcess:
    """A running worker and the children it forked."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def check(self) -> None:
        """Raise :exc:`WorkerFailed` if the worker has ended."""
        if self._process.poll() is not None:
            end = self._log.read_text(errors="replace")[-2000:]
            raise WorkerFailed(f"the worker ended with {self._process.returncode}:\n{end}")

    def tree(self) -> list[psutil.Process]:
        """Return the worker and all that it forked."""
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    def memory(self) -> float:
        """Return the memory of the tree in MB, each shared page divided among its users."""
        return sum(process.memory_full_info().pss for process in self.tree()) / 1e6

    def cpu_seconds(self) -> float:
        """Return the processor time that the tree has used."""
        times = [process.cpu_times() for process in self.tree()]
        return sum(each.user + each.system for each in times)

    def stop(self) -> float:
        """End the worker by SIGTERM, as an operator does; return how long it took."""
        if self._process.poll() is not None:
            return 0.0
        tree = self.tree()
        began = time.monotonic()
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _kill(tree)
            self._process.wait()
        return time.monotonic() - began


@contextlib.contextmanager
def running_worker(
    command: list[str], *, log: Path, environment: dict[str, str]
) -> Iterator[WorkerProcess]:
    """Start a worker; stop it at the end of the block, whatever happened in it."""
    worker = WorkerProcess(command, log, environment)
    try:
        yield worker
    finally:
        worker.stop()


def _kill(tree: list[psutil.Process]) -> None:
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
