"""Threads of one process: for tasks that wait, and where there is no fork.

A thread can not be killed. One whose task is to end is *given up*: what becomes of the task is
recorded at once, another thread takes its place, and whatever the old one still brings is left
out. An exception ends it as soon as it runs Python again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger

from celeriac.exceptions import EngineDamagedError

from . import fence
from . import files
from .child import make_claimant
from .child import Settings
from .claimant import Claimant
from .claimant import Orders
from .door import Door
from .fence import Abandoned
from .pool import Child
from .pool import Pool
from .trouble import tell

logger = get_logger(__name__)

#: How long to look for a moment in which a thread can be interrupted without harm (seconds).
PATIENCE = 1.0
#: How often a thread that was given up is told to end (seconds): a task may catch anything.
INSIST = 1.0
#: A thread that waits for Python's lock asks for it once in an interval, of 5 ms as a rule. It is
#: this times the threads, where they are more than a hundred (seconds): a thousand that asked every
#: 5 ms did little else, and took 22 s of processor time for what takes 2 s with 50 ms.
ASKING = 0.000_05
#: After how long one that goes on is mentioned in the log (seconds).
REMARKABLE = 10.0


class ThreadChild:
    """A thread, as its parent sees it.

    :param given_up: takes the child when it was given up and its thread goes on.
    """

    def __init__(
        self,
        settings: Settings,
        slot: int,
        orders: Orders,
        door: Door | None,
        given_up: Callable[[ThreadChild], None],
    ) -> None:
        self._settings, self._slot, self._orders, self._door = settings, slot, orders, door
        self._given_up = given_up
        self.pid = 0
        self.soft_sent = 0.0
        self._claimant: Claimant | None = None
        #: Whether its loop is over.
        self._is_over = False
        #: Why it was given up, and when.
        self._reason = ""
        self._since = 0.0
        self._insisted = 0.0
        #: The task that is to be interrupted, and since when.
        self._wanted = (0, 0.0)
        self.name = f"celeriac-{slot}"
        self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def _own_pid(self) -> int:
        return threading.get_native_id() & 0xFFFFFFFF

    def _run(self) -> None:
        self._settings.app.set_current()
        try:
            self._attend().loop()
        except Abandoned:
            pass
        except EngineDamagedError as exc:
            tell(logger, "%s", exc)
        finally:
            self._is_over = True

    def _attend(self) -> Claimant:
        self.pid = self._own_pid()
        self._claimant = make_claimant(
            self._settings, self._slot, lambda: self._orders, pid=self.pid, door=self._door
        )
        return self._claimant

    @property
    def alive(self) -> bool:
        """Whether the thread runs, given up or not."""
        return self._thread.is_alive()

    @property
    def claimant(self) -> Claimant:
        """The thread's loop, which is there before any task runs."""
        assert self._claimant is not None
        return self._claimant

    @property
    def rests(self) -> bool:
        """Whether it waits for another thread, which looks for work."""
        return self._claimant is not None and self._claimant.rests

    def tell(self, orders: Orders) -> None:
        self._orders = orders

    def soften(self, tag: int) -> bool:
        return self._may_interrupt(tag) and self.claimant.fence.soften(tag, self._interrupt)

    def end(self, tag: int, signum: int, reason: str) -> None:
        if not self._reason and self.claimant.fence.take(tag):
            self._reason, self._since = reason, time.monotonic()

    def why_dead(self) -> str | None:
        if self._reason:
            self.claimant.completer.close()  # Records what it finished before.
            return self._reason
        # Told to end, or ended by its task: `sys.exit()` ends only a thread.
        return f"thread {self.name} ended" if self._is_over else None

    def close(self) -> None:
        if self._reason and self.insist():
            self._given_up(self)

    def insist(self) -> bool:
        """Have a thread that was given up end; say whether it still runs."""
        now = time.monotonic()
        if self.alive and now - self._insisted > INSIST and self._is_interruptible():
            self._insisted = now
            self._interrupt(Abandoned)
        return self.alive

    def remark(self) -> bool:
        """Say whether it is time to mention a thread that goes on after it was given up."""
        is_time = bool(self._since) and time.monotonic() - self._since > REMARKABLE
        if is_time:
            self._since = 0.0
        return is_time

    def _may_interrupt(self, tag: int) -> bool:
        now = time.monotonic()
        if self._wanted[0] != tag:
            self._wanted = (tag, now)
        if self._is_interruptible():
            return True
        is_long_ago = now - self._wanted[1] > PATIENCE
        return is_long_ago and not fence.is_at_a_lock(self._thread.ident or 0)

    def _is_interruptible(self) -> bool:
        return fence.is_safe(self._thread.ident or 0)

    def _interrupt(self, exc: type[BaseException]) -> None:
        fence.interrupt(self._thread.ident or 0, exc)


class ThreadPool(Pool):
    """Threads that are children."""

    signal_safe = False
    child_class: type[ThreadChild] = ThreadChild
    patience = 600.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._door = Door()
        self._given_up: list[ThreadChild] = []

    def prepare(self, settings: Settings, orders: Orders) -> None:
        self._make_room()
        super().prepare(settings, orders)

    def grow(self, n: int = 1) -> None:
        super().grow(n)
        self._make_room()

    def _make_room(self) -> None:
        """See that as many tasks as there may be get along with each other."""
        files.allow(self.limit)
        if not self.is_green:
            sys.setswitchinterval(max(sys.getswitchinterval(), ASKING * self.limit))

    def start_child(self, slot: int) -> Child:
        return self.child_class(self.ready(), slot, self.orders, self._door, self._given_up.append)

    def process_of(self, child: Child) -> int:
        return os.getpid()

    def rests(self, slot: int) -> bool:
        child = self._children.get(slot)
        return child is not None and bool(child.rests)

    def tell(self) -> None:
        super().tell()
        self._door.call()

    @property
    def goes_on(self) -> bool:
        return any(child.alive for child in self._given_up)

    def tick(self) -> float:
        self._given_up[:] = [child for child in self._given_up if child.insist()]
        for child in self._given_up:
            if child.remark():
                logger.warning(
                    "Thread %s was given up, and goes on: its task does not return to Python. "
                    "It is gone when the worker is restarted; -P prefork can kill it.",
                    child.name,
                )
        return super().tick()

    def on_terminate(self) -> None:
        super().on_terminate()
        self.tell()
        with self._lock:
            self._reap()

    def _get_info(self) -> dict[str, Any]:
        info = super()._get_info()
        info["threads"] = len(self._children)
        return info
