"""The parent's side of our worker: everything but the tasks.

Celery's :class:`~celery.worker.consumer.Consumer` with the steps that concern tasks left out,
because the pool's children claim by themselves. What is left is the worker as others see it: its
heartbeat and events, its remote control, and the care for what the dead left behind.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Collection
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from typing import cast

import billiard
from celery import bootsteps
from celery import Celery
from celery import signals
from celery.apps.worker import Worker as Program
from celery.utils.log import get_logger
from celery.utils.time import rate
from celery.worker import pidbox
from celery.worker import state
from celery.worker.consumer import consumer as stock
from celery.worker.consumer.connection import Connection
from celery.worker.consumer.events import Events

from celeriac import stopping
from celeriac.config import own_setting
from celeriac.engines import Engine
from celeriac.engines import EngineError
from celeriac.engines import open_engine
from celeriac.engines.base import Delivery
from celeriac.engines.base import Outcome
from celeriac.engines.base import Worker
from celeriac.envelope import Envelope
from celeriac.withdrawal import announce
from celeriac.withdrawal import withdraw

from .board import Board
from .board import PARENT
from .child import make_requests
from .child import Settings
from .chore import Chore
from .claimant import Orders
from .control import handlers
from .native import original
from .orphans import INIT
from .orphans import Orphans
from .picture import Picture
from .pool import Pool
from .redelivery import board_path
from .redelivery import COLD_SHUTDOWN
from .redelivery import Redelivery
from .request import as_message
from .request import Limits
from .request import Requests
from .shutdown import Shutdown
from .trouble import tell
from .watchdog import Watchdog

logger = get_logger(__name__)

#: Seconds between two looks for what dead workers left behind.
TAKE_OVER = 0.25
#: Seconds between two looks into the mailbox without a message: its transport has its own chores.
UPKEEP = 5.0
#: Seconds to wait when the database refused.
PAUSE = 0.25
#: Seconds between two refreshments of Celery's picture of the worker, and the share of a processor
#: that they may take: where a thousand tasks run at once, each of them takes a tenth of a second.
PICTURE = 2.0
PICTURE_SHARE = 0.02
#: Seconds between two clean-ups, and until the next one when more is left to delete. The first
#: comes soon, or workers that never live long would never clean up.
MAINTENANCE = 30.0
MAINTENANCE_GOES_ON = 0.02
#: Seconds between two looks for what expired in a queue where no worker can take it.
EXPIRY = 2.0
#: Seconds between two looks for messages that are no tasks.
STRANGERS = 2.0
#: Seconds between two looks for what runs and is to be terminated.
TERMINATION = 1.0
#: Seconds between two looks for ended orphans, where the worker is process 1.
ZOMBIES = 1.0
#: A chord complete for so long whose callback was not sent is taken up (seconds).
CHORD = 1.0


class Children(bootsteps.StartStopStep):
    """Makes the worker known to the engine, and starts its children."""

    label = "Children"
    requires = (Connection,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        c.task_consumer = c.qos = c.gossip = None
        super().__init__(c, **kwargs)

    def start(self, c: Any) -> None:
        c.start_children()

    def stop(self, c: Any) -> None:
        """Nothing of theirs yet: they finish while the worker still answers for them."""
        if c.pool.shutdown.has_begun:
            # Its thread takes up to a second to notice, which would come after all else.
            threading.Thread(target=c.timer.stop, daemon=True).start()

    def shutdown(self, c: Any) -> None:
        c.leave()

    def info(self, c: Any) -> dict[str, Any]:
        return {"prefetch_count": 0}


class Control(bootsteps.StartStopStep):
    """Remote control: Celery's mailbox, with our answers where the store knows better."""

    requires = (Children, Events)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        self.box = _Pidbox(c)
        self.start = self.box.start
        self.stop = self.box.stop
        self.shutdown = self.box.shutdown
        super().__init__(c, **kwargs)

    def include_if(self, c: Any) -> bool:
        return bool(c.app.conf.worker_enable_remote_control)


class _Pidbox(pidbox.Pidbox):
    def __init__(self, c: Any) -> None:
        super().__init__(c)
        self.node.handlers = handlers(self.node.handlers)

    def start(self, c: Any) -> None:
        super().start(c)
        c.mailbox = tuple(queue.name for queue in self.consumer.queues)

    def on_message(self, body: Any, message: Any) -> None:
        self.c.picture.refresh()
        super().on_message(body, message)


