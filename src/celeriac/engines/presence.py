"""Who lives: a lock that the kernel gives up when its process dies, however it dies.

Each worker has a small file beside the queue file. Its parent locks the first byte and each
child the byte of its slot. Whoever can take such a lock knows that its holder is dead, at once
and without a heartbeat; a process that is stopped, swapped out or slow still holds it. The
locks belong to the machine's kernel, so they also work between containers that share a volume.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

from .base import EngineError
from .base import ITSELF


class Presence:
    """The presence files of one queue file, as this process holds and reads them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        # One file descriptor per worker and process: closing any other one of the same file
        # would give up all locks that this process holds on it.
        self._files: dict[str, int] = {}
        self._held: set[tuple[str, int]] = set()

    @property
    def in_use(self) -> bool:
        """Whether this process is a worker, or works for one."""
        return bool(self._held)

    def hold(self, worker_id: str, slot: int = ITSELF) -> None:
        """Say that this process is the worker's parent, or works in one of its slots."""
        with self._lock:
            # Only the parent makes the file: one made anew by a child, after somebody removed
            # it, would say of all others that they are dead.
            file = self._open(worker_id, create=slot == ITSELF)
            if file is not None:
                _lock_patiently(file, slot + 1)
            self._held.add((worker_id, slot))

    def is_alive(self, worker_id: str, slot: int = ITSELF) -> bool | None:
        """Say whether the process that held this place still runs.

        ``None`` when the worker's file is gone: then nobody can tell.
        """
        with self._lock:
            if (worker_id, slot) in self._held:
                return True
            if worker_id in self._files:
                return _is_locked(self._files[worker_id], slot + 1)
            try:
                file = os.open(self._path(worker_id), os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                return _is_locked(file, slot + 1)
            finally:
                os.close(file)

    def sleeps_on(self, worker_id: str, slot: int, bell_slot: int | None) -> None:
        """Note the bell slot on which this process, in this slot of the worker, sleeps."""
        number = 0 if bell_slot is None else bell_slot + 1
        with self._lock:
            file = self._open(worker_id)
            if file is not None:
                with suppress(OSError):  # A full disk: it is woken late, as without a bell.
                    os.pwrite(file, struct.pack("=I", number), 4 * slot)

    def bell_slot(self, worker_id: str, slot: int) -> int | None:
        """Return what :meth:`sleeps_on` noted."""
        with self._lock:
            file = self._open(worker_id)
            data = b"" if file is None else os.pread(file, 4, 4 * slot)
        number = struct.unpack("=I", data)[0] if len(data) == 4 else 0
        return number - 1 if number else None

    def leave(self, worker_id: str) -> None:
        """Give up every place that this process holds in the worker."""
        with self._lock:
            self._held = {place for place in self._held if place[0] != worker_id}
            file = self._files.pop(worker_id, None)
            if file is not None:
                os.close(file)

    def remove(self, worker_id: str) -> None:
        """Delete the file of a worker that is gone."""
        self.leave(worker_id)
        self._path(worker_id).unlink(missing_ok=True)

    def list(self) -> list[str]:
        """Return the ids of the workers that have a file, dead ones too."""
        return [path.name.removeprefix("worker-") for path in self._folder.glob("worker-*")]

    def close(self) -> None:
        """Give up every place that this process holds."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Close without the lock, which the thread of a process before the fork may hold."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        self._held.clear()

    def _open(self, worker_id: str, *, create: bool = False) -> int | None:
        file = self._files.get(worker_id)
        if file is None:
            flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
            try:
                file = self._files[worker_id] = os.open(self._path(worker_id), flags, 0o600)
            except FileNotFoundError:
                return None
        return file

    def _path(self, worker_id: str) -> Path:
        return self._folder / f"worker-{worker_id}"


def _lock_patiently(file: int, byte: int) -> None:
    """Take a lock that others may hold for the moment in which they look at it."""
    for _ in range(1000):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            return
        except OSError:
            time.sleep(0.001)
    raise EngineError(
        "Another process works in the same place of the same worker, and does not end."
    )


def _is_locked(file: int, byte: int) -> bool:
    # Shared, so that two who look at once do not take each other for the living.
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, byte)
    except OSError:
        return True
    fcntl.lockf(file, fcntl.LOCK_UN, 1, byte)
    return False
