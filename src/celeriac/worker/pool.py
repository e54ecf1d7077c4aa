"""Pools whose children claim, run and complete by themselves.

Celery's worker makes a pool and a consumer. With a stock pool the consumer hands tasks over one
by one; with one of these it hands over nothing. A pool here starts its children, tells them
their orders, looks at the board what they do, ends those that exceed a time limit, and says
whose deliveries are to be taken back when one dies.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import billiard
from celery.concurrency.base import BasePool
from celery.utils.log import get_logger

from .board import Activity
from .board import SLOTS
from .child import encode_orders
from .child import make_claimant
from .child import run_child
from .child import run_thread
from .child import Settings
from .child import SIG_SOFT_LIMIT
from .claimant import Claimant
from .claimant import Orders

logger = get_logger(__name__)

#: A batch whose current task runs longer than this is handed to others (seconds).
STUCK = 0.02
#: Time that the store buffers of other processors surely need to drain (seconds); see
#: :meth:`Board.begin`.
SETTLE = 0.001


class Pool(BasePool):
    """What the three pools have in common.

    The consumer calls :meth:`prepare` before the pool's children can claim anything, because
    only the consumer knows the queues; Celery starts pools first.
    """

    #: Called with slot, process id and reason when a child died.
    on_death: Callable[[int, int, str], None]

    #: How many children there are to be.
    limit: int
    options: dict[str, Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.settings: Settings | None = None
        self.orders = Orders()

    def prepare(self, settings: Settings, orders: Orders) -> None:
        """Start the children."""
        self.settings, self.orders = settings, orders
        for _ in range(self.limit):
            self.add_child()

    def command(self, orders: Orders) -> None:
        """Tell all children their orders."""
        self.orders = orders
        self.tell()

    def tick(self) -> float:
        """Look after the children; return in how many seconds to look again."""
        return 1.0

    def activities(self) -> Iterator[tuple[int, Activity]]:
        """Yield slot and activity of each child."""
        if self.settings is not None:
            for slot in self.slots():
                yield slot, self.settings.board.read(slot)

    def slots(self) -> list[int]:
        """Return the slots that have a child."""
        raise NotImplementedError

    def add_child(self) -> None:
        """Start one child more."""
        raise NotImplementedError

    def tell(self) -> None:
        """Bring :attr:`orders` to the children."""
        raise NotImplementedError

    def release_stuck(self) -> None:
        """Give back what waits behind a task that takes long."""
        now = time.monotonic()
        for slot, activity in self.activities():
            waiting = activity.held > 1 and not activity.halted
            if activity.running and waiting and now - activity.began > STUCK:
                self._release(slot)

    def _release(self, slot: int) -> None:
        settings = self._ready()
        settings.board.halt(slot)
        time.sleep(SETTLE)
        started = set(settings.board.read(slot).started)
        held = settings.engine.lost(settings.worker_id, slot)
        rest = [lost.delivery for lost in held if lost.delivery.tag not in started]
        if rest:
            settings.engine.release(rest)

    def _ready(self) -> Settings:
        assert self.settings is not None, "the consumer prepares the pool"
        return self.settings

    def _free_slot(self) -> int:
        taken = set(self.slots())
        for slot in range(SLOTS):
            if slot not in taken:
                return slot
        raise ValueError(f"A worker can have at most {SLOTS} children; start another worker.")


class _Process:
    """A forked child, as its parent sees it."""

    def __init__(self, settings: Settings, slot: int, orders: Orders) -> None:
        reading, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self.tell(orders)
        context = billiard.get_context("fork")
        self._process = context.Process(
            target=self._run, args=(settings, slot, reading), name=f"ForkPoolWorker-{slot + 1}"
        )
        self._process.index = slot
        self._process.start()
        os.close(reading)
        self.pid: int = self._process.pid
        #: Why the parent ended it, for the error that users see.
        self.reason = ""
        self.soft_sent = 0.0

    def _run(self, settings: Settings, slot: int, reading: int) -> None:
        os.close(self._pipe)
        run_child(settings, slot, reading)

    def tell(self, orders: Orders) -> None:
        try:
            os.write(self._pipe, encode_orders(orders))
        except BrokenPipeError:
            pass  # It just died; its successor gets the newest orders.

    def kill(self, signum: int, reason: str) -> None:
        self.reason = self.reason or reason
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            pass

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, once it is dead."""
        code: int | None = self._process.exitcode
        if code is not None:
            os.close(self._pipe)
            self._process.join()
        return code