class Loop(bootsteps.StartStopStep):
    """Runs last, until the worker is told to stop."""

    label = "event loop"
    last = True

    def start(self, c: Any) -> None:
        c.loop()


class _Blueprint(stock.Consumer.Blueprint):
    default_steps = [
        Connection,
        Children,
        Events,
        "celery.worker.consumer.heart:Heart",
        Control,
        Loop,
    ]


class Consumer(stock.Consumer):
    """Celery's consumer over an engine."""

    Blueprint = _Blueprint

    app: Celery
    pool: Pool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.loop = self._loop
        self.engine: Engine = open_engine(kwargs["app"].conf.broker_read_url)
        self.id = uuid.uuid4().hex
        self.started_at = time.time()
        self.settings: Settings | None = None
        self._requests: Requests | None = None
        self._chores: list[Chore] = []
        self._orphans = Orphans(kwargs["pool"].patience)
        #: Running tasks that were told to end.
        self.terminated: set[str] = set()
        #: When to look into the mailbox at the latest (monotonic seconds).
        self._drain_at = 0.0
        #: The queues of remote control.
        self.mailbox: tuple[str, ...] = ()
        self.picture = Picture(self)
        #: How often the loop came by; the watchdog looks at it.
        self.rounds = 0
        super().__init__(*args, **kwargs)
        self.pool.shutdown = Shutdown(
            own_setting(self.app.conf, "worker_grace_period"),
            is_program=isinstance(self.controller, Program),
        )
        signals.worker_shutting_down.connect(self._told_to_end, sender=self.hostname)
        # Celery's own looks at a picture of the worker that is drawn only on request, and lets
        # new tasks begin meanwhile. No door: see WorkController.wait_for_soft_shutdown.
        self.controller.wait_for_soft_shutdown = self.wait_for_soft_shutdown
        self.watchdog = Watchdog(self)

    # Starting and stopping

    def start_children(self) -> None:
        """Become known, take over what the dead left, and let the children begin."""
        if self.settings is not None:  # A reconnection: the children never noticed.
            return
        self.watchdog.start()
        self.update_strategies()
        # For the exchanges that they are bound to.
        for queue in self.app.amqp.queues.consume_from.values():
            queue(self.connection.default_channel).declare()
        # Known before there is a board: others delete the boards of those they do not know.
        self.register()
        self.settings = settings = self._make_settings()
        self.pool.shutdown.watch(settings.board)
        self._requests = make_requests(settings)
        redelivery = Redelivery(settings, self._requests, self.engine.folder)
        self.pool.on_death = redelivery.child_died
        self.pool.on_watch = Chore(TERMINATION, self.terminate_revoked).run_if_due
        self._chores = [
            Chore(TAKE_OVER, redelivery.take_over),
            # Celery's heartbeat events tell how much runs and ran.
            Chore(PICTURE, self._refresh_picture),
            Chore(MAINTENANCE, self.maintain, first=1.0),
            Chore(MAINTENANCE, redelivery.remove_boards),
            Chore(CHORD, self._dispatch_chords),
            Chore(EXPIRY, self.call_off),
            Chore(TERMINATION, self.terminate_revoked),
            Chore(STRANGERS, self.refuse_strangers),
        ]
        if os.getpid() == INIT:
            self._chores.append(Chore(ZOMBIES, self._reap_orphans))
        redelivery.take_over()
        self.pool.prepare(settings, self._orders())

    def leave(self) -> None:
        """Be known no more. Called when the children are gone."""
        self.watchdog.stop()
        settings, self.settings = self.settings, None
        if settings is None:
            return
        stopping.look_no_more(self.app)
        is_settled = self._deregister()
        self.pool.shutdown.leave(goes_on=self.pool.goes_on)
        if is_settled:
            settings.board.close()

    def _deregister(self) -> bool:
        """Say whether nothing is left for others to take over."""
        try:
            if self.pool.slots():
                raise EngineError("What the worker held could not be handed back in time.")
            self.engine.deregister(self.id)
            return not self.picture.claimed()
        except EngineError as exc:
            # The board stays: it tells the next worker what had begun.
            logger.critical("%s The next worker that runs or starts takes it over.", exc)
            return False

    def _told_to_end(self, **kwargs: Any) -> None:
        """Let no task begin any more. Called in the handler of a signal."""
        self.pool.shutdown.begin()
        if not self.pool.is_green:
            # The loop sleeps, and a signal alone does not end that. In a thread, and one started
            # without a lock, for the handler may have interrupted who holds the locks.
            original("_thread", "start_new_thread")(self._wake, ())

    def _wake(self) -> None:
        with suppress(Exception):  # The loop may be gone; if it is not, it comes by itself.
            self.engine.wake(self.id, PARENT)

    def register(self) -> None:
        """Tell the engine what this worker can run."""
        self.engine.register(
            Worker(
                id=self.id,
                hostname=self.hostname,
                pid=os.getpid(),
                queues=self.queues(),
                tasks=frozenset(self.app.tasks),
                concurrency=self.pool.limit or 1,
            )
        )

    def cancel_active_requests(self) -> None:
        """End what runs, at a cold shutdown: what is ``acks_late`` runs again elsewhere."""
        self.pool.end_running(COLD_SHUTDOWN)

    #: What Celery 5.5 calls it.
    cancel_all_unacked_requests = cancel_active_requests

    def wait_for_soft_shutdown(self) -> None:
        """Give running tasks some time before a cold shutdown, starting nothing more."""
        self.pool.shutdown.halt()
        timeout = self.app.conf.worker_soft_shutdown_timeout
        if timeout > 0 and self.pool.is_busy():
            logger.warning("Initiating Soft Shutdown, terminating in %s seconds", timeout)
            self.pool.finish(timeout)
        self.pool.shutdown.begin()

    # The loop

    def _loop(self, *args: Any) -> None:
        if self._requests is not None:
            self._requests.eventer = self.event_dispatcher
        self.on_ready()
        while self.blueprint.state == bootsteps.RUN and self.connection:
            state.maybe_shutdown()
            try:
                self._turn()
            except EngineError as exc:
                # Celery would take the connection for lost, and make it anew at once, without end.
                tell(logger, "%s", exc)
                time.sleep(PAUSE)

    def _turn(self) -> None:
        self.rounds += 1
        self.perform_pending_operations()
        nap = self.pool.tick()
        for chore in self._chores:
            self.rounds += 1
            chore.run_if_due()
        self._drain(nap)

    def _drain(self, timeout: float) -> None:
        """Sleep until there is mail, a child wakes us or the time is over; read the mail."""
        is_mail = not timeout or self.engine.wait_for_messages(
            self.mailbox, timeout, place=(self.id, PARENT)
        )
        now = time.monotonic()
        if not is_mail and now < self._drain_at:
            return  # Half of what an idle worker costs.
        self._drain_at = now + UPKEEP
        try:
            self.connection.drain_events(timeout=0.001)
        except TimeoutError:
            pass

    def _reap_orphans(self) -> None:
        # The pool's, and beat with -B. This asks for the exit codes of those that have ended.
        self._orphans.reap({process.pid for process in billiard.active_children()})

    def maintain(self) -> float | None:
        """Clean up; return in how many seconds to go on, if more is left."""
        # Results may have a file of their own.
        engines = {self.engine, getattr(self.app.backend, "engine", self.engine)}
        more = [engine.maintain(time.time()) for engine in engines]
        return MAINTENANCE_GOES_ON if any(more) else None

    def _refresh_picture(self) -> float:
        began = time.thread_time()
        self.picture.refresh()
        return max(PICTURE, (time.thread_time() - began) / PICTURE_SHARE)

    def _dispatch_chords(self) -> None:
        for part in self.engine.ready_chords(time.time() - CHORD):
            self.app.backend.chord_ready(part)

    # What children are told

    def send_orders(self) -> None:
        """Tell the children what may have changed: queues, rates, limits, events."""
        orders = self._orders()
        if self.settings is not None and orders != self.pool.orders and not self.pool.orders.stop:
            self.pool.command(orders)
            self.register()

    def add_task_queue(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str | None = None,
        routing_key: str | None = None,
        **options: Any,
    ) -> None:
        """Start to consume from a queue."""
        queues = self.app.amqp.queues
        if queue in queues:
            found = queues.select_add(queues[queue])
        else:
            found = queues.select_add(
                queue,
                exchange=exchange or queue,
                exchange_type=exchange_type or "direct",
                routing_key=routing_key,
                **options,
            )
        found(self.connection.default_channel).declare()
        logger.info("Started consuming from %s", queue)
        self.send_orders()

    def cancel_task_queue(self, queue: str) -> None:
        """Stop to consume from a queue."""
        self.app.amqp.queues.deselect(queue)
        logger.info("Canceling queue %s", queue)
        self.send_orders()

    def reset_rate_limits(self) -> None:
        """Let changed rate limits take effect."""
        if getattr(self, "settings", None) is not None:
            self.send_orders()

    def _update_prefetch_count(self, index: int = 0) -> None:
        """Nothing to do: children claim what they can start."""

    def _orders(self) -> Orders:
        return Orders(
            queues=self.queues(),
            rates=dict(self._rates()),
            limits={
                name: (task.soft_time_limit, task.time_limit)
                for name, task in self.app.tasks.items()
                # One that was told of is told of again when it is taken away.
                if task.soft_time_limit or task.time_limit or name in self.pool.orders.limits
            },
            events=self._wants_task_events(),
        )

    def queues(self) -> tuple[str, ...]:
        """Return the names of the queues that the worker consumes from."""
        # By their names: a queue for broadcasts is known by another, and has one of its own.
        return tuple(queue.name for queue in self.app.amqp.queues.consume_from.values())

    def _rates(self) -> Iterable[tuple[str, float]]:
        if not self.disable_rate_limits:
            for name, task in self.app.tasks.items():
                per_second = rate(cast("str", getattr(task, "rate_limit", None)))
                if per_second:
                    yield name, 1.0 / per_second

    def _wants_task_events(self) -> bool:
        eventer = getattr(self, "event_dispatcher", None)
        if eventer is None:
            return bool(self.controller.task_events)
        return bool(eventer.enabled and (not eventer.groups or "task" in eventer.groups))

    def _make_settings(self) -> Settings:
        options = self.pool.options
        recycles = self.pool.recycles
        names = sorted(self.app.tasks)
        return Settings(
            app=self.app,
            engine=self.engine,
            hostname=self.hostname,
            worker_id=self.id,
            board=Board(board_path(self.engine.folder, self.id), names, self.pool.most),
            tasks=frozenset(names),
            limits=Limits(options.get("soft_timeout"), options.get("timeout")),
            max_tasks=options.get("maxtasksperchild") if recycles else None,
            max_memory=options.get("max_memory_per_child") if recycles else None,
        )

    # What is called off

    def call_off(self, task_ids: Collection[str] | None = None) -> None:
        """Withdraw what waits of these tasks, or all that expired."""
        withdraw(self.app, self.engine, task_ids, self._announce)

    def _announce(self, delivery: Delivery) -> None:
        if delivery.task in self.app.tasks and self._requests is not None:
            self._requests.call_off(delivery)
        else:
            announce(self.app, delivery)

    def terminate_revoked(self) -> None:
        """End what runs and was called off with a signal, if remote control did not do so.

        It may have come too early, or not at all; and in a solo worker nobody reads it.
        """
        claimed = self.picture.claimed()
        self.terminated &= {info.task_id for info in claimed}
        wanted = self.engine.revocations([info.task_id for info in claimed]).signals
        if not wanted:
            return
        for request, activity in self.picture.running(claimed):
            signum = wanted.get(request.id)
            if signum and request.id not in self.terminated and activity is not None:
                self.terminated.add(request.id)
                request.terminate(self.pool, signal=signum)

    def refuse_strangers(self) -> None:
        """Delete what is no task from the queues of tasks, as Celery's worker does."""
        nameless = frozenset([""])
        for delivery in self.engine.claim(self.queues(), 100, worker=self.id, tasks=nameless):
            try:
                self._report_stranger(delivery)
            except Exception:  # Its headers are nonsense.
                logger.exception("Received and deleted a message that can not be read")
            self.engine.complete([Outcome(delivery)])

    def _report_stranger(self, delivery: Delivery) -> None:
        message = as_message(delivery, Envelope.of(delivery))
        logger.warning(stock.UNKNOWN_FORMAT, self._message_report(delivery.body, message))
        signals.task_rejected.send(sender=self, message=message, exc=None)
