"""What the pools have in common: children that claim, run and complete by themselves.

Celery's worker makes a pool and a consumer. With a stock pool the consumer hands tasks over one
by one; with one of these (:mod:`.prefork`, :mod:`.thread`, :mod:`.gevent`, :mod:`.solo`) it hands
over nothing. A pool here starts its children, tells them their orders, looks at the board what
they do, keeps their time limits, and says whose deliveries are to be taken back when one dies.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import Protocol

from celery.concurrency.base import BasePool
from celery.utils.log import get_logger

from celeriac.engines import EngineError

from .board import Activity
from .board import PARENT
from .board import SLOTS
from .board import Watch
from .child import Settings
from .child import SIG_SOFT_LIMIT
from .claimant import Orders
from .claimant import RETRY
from .memory import Memory
from .redelivery import COLD_SHUTDOWN
from .redelivery import GRACE_OVER
from .redelivery import TERMINATED
from .redelivery import TIME_LIMIT
from .shutdown import Shutdown
from .stuck import STUCK
from .trouble import tell

logger = get_logger(__name__)

#: Seconds between two looks at the board while something runs, and what each child adds to it.
LOOK = 0.02
LOOK_EACH = 0.0002
#: The same while nothing runs. A child that then claims several at once wakes its parent.
LOOK_IDLE = 0.25
#: The same when nothing has run for :data:`REST_AFTER` seconds. A child that claims then wakes its
#: parent in any case.
LOOK_REST = 0.5
REST_AFTER = 5.0
#: Time that the store buffers of other processors surely need to drain (seconds); see
#: :meth:`Board.begin`.
SETTLE = 0.001
#: How long what is ended may take to be dealt with when the worker ends (seconds).
ENDING = 0.4


class Child(Protocol):
    """One child of a pool, as its parent sees it."""

    #: What names it: to remote control as ``worker_pid``, and in the log.
    pid: int
    #: The soft deadline that it was told of last (monotonic seconds).
    soft_sent: float

    def tell(self, orders: Orders) -> None:
        """Bring orders to it."""

    def soften(self, tag: int) -> bool:
        """Raise a soft time limit in its task; say whether that was done, or is to be repeated."""

    def end(self, tag: int, signum: int, reason: str) -> None:
        """End it and the task that it runs; :meth:`why_dead` then gives the reason."""

    def why_dead(self) -> str | None:
        """Return why it is dead, or ``None`` while it lives."""

    def close(self) -> None:
        """Forget it. Until then what names it stays its own."""


class Job(int):
    """A child's number, as Celery's request keeps it, with the delivery that it runs."""

    tag: int

    @classmethod
    def of(cls, activity: Activity) -> Job:
        """Return the number of the child that was seen doing this."""
        job = cls(activity.pid)
        job.tag = activity.started[-1]
        return job


class Pool(BasePool):
    """What the pools have in common.

    The consumer calls :meth:`prepare` before the pool's children can claim anything, because
    only the consumer knows the queues; Celery starts pools first.
    """

    #: Called with slot, process id, reason and memory when a child died.
    on_death: Callable[[int, int, str, Memory | None], None]
    #: Called often while a task keeps the consumer from looking after it.
    on_watch: Callable[[], None]

    #: The end of the worker, which the consumer brings about.
    shutdown: Shutdown

    #: How many children there are to be.
    limit: int
    options: dict[str, Any]
    #: Whether children end and are replaced by and by: threads would not give memory back.
    recycles = False
    #: How long an ended process that is no child of the pool is left alone (seconds), where the
    #: worker is process 1. Tasks that run in this process may yet ask how it ended.
    patience = 2.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: How many children there can be.
        self.most = max(SLOTS, self.limit or 0)
        self.settings: Settings | None = None
        self.orders = Orders()
        self._children: dict[int, Any] = {}
        #: Slots whose children were told to end.
        self._leaving: set[int] = set()
        # The autoscaler is a thread of its own.
        self._lock = threading.RLock()
        #: Tags of deliveries, by their slots, in which the soft time limit is to be raised.
        self._softening: dict[int, int] = {}
        #: When something last ran, as far as was seen (monotonic seconds), and how much had run.
        self._busy_at, self._done = time.monotonic(), 0
        #: When to deal with the dead again, after that failed (monotonic seconds).
        self._reap_at = 0.0

    # What the consumer calls

    def prepare(self, settings: Settings, orders: Orders) -> None:
        """Start the children."""
        self.settings, self.orders = settings, orders
        with self._lock:
            self._fill()

    def command(self, orders: Orders) -> None:
        """Tell all children their orders."""
        self.orders = orders
        self.tell()

    def tick(self) -> float:
        """Look after the children; return in how many seconds to look again."""
        with self._lock:
            self._reap()
            if self._look():
                self.ready().board.watch(Watch.OFTEN)
                return LOOK + LOOK_EACH * len(self._children)
        # Said before the look that it depends on: a child that begins after it wakes us.
        rests = time.monotonic() - self._busy_at > REST_AFTER
        self.ready().board.watch(Watch.RESTING if rests else Watch.SELDOM)
        if not self.is_busy():
            return LOOK_REST if rests else LOOK_IDLE
        self.ready().board.watch(Watch.OFTEN)
        return LOOK

    @property
    def goes_on(self) -> bool:
        """Whether a task that was given up goes on."""
        return False

    def count_running(self) -> int:
        """Return how many tasks run."""
        return sum(1 for _ in self.running())

    def is_busy(self) -> bool:
        """Say whether a task runs."""
        return any(True for _ in self.running())

    def is_stopping(self) -> bool:
        """Say whether the children are to end, all of them."""
        return self.orders.stop or self.shutdown.is_halted

    def finish(self, timeout: float | None) -> None:
        """Start nothing more, and wait for what runs, at most ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self.command(self.orders.to_stop())
        while self.slots() and (deadline is None or time.monotonic() < deadline):
            self.tick()
            time.sleep(0.01)

    def kill(self, reason: str) -> None:
        """End the children that can be ended, whatever they do."""

    def end_running(self, reason: str) -> None:
        """End what runs, where that is possible without ending the worker itself."""
        for slot, activity in self.running():
            # For info: what becomes of it is told with its name (:mod:`.redelivery`).
            logger.info("Ending the task of process %s: %s", activity.pid, reason)
            self._end(slot, activity, signal.SIGKILL, reason)

    def has_entered(self, slot: int, activity: Activity) -> bool:
        """Say whether a slot's child has begun to look for work."""
        child = self._children.get(slot)
        return child is not None and child.pid == activity.pid

    def rests(self, slot: int) -> bool:
        """Say whether a slot's child waits for another child, which looks for work."""
        return False

    def replace(self, slot: int, reason: str) -> bool:
        """Have a child that hangs end, and another take its place; say whether that can be done.

        Asked again when that was of no use.
        """
        return False

    def abandon(self) -> None:
        """End the children of a worker whose loop hangs, with all locks that it may hold.

        What runs may end within the grace period.
        """
        self.orders = self.orders.to_stop()
        for child in list(self._children.values()):
            child.tell(self.orders)
        grace = self.shutdown.grace
        deadline = time.monotonic() + (math.inf if grace is None else grace)
        while self.is_busy() and time.monotonic() < deadline:
            time.sleep(LOOK)

    def activities(self) -> Iterator[tuple[int, Activity]]:
        """Yield slot and activity of each child."""
        if self.settings is not None:
            for slot in self.slots():
                yield slot, self.settings.board.read(slot)

    def running(self) -> Iterator[tuple[int, Activity]]:
        """Yield slot and activity of each child that runs a task."""
        if self.settings is not None:
            for slot in self.settings.board.running():
                activity = self.settings.board.read(slot)
                if activity.running and slot in self._children:
                    yield slot, activity

    def slots(self) -> list[int]:
        """Return the slots that have a child."""
        return sorted(self._children)

    def ready(self) -> Settings:
        """Return what :meth:`prepare` was given."""
        assert self.settings is not None, "the consumer prepares the pool"
        return self.settings

    # What Celery calls

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the task that a child runs, as ``revoke(terminate=True)`` asks.

        Celery's :meth:`~celery.worker.request.Request.terminate` calls it, with the number that
        the board gives for the child (:attr:`Activity.pid`); the consumer puts that into
        ``request.worker_pid``. It is a process id in prefork, the system's id of a thread in
        threads and solo, and a number of our own in gevent, so it names one child in each pool.
        The signal means something to processes alone, but for that of the soft time limit, which
        is raised in every pool. The message is acknowledged, as the request announces the
        revocation; a thread whose task does not end is replaced.
        """
        signum = signal or 15
        for slot, activity in self.running():
            if activity.pid != pid:
                continue
            if isinstance(pid, Job) and activity.started[-1:] != (pid.tag,):
                continue  # It ended meanwhile, and the next one is not meant.
            if signum == SIG_SOFT_LIMIT:
                self._softening[slot] = activity.started[-1]
                self.ready().board.soften(slot, activity.started[-1])
            else:
                self._end(slot, activity, signum, f"{TERMINATED}{signum}")

    def grow(self, n: int = 1) -> None:
        """Have ``n`` children more; they are started by the next :meth:`tick`."""
        with self._lock:
            if self.limit + n > self.most:
                raise ValueError(
                    f"This worker can have at most {self.most} children. Start another one, or "
                    f"start it anew with -c {self.limit + n}."
                )
            self.limit += n

    def shrink(self, n: int = 1) -> None:
        """Let ``n`` children finish and end; idle ones first."""
        with self._lock:
            self.limit = max(0, self.limit - n)
            busy = {slot for slot, _ in self.running()}
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

    @property
    def num_processes(self) -> int:
        """How many tasks can run at once; Celery's autoscaler asks."""
        return self.limit

    def on_close(self) -> None:
        """Begin nothing more: the worker was told to end."""
        if self.settings is not None:
            self.shutdown.begin()
            self.shutdown.announce(self.count_running())

    def on_stop(self) -> None:
        """Let children finish what they run, in the grace period; hand back the rest."""
        if self.settings is None:
            return
        self.limit = 0
        self.finish(self.shutdown.left())
        if self._children:
            self.end_running(GRACE_OVER)
            self.finish(ENDING)
        if self._children:
            self.kill(GRACE_OVER)
            self.finish(ENDING)

    def on_terminate(self) -> None:
        """End all children now."""
        self.limit = 0
        self.orders = self.orders.to_stop()
        self.end_running(COLD_SHUTDOWN)

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        limits = (self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0)
        info.update({"max-concurrency": self.limit, "timeouts": limits})
        return info

    # What the pools differ in

    def start_child(self, slot: int) -> Child:
        """Start a child in a slot."""
        raise NotImplementedError

    def process_of(self, child: Child) -> int:
        """Return the process that a child runs in, for the errors that users see."""
        return child.pid

    def memory_of(self, slot: int, child: Any) -> Memory | None:
        """Return what a dead child had in memory, if it had one of its own."""
        return None

    # Looking after children

    def tell(self) -> None:
        """Bring :attr:`orders` to the children."""
        settings = self.ready()
        with self._lock:
            for slot, child in self._children.items():
                child.tell(self.orders_of(slot))
                settings.engine.wake(settings.worker_id, slot)

    def orders_of(self, slot: int) -> Orders:
        """Return what the child of a slot is to do."""
        return self.orders.to_stop() if slot in self._leaving else self.orders

    def _fill(self) -> None:
        while len(self._children) - len(self._leaving) < self.limit and not self.is_stopping():
            slot = next(slot for slot in range(PARENT) if slot not in self._children)
            if slot >= self.most:
                return  # All are taken until those that leave are gone.
            self._children[slot] = self.start_child(slot)

    def _reap(self) -> None:
        """Deal with the dead, and replace them."""
        if time.monotonic() < self._reap_at:
            return
        for slot, child in list(self._children.items()):
            try:
                reason = child.why_dead()
                if reason is None:
                    continue
                self.on_death(slot, self.process_of(child), reason, self.memory_of(slot, child))
            except EngineError as exc:
                # Until that succeeds, the dead child keeps its slot, and what it holds; or
                # the next worker sees to it.
                tell(logger, "The worker could not deal with a death: %s", exc)
                if not self.orders.stop:
                    self._reap_at = time.monotonic() + RETRY
                    continue
            del self._children[slot]
            self._leaving.discard(slot)
            child.close()
        self._fill()

    def _look(self) -> bool:
        """Look at all children; say whether any runs a task."""
        now = time.monotonic()
        running = list(self.running())
        for slot, activity in running:
            self._look_at(slot, activity, now)
        done = self.ready().board.done()
        if running or done != self._done:
            self._busy_at, self._done = now, done
        return bool(running)

    def _look_at(self, slot: int, activity: Activity, now: float) -> None:
        """Keep time limits, and hand out what waits behind a long task."""
        if activity.soft_deadline or activity.hard_deadline:
            self._enforce_limits(slot, activity, now)
        if slot in self._softening:
            self._soften(slot, activity)
        if activity.held > 1 and not activity.halted:
            if self.is_stopping() or self._takes_long(slot, activity, now):
                self._release_rest(slot, activity.batch)

    def _takes_long(self, slot: int, activity: Activity, now: float) -> bool:
        """Say whether nothing is to wait behind the task of a slot."""
        return now - activity.began > STUCK

    def _enforce_limits(self, slot: int, activity: Activity, now: float) -> None:
        child = self._children[slot]
        if activity.hard_deadline and now > activity.hard_deadline:
            seconds = activity.hard_deadline - activity.began
            self._end(slot, activity, signal.SIGKILL, f"{TIME_LIMIT}{seconds:g}")
        elif activity.soft_deadline and now > activity.soft_deadline != child.soft_sent:
            if not activity.started:
                return
            tag = activity.started[-1]
            name = self._name(slot, tag)  # Before the task can end because of it.
            if child.soften(tag):
                child.soft_sent = activity.soft_deadline
                seconds = activity.soft_deadline - activity.began
                logger.warning("Soft time limit (%gs) exceeded for %s", seconds, name)

    def _name(self, slot: int, tag: int) -> str:
        """Return the name and the id of a task that a slot holds, for the log."""
        settings = self.ready()
        try:
            held = settings.engine.lost(settings.worker_id, slot)
        except EngineError as exc:
            tell(logger, "What a child holds could not be read: %s", exc)
            held = []
        names = [f"{d.task}[{d.task_id}]" for d, *_ in held if d.tag == tag]
        return names[0] if names else "a task"

    def _soften(self, slot: int, activity: Activity) -> None:
        tag = self._softening[slot]
        if activity.started[-1:] != (tag,) or self._children[slot].soften(tag):
            del self._softening[slot]

    def _end(self, slot: int, activity: Activity, signum: int, reason: str) -> None:
        child = self._children.get(slot)
        if child is not None and activity.started:
            child.end(activity.started[-1], signum, reason)

    def _release_rest(self, slot: int, batch: int) -> None:
        """Give back what waits behind a task that takes long."""
        settings = self.ready()
        try:
            held = settings.engine.lost(settings.worker_id, slot)
            settings.board.halt(slot, batch)
            time.sleep(SETTLE)
            activity = settings.board.read(slot)
            if activity.batch != batch:
                return  # The child went on meanwhile, and may have started what is in our list.
            rest = [lost.delivery for lost in held if lost.delivery.tag not in activity.started]
            if rest:
                settings.engine.release(rest)
        except EngineError as exc:
            tell(logger, "What waits behind a long task could not be handed out: %s", exc)
