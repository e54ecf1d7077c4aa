"""Whether the task of a process takes long, or the process only waits for a processor.

Behind a task that takes long nothing may wait: the parent hands the rest of its batch to others.
By the clock alone every task takes long on a busy machine, where the rest is then given back,
and claimed, and given back again, at two commits each time.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .board import Activity
from .memory import PROC

#: A batch whose current task runs longer than this is handed to others (seconds).
STUCK = 0.02


class _Times(NamedTuple):
    """What a process has spent on a processor, and waiting for one (seconds)."""

    ran: float
    waited: float


class Patience:
    """Tells which processes are stuck, by what the parent saw of each when its task was new.

    It costs a look at ``/proc`` for each task that the parent sees, 15 µs every 20 ms.
    """

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        #: By slot: when its task began, and the times when that was first seen.
        self._seen: dict[int, tuple[float, _Times | None]] = {}

    def is_over(self, slot: int, activity: Activity, now: float) -> bool:
        """Say whether the task of a slot takes long."""
        seconds = now - activity.began
        began, before = self._seen.get(slot, (0.0, None))
        if began != activity.began:
            before = self._times(activity.pid)
            self._seen[slot] = activity.began, before
            return before is None and seconds > STUCK
        if seconds <= STUCK:
            return False
        times = self._times(activity.pid)
        if before is None or times is None:
            return True
        if self._is_runnable(activity.pid):
            # It may be waiting now, and how long for is told only when that is over.
            return times.ran - before.ran > STUCK / 2
        return seconds - (times.waited - before.waited) > STUCK

    def _times(self, pid: int) -> _Times | None:
        """Return the times of a process's first thread, where the system tells them."""
        fields = self._read(pid, "schedstat").split()
        ran, waited = [int(field) / 1e9 for field in fields[:2]] or (0.0, 0.0)
        return _Times(ran, waited) if ran else None

    def _is_runnable(self, pid: int) -> bool:
        # The name before the state is in brackets, and may hold some itself.
        return self._read(pid, "stat").rpartition(b") ")[2].startswith(b"R")

    def _read(self, pid: int, name: str) -> bytes:
        try:
            with open(self._proc / str(pid) / name, "rb", buffering=0) as file:
                return file.read()
        except OSError:  # Only Linux tells, and of the living.
            return b""
