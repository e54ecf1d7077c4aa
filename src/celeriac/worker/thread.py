"""Threads of one process: for tasks that wait, and where there is no fork."""

from __future__ import annotations

import os
import threading
from typing import Any

from .child import run_thread
from .claimant import Orders
from .pool import Pool
from .pool import stopping


class ThreadPool(Pool):
    """Threads that are children."""

    signal_safe = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._threads: dict[int, threading.Thread] = {}
        self._leaving: set[int] = set()
        self._lock = threading.RLock()

    def slots(self) -> list[int]:
        return sorted(self._threads)

    def add_child(self) -> None:
        slot = self.free_slot()

        def orders() -> Orders:
            return stopping(self.orders) if slot in self._leaving else self.orders

        thread = threading.Thread(
            target=run_thread,
            args=(self.ready(), slot, orders),
            name=f"celeriac-{slot}",
            daemon=True,
        )
        self._threads[slot] = thread
        thread.start()

    def tell(self) -> None:
        settings = self.ready()
        for slot in self.slots():
            settings.engine.wake(settings.worker_id, slot)

    def grow(self, n: int = 1) -> None:
        """Have ``n`` threads more; they are started by the next :meth:`tick`."""
        with self._lock:
            self.limit += n

    def shrink(self, n: int = 1) -> None:
        """Let ``n`` threads finish and end."""
        with self._lock:
            self.limit = max(0, self.limit - n)
            staying = [slot for slot in self.slots() if slot not in self._leaving]
            self._leaving.update(staying[self.limit :])
            self.tell()

    def tick(self) -> float:
        with self._lock:
            self._reap()
        return super().tick()

    def on_stop(self) -> None:
        if self.settings is None:
            return
        self.limit = 0
        self.command(stopping(self.orders))
        for thread in list(self._threads.values()):
            thread.join()
        self._reap()

    def _reap(self) -> None:
        for slot, thread in list(self._threads.items()):
            if not thread.is_alive():
                # Told to end, or ended by its task: `sys.exit()` ends only a thread.
                self.on_death(slot, os.getpid(), f"thread {thread.name} ended")
                self._threads.pop(slot, None)
                self._leaving.discard(slot)
        while len(self._threads) - len(self._leaving) < self.limit and not self.orders.stop:
            self.add_child()

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        info.update({"max-concurrency": self.limit, "threads": len(self._threads)})
        return info