class ProcessPool(Pool):
    """Forked children: Celery's prefork."""

    uses_semaphore = False
    signal_safe = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._children: dict[int, _Process] = {}
        self._leaving: set[int] = set()

    def slots(self) -> list[int]:
        return sorted(self._children)

    @property
    def num_processes(self) -> int:
        return len(self._children) - len(self._leaving)

    def add_child(self) -> None:
        slot = self._free_slot()
        self._children[slot] = _Process(self._ready(), slot, self.orders)

    def tell(self) -> None:
        settings = self._ready()
        for slot, child in self._children.items():
            stop = slot in self._leaving
            child.tell(_stopping(self.orders) if stop else self.orders)
            settings.engine.wake(settings.worker_id, slot)

    def grow(self, n: int = 1) -> None:
        """Start ``n`` children more."""
        self.limit += n
        for _ in range(n):
            self.add_child()

    def shrink(self, n: int = 1) -> None:
        """Let ``n`` children finish and end; idle ones first."""
        self.limit = max(0, self.limit - n)
        busy = {slot for slot, activity in self.activities() if activity.running}
        staying = [slot for slot in self.slots() if slot not in self._leaving]
        self._leaving.update(sorted(staying, key=busy.__contains__)[:n])
        self.tell()

    def restart(self) -> None:
        """Replace all children by new ones."""
        self._leaving.update(self._children)
        self.tell()

    def maintain_pool(self, *args: Any, **kwargs: Any) -> None:
        self._reap()

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the child that runs a task, as ``revoke(terminate=True)`` asks."""
        for child in self._children.values():
            if child.pid == pid:
                child.kill(signal or 15, f"terminated {signal or 15}")

    def tick(self) -> float:
        self._reap()
        self.release_stuck()
        self._enforce_limits()
        return 0.02 if any(activity.running for _, activity in self.activities()) else 0.25

    def on_stop(self) -> None:
        """Let children finish what they run, and give back the rest."""
        if self.settings is None:
            return
        self.orders = _stopping(self.orders)
        self.limit = 0
        self.tell()
        while self._children:
            self._reap()
            self._enforce_limits()
            time.sleep(0.01)

    def on_terminate(self) -> None:
        """End all children now."""
        self.limit = 0
        self.orders = _stopping(self.orders)
        for child in self._children.values():
            child.kill(signal.SIGKILL, "cold shutdown")
        while self._children:
            self._reap()
            time.sleep(0.01)

    def _reap(self) -> None:
        for slot, child in list(self._children.items()):
            code = child.poll()
            if code is None:
                continue
            del self._children[slot]
            self._leaving.discard(slot)
            self.on_death(slot, child.pid, child.reason or _exit_text(code))
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
        info.update(
            {
                "max-concurrency": self.limit,
                "processes": [child.pid for child in self._children.values()],
                "max-tasks-per-child": self.options.get("maxtasksperchild") or "N/A",
                "put-guarded-by-semaphore": False,
                "timeouts": (
                    self.options.get("soft_timeout") or 0,
                    self.options.get("timeout") or 0,
                ),
                "writes": "N/A",
            }
        )
        return info


class ThreadPool(Pool):
    """Threads of one process: for tasks that wait, and where there is no fork."""

    signal_safe = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._threads: dict[int, threading.Thread] = {}
        self._leaving: set[int] = set()

    def slots(self) -> list[int]:
        return sorted(slot for slot, thread in self._threads.items() if thread.is_alive())

    @property
    def num_processes(self) -> int:
        return self.limit

    def add_child(self) -> None:
        slot = self._free_slot()
        settings = self._ready()

        def orders() -> Orders:
            return _stopping(self.orders) if slot in self._leaving else self.orders

        thread = threading.Thread(
            target=run_thread, args=(settings, slot, orders), name=f"celeriac-{slot}", daemon=True
        )
        self._threads[slot] = thread
        thread.start()

    def tell(self) -> None:
        settings = self._ready()
        for slot in self.slots():
            settings.engine.wake(settings.worker_id, slot)

    def grow(self, n: int = 1) -> None:
        """Start ``n`` threads more."""
        self.limit += n
        for _ in range(n):
            self.add_child()

    def shrink(self, n: int = 1) -> None:
        """Let ``n`` threads finish and end."""
        self.limit = max(0, self.limit - n)
        self._leaving.update(self.slots()[-n:])
        self.tell()

    def tick(self) -> float:
        self.release_stuck()
        return 0.02 if any(activity.running for _, activity in self.activities()) else 0.25

    def on_stop(self) -> None:
        if self.settings is None:
            return
        self.command(_stopping(self.orders))
        for thread in self._threads.values():
            thread.join()

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        info.update({"max-concurrency": self.limit, "threads": len(self.slots())})
        return info


class SoloPool(Pool):
    """The worker's own process and thread: one task at a time, between two looks at its mail."""

    signal_safe = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.limit = 1
        self._claimant: Claimant | None = None

    def slots(self) -> list[int]:
        return [0] if self._claimant else []

    def add_child(self) -> None:
        self._claimant = make_claimant(self._ready(), 0, lambda: self.orders)

    def tell(self) -> None:
        """Nothing to do: the claimant asks before each claim."""

    def tick(self) -> float:
        claimant = self._claimant
        if claimant is None:
            return 0.25
        # One batch takes a few milliseconds, unless a task takes longer, which is what solo means.
        return 0.0 if claimant.step() else 0.25

    def on_stop(self) -> None:
        self.orders = _stopping(self.orders)
        if self._claimant is not None:
            self._claimant.loop()
            self._claimant = None

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        info.update({"max-concurrency": 1, "processes": [os.getpid()]})
        return info


def _stopping(orders: Orders) -> Orders:
    return Orders(orders.queues, orders.rates, orders.limits, orders.events, stop=True)


def _exit_text(code: int) -> str:
    if code < 0:
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"exitcode {code}"
