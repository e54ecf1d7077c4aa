"""What the pools have in common: children that claim, run and complete by themselves.

Celery's worker makes a pool and a consumer. With a stock pool the consumer hands tasks over one
by one; with one of these (:mod:`.prefork`, :mod:`.thread`, :mod:`.solo`) it hands over nothing.
A pool here starts its children, tells them their orders, looks at the board what they do, and
says whose deliveries are to be taken back when one dies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from celery.concurrency.base import BasePool

from .board import Activity
from .board import SLOTS
from .child import Settings
from .claimant import Orders

#: A batch whose current task runs longer than this is handed to others (seconds).
STUCK = 0.02
#: Seconds between two looks at the board while something runs.
LOOK = 0.02
#: The same while nothing runs. A child that then claims several at once wakes its parent.
LOOK_IDLE = 0.25
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
    #: Whether children end and are replaced by and by: threads would not give memory back.
    recycles = False

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
        self.release_stuck()
        watch = self.ready().board.watch
        # Said before the look that it depends on: a child that begins after it wakes us.
        watch(False)
        if not self.is_busy():
            return LOOK_IDLE
        watch(True)
        return LOOK

    def is_busy(self) -> bool:
        """Say whether a task runs."""
        return any(activity.running for _, activity in self.activities())

    def finish(self, timeout: float) -> None:
        """Start nothing more, and wait for what runs, at most ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        self.command(stopping(self.orders))
        while self.slots() and time.monotonic() < deadline:
            self.tick()
            time.sleep(0.01)

    def end_running(self, reason: str) -> None:
        """End what runs, where that is possible without ending the worker itself."""

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

    @property
    def num_processes(self) -> int:
        """How many tasks can run at once; Celery's autoscaler asks."""
        return self.limit

    def release_stuck(self) -> None:
        """Give back what waits behind a task that takes long."""
        now = time.monotonic()
        for slot, activity in self.activities():
            waiting = activity.held > 1 and not activity.halted
            if activity.running and waiting and now - activity.began > STUCK:
                self._release(slot, activity.batch)

    def _release(self, slot: int, batch: int) -> None:
        settings = self.ready()
        held = settings.engine.lost(settings.worker_id, slot)
        settings.board.halt(slot, batch)
        time.sleep(SETTLE)
        activity = settings.board.read(slot)
        if activity.batch != batch:
            return  # The child went on meanwhile, and may have started what is in our list.
        rest = [lost.delivery for lost in held if lost.delivery.tag not in activity.started]
        if rest:
            settings.engine.release(rest)

    def ready(self) -> Settings:
        """Return what :meth:`prepare` was given."""
        assert self.settings is not None, "the consumer prepares the pool"
        return self.settings

    def free_slot(self) -> int:
        """Return a slot without a child."""
        taken = set(self.slots())
        for slot in range(SLOTS):
            if slot not in taken:
                return slot
        raise ValueError(f"A worker can have at most {SLOTS} children; start another worker.")


def stopping(orders: Orders) -> Orders:
    """Return the orders, with that to stop."""
    return replace(orders, stop=True)
