"""How much memory a child has, whether the kernel ended it for lack of it, and what made it grow.

The parent looks at the children that run something now and then (:class:`Footprint`), so that it
can tell of one that dies. A child with a limit (``worker_max_memory_per_child``) looks at itself
after each task (:class:`Growth`). Where the system tells nothing of the kind, nothing is told.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

from celeriac.engines.base import Delivery

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
MB = 1024 * 1024
#: Seconds between two looks at a child that runs a task, at one that runs none, and at the
#: kernel's count of those that it killed. A look takes 10 µs.
LOOK = 0.25
LOOK_IDLE = 1.0
LOOK_KILLED = 1.0


class Memory(NamedTuple):
    """The resident memory of a child (bytes)."""

    #: When its task began, or a moment before.
    before: int
    #: When it was last looked at.
    last: int

    def __str__(self) -> str:
        more = (self.last - self.before) // MB
        grown = f"{more} MB more than before the task" if more > 0 else "as before the task"
        return f"Its memory was {self.last // MB} MB, {grown}."


class Footprint:
    """The memory of one child, as its parent saw it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._tag: int | None = None
        self._at = 0.0
        self._memory = Memory(0, 0)

    def look(self, tag: int | None) -> None:
        """Look at the child, which runs the task of this delivery, or none."""
        now = time.monotonic()
        before, last = self._memory
        if now - self._at >= (LOOK_IDLE if tag is None else LOOK):
            # One that is about to be dead has none.
            self._at, last = now, resident(self._pid) or last
        if tag != self._tag:
            # What was seen before it, unless nothing was.
            self._tag, before = tag, self._memory.last or last
        self._memory = Memory(before, last)

    def during(self, tag: int | None) -> Memory | None:
        """Return what was seen of the child in this delivery, if anything was."""
        return self._memory if tag == self._tag and self._memory.last else None


class KernelKills:
    """Whether the kernel kills for lack of memory."""

    def __init__(self) -> None:
        # The count now and a while ago: of a child that died a moment ago the newer one may know.
        self._counts = [killed_by_kernel()] * 2
        self._at = time.monotonic()

    def look(self) -> None:
        """Look at the count; called often while tasks run."""
        now = time.monotonic()
        if now - self._at >= LOOK_KILLED:
            self._at, self._counts = now, [self._counts[1], killed_by_kernel()]

    def happened(self) -> bool:
        """Say whether one happened in the last moments."""
        before, count = self._counts[0], killed_by_kernel()
        return before is not None and count is not None and count > before


class Growth:
    """How much a child grew, and with which task most.

    :param limit: what it may use (KiB).
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit * 1024
        self._peak = peak()
        self._most = (0, "none of its tasks")

    def saw(self, delivery: Delivery) -> None:
        """Note the end of a task."""
        before, self._peak = self._peak, peak()
        name = f"{delivery.task}[{delivery.task_id}]"
        self._most = max(self._most, (self._peak - before, name))

    @property
    def is_too_much(self) -> bool:
        """Whether the child is to be replaced by a new one."""
        return self._peak > self._limit

    def __str__(self) -> str:
        more, name = self._most
        return (
            f"it used {self._peak // MB} MB, and worker_max_memory_per_child is "
            f"{self._limit // MB} MB. Most of it came with {name}: {more // MB} MB."
        )


def resident(pid: int, proc: Path = PROC) -> int:
    """Return the resident memory of a process (bytes); 0 where it is not told."""
    try:
        with open(proc / str(pid) / "statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def peak() -> int:
    """Return the most that this process ever had resident (bytes)."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def killed_by_kernel(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Return how many processes the kernel has killed for lack of memory.

    Counted are those of this process's cgroup and of the groups in it; where there are none
    (version 2), those of the whole machine. ``None`` where nothing is told.
    """
    events = _cgroup(proc, cgroups) / "memory.events"
    for path in (events, proc / "vmstat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        for line in text.splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None


def _cgroup(proc: Path, cgroups: Path) -> Path:
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("0::/"):
            return cgroups / os.path.relpath(line[3:], "/")
    return cgroups
