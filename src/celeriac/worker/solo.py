"""The worker's own process and thread: one task at a time, between two looks at its mail.

While a task runs, a thread looks after it: it keeps the time limits, gives back what waits behind
a long task, and sees in the store whether it was revoked with ``terminate``. It interrupts the
task by a signal, which also wakes it out of a system call; where there is none (another thread
than the main one, another system), by an exception that is raised when the task runs Python
again. A task that exceeds its hard time limit has failed at that moment. If it does not end for
all that, the worker goes on waiting for it, and says so: what restarts it, and when, is for its
supervisor to decide.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from celery import signals
from celery.utils.log import get_logger

from celeriac.engines import EngineError

from .board import PARENT
from .child import Settings
from .child import SIG_SOFT_LIMIT
from .claimant import Orders
from .fence import Abandoned
from .fence import is_in_task
from .fence import takes_lock
from .pool import Child
from .pool import LOOK_IDLE
from .pool import Pool
from .redelivery import GRACE_OVER
from .thread import ThreadChild
from .trouble import tell

logger = get_logger(__name__)

#: How long remote control may at worst wait for a worker that has nothing to do (seconds).
LOOK_SOLO = 0.1


class _Itself(ThreadChild):
    """The worker as its own child."""

    #: What the signal is to raise.
    wanted: type[BaseException] | None = None
    #: What came at a moment in which the task took a lock.
    postponed: type[BaseException] | None = None
    #: Whether it got out of a task that was given up.
    through = False

    def _start(self) -> None:
        self._thread = threading.current_thread()
        self._attend()

    @property
    def alive(self) -> bool:
        """Whether it is in a task that was given up."""
        return self.claimant.fence.taken and not self.through

    @property
    def hears_signals(self) -> bool:
        return self._thread is threading.main_thread() and hasattr(signal, "pthread_kill")

    def why_dead(self) -> str | None:
        return super().why_dead() if self._reason else None

    def insist_again(self) -> None:
        """Let :meth:`insist` not wait: this was a bad moment."""
        self._insisted = 0.0

    def resume(self) -> None:
        """Interrupt again what could not be interrupted a moment ago."""
        postponed, self.postponed = self.postponed, None
        if postponed is not None:
            self._interrupt(postponed)

    def take_wanted(self) -> type[BaseException] | None:
        """Return what the signal that just arrived is to raise, unless it comes too late."""
        wanted, self.wanted = self.wanted, None
        is_in_time = self.alive if wanted is Abandoned else self.claimant.soft_deadline
        return wanted if is_in_time else None

    def _is_interruptible(self) -> bool:
        return self.hears_signals or super()._is_interruptible()

    def _interrupt(self, exc: type[BaseException]) -> None:
        if self.hears_signals:
            self.wanted = exc
            signal.pthread_kill(self._thread.ident or 0, SIG_SOFT_LIMIT)
        else:
            super()._interrupt(exc)


class SoloPool(Pool):
    """One child, which is the worker itself."""

    signal_safe = False
    patience = 600.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.limit = 1
        self._itself: _Itself | None = None
        self._ident = threading.get_ident()
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="celeriac-watcher", daemon=True)
        # As Celery's does: instruments begin with it.
        _, hostname = self.options.get("initargs") or (None, None)
        signals.worker_process_init.send(sender=hostname)

    def prepare(self, settings: Settings, orders: Orders) -> None:
        self._ident = threading.get_ident()
        super().prepare(settings, orders)
        self._listen()
        self._watcher.start()

    def start_child(self, slot: int) -> Child:
        self._itself = _Itself(self.ready(), slot, self.orders, None, lambda child: None)
        return self._itself

    def process_of(self, child: Child) -> int:
        return os.getpid()

    def finish(self, timeout: float | None) -> None:
        """Nothing to wait for: whoever calls this has interrupted the task."""

    def tick(self) -> float:
        if self._itself is None or self._itself.claimant.fence.taken:
            with self._lock:
                self._reap()
            return LOOK_SOLO
        claimant = self._itself.claimant
        try:
            # A batch takes a few milliseconds, unless a task takes longer, which solo means.
            if not claimant.step():
                claimant.wait(LOOK_SOLO)
        except Abandoned:
            self._itself.through = True
        return 0.0

    def on_stop(self) -> None:
        if self._itself is not None and self._itself.alive:
            # Called in the middle of a task, which is to end: by a signal that asked for a cold
            # shutdown. What remains is done when the task was interrupted.
            return
        self._end_watch()
        self.orders = self.orders.to_stop()
        itself, self._itself = self._itself, None
        if itself is not None and itself.claimant.fence.taken:
            with self._lock:
                self._reap()  # If the watcher has not come to it.
            return
        self._children.clear()
        if itself is not None:
            itself.tell(self.orders)
            try:
                itself.claimant.loop()
                self.on_death(0, os.getpid(), "the task ended the worker", None)
            except EngineError as exc:
                tell(logger, "%s", exc)  # The next worker sees to what is left.

    def on_terminate(self) -> None:
        self._end_watch()

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "processes": [os.getpid()]}

    # The thread that looks after the task

    def _fill(self) -> None:
        if threading.get_ident() == self._ident:
            super()._fill()

    def _watch(self) -> None:
        settings = self.ready()
        while not self._stopped.is_set():
            nap = super().tick()
            self._end_in_time()
            self._insist()
            if nap < LOOK_IDLE:
                self.on_watch()
                self._stopped.wait(nap)
            else:
                self._sleep(settings, nap)

    @staticmethod
    def _sleep(settings: Settings, nap: float) -> None:
        try:
            settings.engine.wait_for_messages((), nap, place=(settings.worker_id, PARENT))
        except EngineError as exc:
            tell(logger, "%s", exc)
            time.sleep(nap)

    def _end_in_time(self) -> None:
        """Hand the task back when the grace period is over, which the worker waits for in it."""
        if self.shutdown.has_begun and self.is_busy():
            self.shutdown.announce(1)
            if self.shutdown.is_over and not self.goes_on:
                self.end_running(GRACE_OVER)

    @property
    def goes_on(self) -> bool:
        return self._itself is not None and self._itself.alive

    def _insist(self) -> None:
        itself = self._itself
        if itself is None:
            return
        itself.resume()
        if itself.alive and itself.insist() and itself.remark():
            logger.error(
                "The worker waits for a task that was given up, and does not return to Python. "
                "It runs no other until then; -P prefork can kill such a task."
            )

    def _end_watch(self) -> None:
        self._stopped.set()
        if self._watcher.is_alive() and self.settings is not None:
            self.settings.engine.wake(self.settings.worker_id, PARENT)
            self._watcher.join()

    def _listen(self) -> None:
        """Let the signal interrupt the task; if it is none of ours, it means what it meant."""
        if self._itself is None or not self._itself.hears_signals:
            return
        previous = signal.getsignal(SIG_SOFT_LIMIT)

        def interrupt(signum: int, frame: Any) -> None:
            itself = self._itself
            if itself is None or itself.wanted is None:
                if callable(previous):
                    previous(signum, frame)
                return
            wanted = itself.take_wanted()
            if wanted is Abandoned and not is_in_task(frame):
                itself.insist_again()
            elif wanted is not None and takes_lock(frame):
                itself.postponed = wanted
            elif wanted is not None:
                raise wanted

        signal.signal(SIG_SOFT_LIMIT, interrupt)
