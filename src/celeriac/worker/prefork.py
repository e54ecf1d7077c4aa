"""Processes as children, forked or spawned: Celery's prefork, and the default.

The parent tells each its orders through a pipe; the pipe's end tells a child that its parent is
gone.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterable
from typing import Any

import billiard
from celery.worker import state

from .board import Activity
from .child import encode_orders
from .child import run_child
from .child import Settings
from .child import SIG_SOFT_LIMIT
from .claimant import Orders
from .memory import Footprint
from .memory import KernelKills
from .memory import Memory
from .pool import Pool
from .pool import SETTLE
from .redelivery import COLD_SHUTDOWN
from .redelivery import exit_text
from .redelivery import TERMINATED
from .spawn import Inherited
from .spawn import Luggage
from .spawn import NO_APP
from .spawn import run_spawned
from .stuck import Patience
from .trouble import DAMAGED

#: How long a process that is to end may take to record what it ended before (seconds).
PATIENCE = 0.05
#: Said of a child that got a SIGKILL which nobody of the worker sent.
LACKED_MEMORY = ", by the kernel for lack of memory"
#: How long children that have nothing to do may take to end, when their parent hangs (seconds).
LEAVE = 3.0


class _Process:
    """A forked child, as its parent sees it."""

    method = "fork"
    _pipe: int

    def __init__(
        self,
        settings: Settings,
        slot: int,
        orders: Orders,
        siblings: Iterable[_Process],
        kills: KernelKills,
    ) -> None:
        self._kills = kills
        # A sibling that held on to this pipe would keep its child from noticing its parent's end.
        self._foreign = [sibling._pipe for sibling in siblings]
        reading, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._unsent = b""
        self.tell(orders)
        target, *args = self._call(settings, slot, reading)
        self._process = billiard.get_context(self.method).Process(
            target=target,
            args=args,
            name=f"{self.method.capitalize()}PoolWorker-{slot + 1}",
        )
        self._process.index = slot
        self._process.start()
        os.close(reading)
        self.pid: int = self._process.pid
        #: Why the parent ended it, by the signals that it sent; for the error that users see.
        self._reasons: dict[int, str] = {}
        self.soft_sent = 0.0
        self._code: int | None = None
        self._lacked_memory = False
        self.footprint = Footprint(self.pid)

    def _call(self, settings: Settings, slot: int, reading: int) -> tuple[Any, ...]:
        """Return the function that is the child, and its arguments."""
        return self._run, settings, slot, reading

    def _run(self, settings: Settings, slot: int, reading: int) -> None:
        for pipe in (self._pipe, *self._foreign):
            os.close(pipe)
        run_child(settings, slot, reading)

    def tell(self, orders: Orders) -> None:
        """Send orders, as much of them as the pipe takes; :meth:`why_dead` sends the rest."""
        self._unsent += encode_orders(orders)
        self._flush()

    def soften(self, tag: int) -> bool:
        self._send(SIG_SOFT_LIMIT)
        return True

    def end(self, tag: int, signum: int, reason: str) -> None:
        self._reasons.setdefault(signum, reason)
        self._send(signum)

    @property
    def was_aborted(self) -> bool:
        """Whether it was told to write where it hangs, and end."""
        return signal.SIGABRT in self._reasons

    def reap(self, deadline: float) -> None:
        """Wait for its end, kill it at the deadline (monotonic seconds), and wait once more."""
        try:
            while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                late = time.monotonic() - deadline
                if late > LEAVE:
                    return  # The system itself keeps it, as it does where a disk is gone.
                if late > 0:
                    self._send(signal.SIGKILL)
                time.sleep(0.01)
        except ChildProcessError:
            pass  # The hanging loop was faster.

    def why_dead(self) -> str | None:
        self._flush()
        if self._code is None:
            self._code = self._process.exitcode
            if self._code is None:
                return None
            self._process.join()
            self._lacked_memory = self._code == -signal.SIGKILL and self._kills.happened()
            if self._code in (NO_APP, DAMAGED):
                state.should_stop = self._code
        return self._why(self._code)

    def close(self) -> None:
        """Forget a dead child. Until then its pipe is kept, so that its number stays its own."""
        os.close(self._pipe)

    def _why(self, code: int) -> str:
        if -code in self._reasons:
            return self._reasons[-code]
        # One that was terminated outlived the signal, and died of something else.
        others = [why for why in self._reasons.values() if not why.startswith(TERMINATED)]
        if others:
            return others[0]
        return exit_text(code) + (LACKED_MEMORY if self._lacked_memory else "")

    def _send(self, signum: int) -> None:
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            pass

    def _flush(self) -> None:
        while self._unsent:
            try:
                self._unsent = self._unsent[os.write(self._pipe, self._unsent) :]
            except BlockingIOError:
                return  # It is busy, and reads when it is done.
            except BrokenPipeError:
                self._unsent = b""  # It just died; its successor gets the newest orders.


class _SpawnedProcess(_Process):
    """A spawned child, as its parent sees it. It inherits no pipes but its own."""

    method = "spawn"

    def _call(self, settings: Settings, slot: int, reading: int) -> tuple[Any, ...]:
        return run_spawned, Luggage.of(settings), slot, Inherited(reading)


class ProcessPool(Pool):
    """Processes that are children."""

    recycles = True
    uses_semaphore = False
    signal_safe = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._kills = KernelKills()
        self._patience = Patience()

    def prepare(self, settings: Settings, orders: Orders) -> None:
        # Or the first full collection would touch, and so copy, all that the children share with
        # their parent: 22 MB of it.
        gc.freeze()
        super().prepare(settings, orders)

    def start_child(self, slot: int) -> _Process:
        siblings = list(self._children.values())
        return self._child_class(self.ready(), slot, self.orders, siblings, self._kills)

    def memory_of(self, slot: int, child: _Process) -> Memory | None:
        started = self.ready().board.read(slot).started
        return child.footprint.during(started[-1]) if started else None

    @property
    def _child_class(self) -> type[_Process]:
        is_asked_for = not self.forking_enable or billiard.get_start_method() != "fork"
        return _SpawnedProcess if is_asked_for else _Process

    def _look(self) -> bool:
        is_busy = super()._look()
        if is_busy:
            self._kills.look()
        for slot, activity in self.activities():
            runs = activity.running and activity.started
            self._children[slot].footprint.look(activity.started[-1] if runs else None)
        return is_busy

    def _takes_long(self, slot: int, activity: Activity, now: float) -> bool:
        return self._patience.is_over(slot, activity, now)

    def _end(self, slot: int, activity: Activity, signum: int, reason: str) -> None:
        """End the process, unless its task ended meanwhile: the next one is not meant.

        What it ended before, and records at this moment, is waited for a little.
        """
        board = self.ready().board
        board.halt(slot, activity.batch)
        deadline = time.monotonic() + PATIENCE
        time.sleep(SETTLE)
        while (seen := board.read(slot)).running and seen.started[-1:] == activity.started[-1:]:
            if len(seen.started) <= 1 or time.monotonic() > deadline:
                super()._end(slot, seen, signum, reason)
                return
            time.sleep(SETTLE)

    def kill(self, reason: str) -> None:
        for child in list(self._children.values()):
            child.end(0, signal.SIGKILL, reason)

    def replace(self, slot: int, reason: str) -> bool:
        child = self._children.get(slot)
        if child is not None:
            # It answers the first signal by writing where it hangs, unless it is stopped.
            child.end(0, signal.SIGKILL if child.was_aborted else signal.SIGABRT, reason)
        return True

    def abandon(self) -> None:
        super().abandon()
        deadline = time.monotonic() + LEAVE
        for child in list(self._children.values()):
            child.reap(deadline)

    def on_terminate(self) -> None:
        self.limit = 0
        self.orders = self.orders.to_stop()
        self.kill(COLD_SHUTDOWN)
        while self._children:
            with self._lock:
                self._reap()
            time.sleep(0.01)

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        info.update(
            {
                "processes": [child.pid for child in self._children.values()],
                "max-tasks-per-child": self.options.get("maxtasksperchild") or "N/A",
                "put-guarded-by-semaphore": False,
                "writes": "N/A",
            }
        )
        return info
