"""Forked children: Celery's prefork, and the default.

The parent ends those that exceed a time limit, replaces those that die, and tells each its
orders through a pipe; the pipe's end tells a child that its parent is gone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable
from typing import Any

import billiard
from celery.utils.log import get_logger

from .child import encode_orders
from .child import run_child
from .child import Settings
from .child import SIG_SOFT_LIMIT
from .claimant import Orders
from .pool import Pool
from .pool import stopping
from .redelivery import COLD_SHUTDOWN

logger = get_logger(__name__)


class _Process:
    """A forked child, as its parent sees it."""

    def __init__(
        self, settings: Settings, slot: int, orders: Orders, siblings: Iterable[_Process]
    ) -> None:
        self._pipe: int
        # A sibling that held on to this pipe would keep its child from noticing its parent's end.
        foreign = [sibling._pipe for sibling in siblings]
        reading, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._unsent = b""
        self.tell(orders)
        context = billiard.get_context("fork")
        self._process = context.Process(
            target=self._run,
            args=(settings, slot, reading, foreign),
            name=f"ForkPoolWorker-{slot + 1}",
        )
        self._process.index = slot
        self._process.start()
        os.close(reading)
        self.pid: int = self._process.pid
        #: Why the parent ended it, for the error that users see.
        self.reason = ""
        self.soft_sent = 0.0
        self._code: int | None = None

    def _run(self, settings: Settings, slot: int, reading: int, foreign: list[int]) -> None:
        for pipe in (self._pipe, *foreign):
            os.close(pipe)
        run_child(settings, slot, reading)

    def tell(self, orders: Orders) -> None:
        """Send orders, as much of them as the pipe takes; :meth:`flush` sends the rest."""
        self._unsent += encode_orders(orders)
        self.flush()

    def flush(self) -> None:
        while self._unsent:
            try:
                self._unsent = self._unsent[os.write(self._pipe, self._unsent) :]
            except BlockingIOError:
                return  # It is busy, and reads when it is done.
            except BrokenPipeError:
                self._unsent = b""  # It just died; its successor gets the newest orders.

    def kill(self, signum: int, reason: str) -> None:
        self.reason = self.reason or reason
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            pass

    def why(self, code: int) -> str:
        """Return why it ended."""
        signum = self.reason.removeprefix("terminated ")
        if signum != self.reason and code != -int(signum):
            return _exit_text(code)  # It outlived the signal, and died of something else.
        return self.reason or _exit_text(code)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, once it is dead."""
        if self._code is None and self._process.exitcode is not None:
            self._code = self._process.exitcode
            self._process.join()
        return self._code

    def close(self) -> None:
        """Forget a dead child. Until then its pipe is kept, so that its number stays its own."""
        os.close(self._pipe)


class ProcessPool(Pool):
    """Forked children."""

    recycles = True
    uses_semaphore = False
    signal_safe = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._children: dict[int, _Process] = {}
        self._leaving: set[int] = set()
        # The autoscaler is a thread of its own.
        self._lock = threading.RLock()

    def slots(self) -> list[int]:
        return sorted(self._children)

    def add_child(self) -> None:
        slot = self.free_slot()
        siblings = list(self._children.values())
        self._children[slot] = _Process(self.ready(), slot, self.orders, siblings)

    def tell(self) -> None:
        settings = self.ready()
        with self._lock:
            for slot, child in self._children.items():
                leaving = slot in self._leaving
                child.tell(stopping(self.orders) if leaving else self.orders)
                settings.engine.wake(settings.worker_id, slot)

    def grow(self, n: int = 1) -> None:
        """Have ``n`` children more; they are started by the next :meth:`tick`."""
        with self._lock:
            self.limit += n

    def shrink(self, n: int = 1) -> None:
        """Let ``n`` children finish and end; idle ones first."""
        with self._lock:
            self.limit = max(0, self.limit - n)
            busy = {slot for slot, activity in self.activities() if activity.running}
            staying = [slot for slot in self.slots() if slot not in self._leaving]
            surplus = max(0, len(staying) - self.limit)
            self._leaving.update(sorted(staying, key=busy.__contains__)[:surplus])
            self.tell()

    def restart(self) -> None:
        """Replace all children by new ones."""
        with self._lock:
            self._leaving.update(self._children)
            self.tell()

    def maintain_pool(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: :meth:`tick` does."""

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the child that runs a task, as ``revoke(terminate=True)`` asks."""
        for child in self._children.values():
            if child.pid == pid:
                child.kill(signal or 15, f"terminated {signal or 15}")

    def end_running(self, reason: str) -> None:
        for slot, activity in self.activities():
            if activity.running:
                logger.warning("Ending the task of process %s: %s", activity.pid, reason)
                self._children[slot].kill(signal.SIGKILL, reason)

    def tick(self) -> float:
        with self._lock:
            self._reap()
            for child in self._children.values():
                child.flush()
            self._enforce_limits()
        return super().tick()

    def on_stop(self) -> None:
        """Let children finish what they run, and give back the rest."""
        if self.settings is None:
            return
        self.limit = 0
        self.command(stopping(self.orders))
        while self._children:
            self.tick()
            time.sleep(0.01)

    def on_terminate(self) -> None:
        """End all children now."""
        self.limit = 0
        self.orders = stopping(self.orders)
        for child in self._children.values():
            child.kill(signal.SIGKILL, COLD_SHUTDOWN)
        while self._children:
            with self._lock:
                self._reap()
            time.sleep(0.01)

    def _reap(self) -> None:
        for slot, child in list(self._children.items()):
            code = child.poll()
            if code is None:
                continue
            # While this fails, the dead child keeps its slot, and what it holds.
            self.on_death(slot, child.pid, child.why(code))
            del self._children[slot]
            child.close()
            self._leaving.discard(slot)
        while len(self._children) - len(self._leaving) < self.limit and not self.orders.stop:
            self.add_child()

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        for slot, activity in self.activities():
            child = self._children[slot]
            if not activity.running:
                continue
            if activity.hard_deadline and now > activity.hard_deadline:
                seconds = activity.hard_deadline - activity.began
                child.kill(signal.SIGKILL, f"time limit {seconds:g}")
            elif activity.soft_deadline and now > activity.soft_deadline != child.soft_sent:
                child.soft_sent = activity.soft_deadline
                logger.warning(
                    "Soft time limit (%gs) exceeded", activity.soft_deadline - activity.began
                )
                os.kill(child.pid, SIG_SOFT_LIMIT)

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        limits = (self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0)
        info.update(
            {
                "max-concurrency": self.limit,
                "processes": [child.pid for child in self._children.values()],
                "max-tasks-per-child": self.options.get("maxtasksperchild") or "N/A",
                "put-guarded-by-semaphore": False,
                "timeouts": limits,
                "writes": "N/A",
            }
        )
        return info


def _exit_text(code: int) -> str:
    if code < 0:
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"exitcode {code}"
