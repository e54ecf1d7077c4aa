"""What process 1 of a container owes to others: their orphans, once these have ended.

The kernel gives a process whose parent ended to process 1, and keeps it as a zombie until that
asks for its exit code. A worker that is process 1 does so. It must not take away the code of a
process that it started itself and will ask for: those of the pool are left alone, and others are
given the time to be asked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from collections.abc import Iterator

#: The process that orphans come to.
INIT = 1


class Orphans:
    """The zombies of process 1.

    :param patience: how long one that this process may have started itself is left alone (seconds).
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._seen: dict[int, float] = {}

    def reap(self, own: Collection[int]) -> None:
        """Let the ended orphans go, but for our ``own`` children."""
        now = time.monotonic()
        zombies = [pid for pid in _zombies() if pid not in own]
        self._seen = {pid: self._seen.get(pid, now) for pid in zombies}
        for pid, since in self._seen.items():
            if now - since >= self._patience:
                _let_go(pid)


def _zombies() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit() and _is_zombie(name):
            yield int(name)


def _is_zombie(name: str) -> bool:
    try:
        with open(f"/proc/{name}/stat") as file:
            # The name of the program stands in brackets, and may have brackets and spaces itself.
            state, parent, *_ = file.read().rpartition(")")[2].split()
    except OSError:  # It is gone.
        return False
    return state == "Z" and int(parent) == INIT


def _let_go(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # Somebody asked for it meanwhile.
