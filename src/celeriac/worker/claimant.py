"""The loop of one child: claim, run, complete.

A child asks nobody. It claims a batch by itself, runs it in order, and records the outcomes
together; its parent tells it only when something changes: what to consume, how fast, or to
stop. The same loop serves a forked child, a thread, and the worker's own process (solo).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import NoReturn

from celery.utils.log import get_logger

from celeriac import greenlets
from celeriac.engines import Engine
from celeriac.engines import EngineError
from celeriac.engines.base import Delivery
from celeriac.exceptions import EngineDamagedError

from .board import Board
from .board import PARENT
from .completion import Completer
from .completion import LIMIT
from .door import Door
from .fence import Abandoned
from .fence import Fence
from .memory import Growth
from .request import Requests
from .trouble import tell

logger = get_logger(__name__)

#: How long a batch should take (seconds): long enough to share its commits, short enough that
#: nobody waits behind it for what another child could start.
BATCH = 0.005
#: How long to wait before asking again a database that refused (seconds).
RETRY = 0.5
#: How long a child that is to end goes on trying to record its outcomes (seconds).
GRACE = 30.0
#: How old orders may be when a task of a batch starts (seconds). Reading them is a system call.
AGE = 0.001
#: After how long a child that waits for its turn to wait looks by itself (seconds): the floor under
#: a turn that was lost.
TURN = 60.0


@dataclass(frozen=True)
class Orders:
    """What the parent tells a child. Each replaces the one before."""

    queues: tuple[str, ...] = ()
    #: Seconds between two starts of a task, over all workers.
    rates: Mapping[str, float] = field(default_factory=dict)
    #: Names of tasks with new time limits: soft, hard.
    limits: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    events: bool = False
    stop: bool = False

    def to_stop(self) -> Orders:
        """Return these, with that to stop."""
        return replace(self, stop=True)


class Pace:
    """How many deliveries to claim at once, by the run times seen.

    Before anything is known it is one, and it at most doubles from one claim to the next: a
    slow task that follows many quick ones finds little behind it.
    """

    def __init__(self) -> None:
        self.limit = 1
        self._mean = 0.0

    def saw(self, count: int, seconds: float) -> None:
        """Take in that ``count`` tasks took ``seconds``."""
        each = seconds / count
        self._mean = each if not self._mean else 0.7 * self._mean + 0.3 * each
        fits = int(BATCH / max(self._mean, BATCH / LIMIT))
        self.limit = max(1, min(fits, 2 * self.limit, LIMIT))


class Stopwatch:
    """Times what its thread does, without what that waited for a processor.

    By the clock alone a batch that other processes interrupt seems long, on a busy machine all
    batches come to be of one, and each task pays for two commits of its own.
    """

    def __init__(self) -> None:
        self._file: int | None = None

    def _open(self) -> int:
        if greenlets.are_threads():
            return -1  # It would be that of all of them.
        try:
            return os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # Only Linux tells, and not every one.
            return -1

    def read(self) -> float:
        """Return what stands on it (seconds)."""
        if self._file is None:
            self._file = self._open()  # By the thread that it is for.
        now = time.monotonic()
        if self._file < 0:
            return now
        # The time on the processor, that of waiting for one, and how often it had one.
        return now - int(os.pread(self._file, 64, 0).split()[1]) / 1e9

    def __del__(self) -> None:
        if self._file is not None and self._file >= 0:
            os.close(self._file)


class Claimant:
    """One child's loop.

    :param orders: returns the parent's newest orders; asked before each claim.
    :param door: where those who share it wait for their turn to wait.
    :param max_tasks: end after so many tasks.
    :param growth: end after the batch that makes it too much.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Requests,
        completer: Completer,
        board: Board,
        place: tuple[str, int],
        tasks: frozenset[str],
        orders: Callable[[], Orders],
        *,
        door: Door | None = None,
        max_tasks: int | None = None,
        growth: Growth | None = None,
    ) -> None:
        self._engine = engine
        self._requests = requests
        self.completer = completer
        self.fence = Fence()
        self._board = board
        self._worker_id, self._slot = place
        self._tasks = tasks
        self._orders = orders
        self._door = door
        #: Whether it waits for its turn to wait, and so gives no signs of life.
        self.rests = False
        self._max_tasks = max_tasks
        self._growth = growth
        self._pace = Pace()
        self._stopwatch = Stopwatch()
        self._done = 0
        #: What is left of the batch: claimed and not started.
        self._rest: deque[Delivery] = deque()
        #: What was claimed at the door.
        self._ahead: list[Delivery] = []
        #: Whether there should be something to claim, and whether that was wrong the last time.
        self._expects = self._was_misled = False
        #: When the orders were last looked at within a batch (monotonic seconds).
        self._looked = 0.0
        #: When the running task's soft time limit ends (monotonic seconds); 0 for never.
        self.soft_deadline = 0.0
        self._soft = 0.0

    @property
    def is_overdue(self) -> bool:
        """Whether the running task is to be told so: for its soft time limit, or on request."""
        is_over = 0 < self.soft_deadline <= time.monotonic()
        return is_over or self._board.is_softened(self._slot)

    def loop(self) -> None:
        """Work until told to stop, or until the child's own limits are reached."""
        try:
            while not self._is_stopping() and self._has_more():
                if not self.step():
                    self.wait(1.0)
        except EngineDamagedError:
            self._tell_waiting()
            raise
        self._wind_up()

    def step(self) -> bool:
        """Claim and run one batch; say whether there was anything to run."""
        self._board.hold(self._slot, 0)  # A sign of life, for the parent's watchdog.
        try:
            self._give_back()
            self.completer.flush()
            deliveries, self._ahead = self._ahead or self._claim(), []
            if deliveries:
                self._run(deliveries)
            return bool(deliveries)
        except EngineError as exc:
            self._pause(exc)
            return False

    def wait(self, timeout: float) -> None:
        """Sleep until there may be something to claim, or something to obey."""
        # What could not be given back or recorded is tried again first.
        if self._is_stopping() or self._rest or self.completer.waiting():
            return
        if self._door is None:
            self._sleep(timeout)
        elif self._comes_to(self._door):
            try:
                # Often there is more: many were sent together, and who woke took one.
                self._claim_ahead()
                if not self._ahead and self._sleep(timeout):
                    self._claim_ahead()
            finally:
                self._door.leave()

    def _comes_to(self, door: Door) -> bool:
        self.rests = True
        try:
            return door.enter(TURN)
        finally:
            self.rests = False

    def _sleep(self, timeout: float) -> bool:
        orders = self._orders()
        if self._is_stopping():
            return False
        try:
            self._expects = self._engine.wait_for_messages(
                orders.queues,
                timeout,
                tasks=self._tasks,
                rates=orders.rates,
                place=(self._worker_id, self._slot),
            )
            return self._expects
        except EngineError as exc:
            self._pause(exc)
            return False

    def _claim_ahead(self) -> None:
        if not self._is_stopping():
            try:
                self._ahead = self._claim()
            except EngineError as exc:
                self._pause(exc)

    def _claim(self) -> list[Delivery]:
        orders = self._orders()
        limit = self._pace.limit
        if self._max_tasks is not None:
            limit = min(limit, self._max_tasks - self._done)
        deliveries = self._engine.claim(
            orders.queues,
            limit,
            worker=self._worker_id,
            slot=self._slot,
            tasks=self._tasks,
            rates=orders.rates,
            look=not self._expects or self._was_misled,
        )
        self._was_misled = not deliveries and (self._expects or self._was_misled)
        # A batch that is full is seldom the last one.
        self._expects = len(deliveries) == limit
        return deliveries

    def _run(self, deliveries: list[Delivery]) -> None:
        self._rest = deque(deliveries)
        revocations = self._engine.revocations([delivery.task_id for delivery in deliveries])
        self._requests.heed(revocations.stamps)
        began = self._stopwatch.read()
        self._board.hold(self._slot, len(deliveries))
        if self._board.is_to_wake(len(deliveries)):
            # To keep time limits and, if the first takes long, to hand the others out.
            self._engine.wake(self._worker_id, PARENT)
        # That the worker ends, the board says at each start.
        while self._rest and self._start(self._rest[0]):
            self._run_one(self._rest.popleft(), revocations.task_ids)
        self._board.hold(self._slot, 0)
        count = len(deliveries) - len(self._rest)
        self._done += count
        if count:
            self._pace.saw(count, self._stopwatch.read() - began)
        self._give_back()
        self.completer.flush()

    def _give_back(self) -> None:
        """Release what is left of a batch; kept until that succeeds."""
        if self._rest:
            self._engine.release(list(self._rest))
            self._rest.clear()

    def _start(self, delivery: Delivery) -> bool:
        """Note on the board that the delivery starts; say whether it may."""
        began = time.monotonic()
        if began - self._looked > AGE:
            self._looked = began
            if self._orders().stop:
                return False
        limits = self._requests.prepare(delivery)
        soft = self._soft = began + limits.soft if limits.soft else 0.0
        hard = began + limits.hard if limits.hard else 0.0
        return self._board.begin(self._slot, delivery.tag, began, soft, hard)

    def _run_one(self, delivery: Delivery, revoked: Collection[str]) -> None:
        self.completer.stand_by()
        self.fence.enter(delivery.tag)
        self.soft_deadline = self._soft
        try:
            outcome = self._requests.run(delivery, delivery.task_id in revoked)
        except BaseException as exc:
            self._end(exc)
        finally:
            self.soft_deadline = 0.0
        self.fence.leave(delivery.tag)
        if self._growth is not None:
            self._growth.saw(delivery)
        self._board.end(self._slot, delivery.task)
        self.completer.add(outcome)

    def _end(self, exc: BaseException) -> NoReturn:
        """The task ends the process: record what others did, and let it."""
        if self.fence.taken:
            raise Abandoned from exc
        with suppress(EngineError):
            self.completer.flush()
        raise exc

    def _wind_up(self) -> None:
        """Give back and record what is left, as long as that may take on a full disk."""
        deadline = time.monotonic() + GRACE
        self._rest.extend(self._ahead)
        while True:
            try:
                self._give_back()
                self.completer.close()
                return
            except EngineError as exc:
                if time.monotonic() > deadline or isinstance(exc, EngineDamagedError):
                    self._tell_waiting()
                    raise
                self._pause(exc)

    def _tell_waiting(self) -> None:
        lost = ", ".join(self.completer.waiting())
        if lost:
            logger.critical("These tasks ended, and count as lost with the child: %s", lost)

    def _is_stopping(self) -> bool:
        # The board knows first: a signal to the parent is written there at once.
        return self._orders().stop or self._board.is_stopping()

    def _has_more(self) -> bool:
        if self._growth is not None and self._growth.is_too_much:
            logger.warning("The child ends, and a new one takes its place: %s", self._growth)
            return False
        return self._max_tasks is None or self._done < self._max_tasks

    def _pause(self, exc: EngineError) -> None:
        if isinstance(exc, EngineDamagedError):
            raise exc
        tell(logger, f"%s Trying again every {RETRY:g} s.", exc)
        threading.Event().wait(RETRY)
