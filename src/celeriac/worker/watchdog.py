"""The watchdog: a thread that notices when the rest of the worker does not go on.

In comes what gives signs of life: the rounds of the consumer's loop, and what children write on
the board (:mod:`.board`). Out go the worker's heartbeat, its health as :mod:`.probe` tells it, and
what is done about a worker that hangs: a child is replaced, a whole worker begins anew
(:mod:`.restart`).

=======================================  ======================================================
what hangs                               how it shows
=======================================  ======================================================
the parent's loop                        no round for :data:`LIMIT` looks
a child between two tasks                it looked for no work in :data:`LIMIT` looks
all of it, without any of them hanging   work is due and children are free, for :data:`LIMIT`
                                         looks, and nothing is claimed
=======================================  ======================================================

A task that takes long does not hang: it is busy, and its time limit is its user's to choose. Nor
does a worker hang whose queue file is locked or has no room. Looks are counted, not seconds: a
process that was stopped, or a laptop that slept, was not looked at meanwhile.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from types import FrameType
from typing import Any
from typing import NamedTuple

from celery.utils.log import get_logger

from celeriac.config import own_setting
from celeriac.engines import EngineError

from .board import Activity
from .native import original
from .native import start_thread
from .probe import Probe
from .restart import Restart
from .trouble import tell

logger = get_logger(__name__)

#: Seconds between two looks.
TICK = 1.0
#: After so many looks without a sign of life something hangs.
LIMIT = 20
#: The same for what has not begun yet: a receiver of ``worker_process_init`` may load a model.
#: Celery's ``worker_proc_alive_timeout``, in seconds, may ask for more.
START_LIMIT = 120
#: Looks between two heartbeats in the database.
HEARTBEAT = 5
#: An answer of the queue file that takes longer is waited for, as the probe says (seconds).
SLOW = 2.0


class Health(NamedTuple):
    """How a worker is, in the words of the probe."""

    #: ``starting``, ``idle``, ``busy``, ``stopping`` or ``wedged``.
    status: str
    #: How many of its children run a task.
    running: int
    #: Why it is wedged, or what it waits for.
    reason: str = ""


class Stillness:
    """For how many looks something gave no sign of life."""

    def __init__(self) -> None:
        self._sign: object = None
        self._looks = 0

    def look(self, sign: object) -> int:
        """Take in what is seen now; return how often the same was seen before."""
        self._looks = self._looks + 1 if sign == self._sign else 0
        self._sign = sign
        return self._looks

    def forget(self) -> None:
        """Begin to count anew."""
        self._looks = 0


class Watchdog:
    """The watchdog of one worker.

    :param consumer: the worker's :class:`~.consumer.Consumer`.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._restart = Restart(consumer)
        self._loop, self._claims = Stillness(), Stillness()
        self._children: dict[int, Stillness] = {}
        self._beats = 0
        #: Why the queue file refused the last heartbeat.
        self._refused = ""
        #: Since when an answer of the queue file is waited for (monotonic); 0 for not at all.
        self._asking = 0.0
        self._wedged = ""
        self._status, self._since = "starting", time.time()
        self._stopped = False
        address = own_setting(consumer.app.conf, "worker_health_address")
        self._probe = None if address is None else Probe(address, self.describe)

    def start(self) -> None:
        """Begin to look. The caller's thread is the one whose rounds are counted."""
        self._ident = original("_thread", "get_ident")()
        start_thread(self._run, "celeriac-watchdog")
        if self._probe is not None:
            self._probe.start()

    def stop(self) -> None:
        """Look no more; the worker is about to be known no more."""
        self._stopped = True
        if self._probe is not None:
            self._probe.stop()

    # What others ask

    def health(self) -> Health:
        """Say how the worker is, without asking the queue file."""
        running = self._consumer.pool.count_running()
        if self._wedged:
            return Health("wedged", running, self._wedged)
        waits = time.monotonic() - self._asking if self._asking else 0.0
        reason = f"the queue file gave no answer for {waits:.0f} s" if waits > SLOW else ""
        return Health(self._name_status(running), running, self._refused or reason)

    def describe(self) -> dict[str, Any]:
        """Say how the worker is, for the probe."""
        health, consumer = self.health(), self._consumer
        told = {
            "status": health.status,
            "worker": consumer.hostname,
            "pid": os.getpid(),
            "running": health.running,
            "concurrency": consumer.pool.limit or 1,
            "queues": list(consumer.pool.orders.queues),
            "since": round(self._since if health.status == self._status else time.time(), 3),
        }
        return {**told, "reason": health.reason} if health.reason else told

    def _name_status(self, running: int) -> str:
        if self._consumer.pool.is_stopping():
            return "stopping"
        if not self._consumer.rounds:
            return "starting"
        return "busy" if running else "idle"

    # The thread

    def _run(self) -> None:
        sleep: Callable[[float], None] = original("time", "sleep")
        while not self._stopped:
            sleep(TICK)
            try:
                self.look()
            except Exception:
                logger.exception("The watchdog goes on after an error of its own")

    def look(self) -> None:
        """Look once at all that should go on."""
        status = self.health().status
        if status != self._status:
            self._status, self._since = status, time.time()
        still = self._loop.look(self._consumer.rounds)
        is_excused = self._consumer.pool.is_stopping() or self._runs_task()
        if is_excused:
            self._loop.forget()
        if self._beats % HEARTBEAT == 0 and (is_excused or still < HEARTBEAT):
            self._beat()
        self._beats += 1
        if is_excused or self._refused:
            self._forget()
        elif not self._wedged or not still:
            self._judge(still)

    def _judge(self, still: int) -> None:
        self._wedged = ""
        limit = LIMIT if self._consumer.rounds else self._start_limit
        if still == limit:
            # It may be that the loop waits for the queue file, which this then does as well.
            self._beat()
        elif still > limit:
            self._begin_anew(f"its loop made no round for {_seconds(still)}")
        elif not still:
            self._look_at_children()

    def _beat(self) -> None:
        """Tell the others that the worker lives, and learn whether the queue file answers."""
        self._asking = time.monotonic()
        try:
            self._consumer.engine.heartbeat(self._consumer.id)
            self._refused = ""
        except EngineError as exc:
            self._refused = str(exc)
            tell(logger, "%s", exc)
        finally:
            self._asking = 0.0

    def _forget(self) -> None:
        self._loop.forget()
        self._claims.forget()
        self._children.clear()

    @property
    def _start_limit(self) -> int:
        asked = float(self._consumer.app.conf.worker_proc_alive_timeout or 0)
        return max(START_LIMIT, int(asked / TICK))

    def _runs_task(self) -> bool:
        """Say whether the loop's own thread is in a task, as in solo; or, in gevent, a greenlet."""
        frame: FrameType | None = sys._current_frames().get(self._ident)
        while frame is not None and frame.f_globals.get("__name__") != "celery.app.trace":
            frame = frame.f_back
        return frame is not None

    # Children

    def _look_at_children(self) -> None:
        seen = list(self._awake())
        looking = False
        for slot, activity in seen:
            still = self._children.setdefault(slot, Stillness())
            if activity.running:
                still.forget()
                continue
            looks = still.look((activity.pid, activity.batch))
            looking = looking or looks < LIMIT // 2
            self._judge_child(slot, activity, looks)
        self._judge_claims([activity for _, activity in seen], looking)

    def _awake(self) -> Iterator[tuple[int, Activity]]:
        """Yield slot and activity of each child that can hang: what rests waits for one of them."""
        pool = self._consumer.pool
        for slot in pool.slots():
            if pool.rests(slot):
                self._children.pop(slot, None)
            else:
                yield slot, pool.ready().board.read(slot)

    def _judge_child(self, slot: int, activity: Activity, looks: int) -> None:
        pool = self._consumer.pool
        if looks < (LIMIT if pool.has_entered(slot, activity) else self._start_limit):
            return
        if not pool.replace(slot, f"it hung between two tasks for {_seconds(looks)}"):
            self._begin_anew(f"a child hangs between two tasks for {_seconds(looks)}")

    def _judge_claims(self, seen: list[Activity], looking: bool) -> None:
        """Judge whether children look for work in vain, though some is due."""
        looks = self._claims.look([(each.done, each.running) for each in seen])
        if not looking or (looks % HEARTBEAT == 0 and not self._is_work_due()):
            self._claims.forget()
        elif looks > LIMIT:
            self._begin_anew(f"work is due, and no free child claimed any for {_seconds(looks)}")

    def _is_work_due(self) -> bool:
        consumer = self._consumer
        orders, settings = consumer.pool.orders, consumer.pool.ready()
        try:
            return bool(
                consumer.engine.wait_for_messages(
                    orders.queues, 0, tasks=settings.tasks, rates=orders.rates
                )
            )
        except EngineError:
            return False

    def _begin_anew(self, reason: str) -> None:
        self._wedged = reason
        self._restart.begin(reason)


def _seconds(looks: int) -> str:
    return f"{looks * TICK:g} s"
