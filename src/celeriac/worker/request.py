"""One delivery, run in its app context and traced by Celery, giving an Outcome.

The way of a task that succeeds is short and written out here: unpack, decode, trace. Whatever
else can happen (a failure, a retry, a revocation, an expiry, a rejected message) goes through
Celery's own :class:`celery.worker.request.Request`, whose acknowledging and storing is caught
and becomes the outcome.
"""

from __future__ import annotations

import inspect
import os
import time
import traceback
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import nullcontext
from datetime import datetime
from datetime import timezone
from typing import Any
from typing import NamedTuple

from billiard.einfo import ExceptionInfo
from billiard.einfo import ExceptionWithTraceback
from celery import Celery
from celery import signals
from celery import states
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.app.trace import LOG_RECEIVED
from celery.exceptions import Ignore
from celery.exceptions import InvalidTaskError
from celery.exceptions import Reject
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.request import Request
from kombu.message import Message as KombuMessage
from kombu.serialization import prepare_accept_content

from celeriac import coroutines
from celeriac.aside import in_words
from celeriac.aside import incident
from celeriac.aside import Reason
from celeriac.aside import set_aside
from celeriac.collect import collecting
from celeriac.collect import Collector
from celeriac.collect import current
from celeriac.engines import Engine
from celeriac.engines.base import Action
from celeriac.engines.base import Aside
from celeriac.engines.base import Delivery
from celeriac.engines.base import Outcome
from celeriac.envelope import Envelope
from celeriac.explain import Program

from .arguments import Arguments

logger = get_logger("celery.worker.strategy")

#: Headers of Celery's own. What a caller added beside them is ``request.headers``. Celery finds
#: them out for each task anew, at 16 µs; here they are told apart once.
_KNOWN = frozenset(
    {*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression", "delivery_info"}
)


class Limits(NamedTuple):
    """A task's time limits (seconds)."""

    soft: float | None
    hard: float | None


class Verdict:
    """What becomes of the message of a delivery, until that is an :class:`.Outcome`."""

    __slots__ = ("action", "aside")

    def __init__(self) -> None:
        self.action = Action.ACKNOWLEDGE
        self.aside: Aside | None = None

    def set_aside(self, app: Celery, delivery: Delivery, aside: Aside, error: str) -> None:
        """Keep the message as a dead letter, and say so."""
        self.action, self.aside = Action.SET_ASIDE, aside
        logger.error(
            "Task %s[%s] is set aside, because %s (%s). Look at it with: %s dead show %s",
            delivery.task,
            delivery.task_id,
            in_words(aside.reason, delivery.deaths + aside.died),
            error.rstrip("."),
            Program.of(app).command,
            delivery.task_id,
        )


class Requests:
    """Turns deliveries into outcomes, for one child.

    :param app_context: makes the context that spans each whole task.
    :param eventer: Celery's event dispatcher, when events are sent.
    """

    def __init__(
        self,
        app: Celery,
        engine: Engine,
        hostname: str,
        app_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        eventer: Any = None,
        consumer: Any = None,
    ) -> None:
        self._app = app
        # To ask the app for them takes as long as to note a start on the board.
        self._tasks = app.tasks
        self._engine = engine
        self.hostname = hostname
        self.app_context: Callable[[], AbstractContextManager[Any]] = app_context
        self._consumer = consumer
        self._accept = prepare_accept_content(app.conf.accept_content)
        self._arguments = Arguments(self._accept)
        self.eventer = eventer
        self._envelope: Envelope | Exception = ValueError("nothing was prepared")
        #: Default limits of the pool, for tasks that have none of their own.
        self.limits = Limits(None, None)
        self._stamps: Mapping[str, Any] = {}
        _adapt(app, hostname)

    def heed(self, stamps: Mapping[str, Any]) -> None:
        """Let Celery know with which stamps tasks are revoked; see :class:`.Revocations`."""
        if stamps is self._stamps:
            return
        for gone in set(state.revoked_stamps) - set(stamps):
            del state.revoked_stamps[gone]
        state.revoked_stamps.update(stamps)
        self._stamps = stamps

    def prepare(self, delivery: Delivery) -> Limits:
        """Unpack the next delivery; return its time limits: the caller's, the task's, the pool's.

        What can not be unpacked has no limits, and :meth:`run` refuses it.
        """
        try:
            self._envelope = Envelope.of(delivery)
            limits = self._envelope.headers.get("timelimit") or (None, None)
            hard, soft = [None if limit is None else float(limit) for limit in limits]
        except Exception as exc:  # Strangers can publish, too; here it would end the child.
            self._envelope = exc
            return Limits(None, None)
        task = self._tasks[delivery.task]
        return Limits(
            soft or task.soft_time_limit or self.limits.soft,
            hard or task.time_limit or self.limits.hard,
        )

    def run(self, delivery: Delivery, revoked: bool = False) -> Outcome:
        """Run the prepared delivery to its end. Only what ends the process is raised."""
        collector = Collector(self._engine, delivery.task_id)
        verdict = Verdict()
        with collecting(collector):
            try:
                if not isinstance(self._envelope, Envelope):
                    raise self._envelope
                self._execute(delivery, self._envelope, revoked, verdict)
            except Exception as exc:  # A message that Celery can not even look at.
                self.refuse(delivery, exc, verdict)
        return Outcome(delivery, verdict.action, *collector.collected, verdict.aside)

    def _execute(
        self, delivery: Delivery, envelope: Envelope, revoked: bool, verdict: Verdict
    ) -> None:
        expired = delivery.expires_at is not None and delivery.expires_at <= time.time()
        stamped = self._stamps and envelope.headers.get("stamped_headers")
        if revoked or expired or stamped:
            if self._is_called_off(delivery, envelope, revoked):
                return
        if envelope.headers.get("eta") or envelope.headers.get("expires"):
            # Refuses what is no time, whether or not anybody is told of the task below.
            self.as_request(delivery, envelope, verdict)
        self._announce(delivery, envelope)
        args, kwargs, embed = self._arguments.decode(envelope, delivery.body)
        context = self._context(delivery, envelope, args, kwargs, embed)
        task = self._tasks[delivery.task]
        self._send_event(delivery, "task-started")
        with self.app_context():
            retval, info, runtime, retstr = task.__trace__(delivery.task_id, args, kwargs, context)
        if info is None:
            self._send_event(delivery, "task-succeeded", result=retstr, runtime=runtime)
            return
        if info.state == states.IGNORED:
            self._ignore(delivery, info.retval, context)
        request = self.as_request(delivery, envelope, verdict)
        misfit = _misfit(task, info.retval, args, kwargs)
        if not isinstance(info.retval, Reject):
            request.on_failure(_unwrapped(retval), return_ok=True)
        elif misfit is None:
            self._reject(delivery, request, retval, verdict)
        else:
            self._fail(request, misfit)
        if misfit is not None:
            self._set_aside(delivery, Reason.SIGNATURE, misfit, verdict)

    def _ignore(self, delivery: Delivery, exc: Ignore, context: dict[str, Any]) -> None:
        """Let nothing wait for a task that called itself off, unless it goes on as another."""
        collector = current(self._engine)
        backend = self._tasks[delivery.task].backend
        # celery.app.task.Task.on_replace() leaves no other trace than this text.
        goes_on = exc.args == ("Replaced by new task",) or (
            collector and any(each.task_id == delivery.task_id for each in collector.messages)
        )
        if not goes_on and hasattr(backend, "mark_as_ignored"):
            backend.mark_as_ignored(Context(context))

    def _reject(
        self, delivery: Delivery, request: Request, einfo: ExceptionInfo, verdict: Verdict
    ) -> None:
        """Reject the message. The task fails, unless it is to run again.

        Celery does the same since 5.7. Before, the task would stay PENDING for ever.
        """
        exc: Any = _unwrapped(einfo).exception
        request.reject(requeue=exc.requeue)
        if not exc.requeue:
            record_failure(request, exc, einfo)
            self._set_aside(delivery, Reason.REJECTED, exc, verdict, traceback=einfo.traceback)

    def _fail(self, request: Request, exc: BaseException) -> None:
        """Have a task fail that Celery's tracer took for rejected."""
        einfo = failure(exc)
        with self.app_context(), _current(request) as context:
            record_failure(request, exc, einfo)
            request.task.on_failure(exc, request.id, context.args, context.kwargs, einfo)

    def _announce(self, delivery: Delivery, envelope: Envelope) -> None:
        """Tell the log, the signal's receivers and the monitors, where there are any."""
        info = logger.isEnabledFor(20)
        if not (info or signals.task_received.receivers or self._sends_events(delivery)):
            return
        request = self.as_request(delivery, envelope, Verdict())
        if info:
            data = {
                "id": request.id,
                "name": request.name,
                "args": request.argsrepr,
                "kwargs": request.kwargsrepr,
                "eta": request.eta,
            }
            logger.info(LOG_RECEIVED, data, extra={"data": data})
        signals.task_received.send(sender=self._consumer, request=request)
        if self._sends_events(delivery):
            request.send_event("task-received", **_received(request))

    def _context(
        self, delivery: Delivery, envelope: Envelope, args: Any, kwargs: Any, embed: Any
    ) -> dict[str, Any]:
        """Return the request as the task sees it, in the shape that Celery's worker gives it."""
        headers, properties = envelope.headers, envelope.properties
        group = headers.get("group")
        if not (group is None or isinstance(group, str)):
            raise InvalidTaskError(
                f"The message has {group!r} for its group, which must be a text."
            )
        return {
            "headers": custom_headers(headers),
            **headers,
            "properties": properties,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "hostname": self.hostname,
            "delivery_info": delivery_info(delivery, envelope),
            "args": args,
            "kwargs": kwargs,
            "is_eager": False,
            **embed,
        }

    def call_off(self, delivery: Delivery) -> None:
        """Have Celery announce that a task which is revoked or expired will not run."""
        with self.app_context():
            self._is_called_off(delivery, Envelope.of(delivery), revoked=True)

    def _is_called_off(self, delivery: Delivery, envelope: Envelope, revoked: bool) -> bool:
        if delivery.expires_at is not None and not envelope.headers.get("expires"):
            # The queue's own limit (message_ttl), of which Celery's request does not know.
            expires = datetime.fromtimestamp(delivery.expires_at, timezone.utc).isoformat()
            envelope = envelope._replace(headers={**envelope.headers, "expires": expires})
        request = self.as_request(delivery, envelope, Verdict())
        if revoked:
            state.revoked.add(delivery.task_id)
        return bool(request.revoked())

    def refuse(self, delivery: Delivery, exc: Exception, verdict: Verdict) -> None:
        """Have the task fail whose message Celery can not even look at, and set that aside."""
        logger.exception("Task %s[%s] can not be run", delivery.task, delivery.task_id)
        if not all(isinstance(arg, str) for arg in exc.args):
            # It may quote the very thing that can not be read, and then could not be read itself.
            exc = InvalidTaskError(f"The message can not be read: {type(exc).__name__}: {exc}")
        self._app.backend.mark_as_failure(delivery.task_id, exc)
        self._set_aside(delivery, Reason.UNREADABLE, exc, verdict)

    def _set_aside(
        self, delivery: Delivery, reason: Reason, exc: Any, verdict: Verdict, **details: Any
    ) -> None:
        kind = type(exc).__name__
        # A Reject as text is the tuple of its arguments.
        error = f"{kind}: {getattr(exc, 'reason', exc) if isinstance(exc, Reject) else exc}"
        ended = incident(self.hostname, os.getpid(), kind, **details)
        verdict.set_aside(self._app, delivery, set_aside(reason, error, ended), error)

    def as_request(self, delivery: Delivery, envelope: Envelope, verdict: Verdict) -> Request:
        """Return Celery's own request for a delivery.

        :param verdict: hears of it when the request rejects its message.
        """

        def on_reject(logger: Any, errors: Any, requeue: bool) -> None:
            verdict.action = Action.REQUEUE if requeue else Action.ACKNOWLEDGE

        return Request(
            as_message(delivery, envelope, self._accept),
            on_ack=lambda *_: None,
            on_reject=on_reject,
            hostname=self.hostname,
            eventer=self.eventer,
            app=self._app,
            task=self._tasks[delivery.task],
        )

    def _sends_events(self, delivery: Delivery) -> bool:
        eventer = self.eventer
        return bool(eventer and eventer.enabled and self._tasks[delivery.task].send_events)

    def _send_event(self, delivery: Delivery, type: str, **fields: Any) -> None:
        if self._sends_events(delivery):
            self.eventer.send(type, uuid=delivery.task_id, **fields)


def _adapt(app: Celery, hostname: str) -> None:
    """Let the ``async def`` tasks run of a Celery app that is not one of ours."""
    for task in app.tasks.values():
        if coroutines.adapt(task):
            # Celery's tracer holds the function that it found when it was built.
            trace = build_tracer(task.name, task, app.loader, hostname, app=app)
            task.__trace__ = trace


def custom_headers(headers: dict[str, Any]) -> dict[str, Any]:
    """Return what a caller added to the headers, as ``request.headers``."""
    if headers.keys() <= _KNOWN:
        return {}
    return {key: headers[key] for key in headers.keys() - _KNOWN}


def delivery_info(delivery: Delivery, envelope: Envelope) -> dict[str, Any]:
    """Return where a delivery came from, as ``request.delivery_info``."""
    info = envelope.properties.get("delivery_info") or {}
    return {
        "exchange": info.get("exchange", ""),
        "routing_key": info.get("routing_key", delivery.queue),
        "priority": envelope.properties.get("priority"),
        "redelivered": delivery.redelivered,
    }


def as_message(
    delivery: Delivery, envelope: Envelope, accept: set[str] | None = None
) -> KombuMessage:
    """Return a delivery as kombu's message.

    :param accept: the content types that may be read; by default those that do no harm.
    """
    return KombuMessage(
        body=delivery.body,
        delivery_tag=delivery.tag,
        content_type=envelope.content_type,
        content_encoding=envelope.content_encoding,
        delivery_info=delivery_info(delivery, envelope),
        properties=envelope.properties,
        headers=envelope.headers,
        accept=accept,
    )


def record_failure(request: Request, exc: BaseException, einfo: ExceptionInfo) -> None:
    """Store and tell that a task failed, where Celery's tracer does not."""
    task = request.task
    with _current(request) as context:
        task.backend.mark_as_failure(
            request.id, exc, einfo.traceback, request=context, store_result=request.store_errors
        )
        signals.task_failure.send(
            sender=task,
            task_id=request.id,
            exception=exc,
            args=context.args,
            kwargs=context.kwargs,
            traceback=exc.__traceback__,
            einfo=einfo,
        )
    request.send_event("task-failed", exception=repr(exc), traceback=einfo.traceback)


@contextmanager
def _current(request: Request) -> Iterator[Context]:
    """Make a request the task's own, as those see it who hear of its failure."""
    context = request._context
    context.args, context.kwargs, _ = request._payload
    request.task.request_stack.push(context)
    try:
        yield context
    finally:
        request.task.request_stack.pop()


def failure(exc: BaseException) -> ExceptionInfo:
    """Return an error that did not happen here as Celery wants to hear of it."""
    try:
        raise exc
    except BaseException:
        return ExceptionInfo()


def _misfit(task: Any, exc: Any, args: Any, kwargs: Any) -> TypeError | None:
    """Return the error of a task that was not run, because the call does not fit its function.

    Only the call itself can tell: what a receiver of ``before_task_publish`` adds to the arguments,
    a ``before_start`` or ``__call__`` may take out again. What ``autoretry_for`` would retry then,
    Celery's check of what is sent refuses, so that it comes here as rejected.
    """
    exc = getattr(exc, "reason", None) if isinstance(exc, Reject) else exc
    check = getattr(task, "__header__", None) if task.typing else None
    if check is None or type(exc) is not TypeError:
        return None
    code = getattr(inspect.unwrap(task.run), "__code__", None)
    if any(frame.f_code is code for frame, _ in traceback.walk_tb(exc.__traceback__)):
        return None
    try:
        check(*args, **kwargs)
    except TypeError:
        return exc
    return None


def _unwrapped(einfo: ExceptionInfo) -> ExceptionInfo:
    """Return an error as Celery's parents get it from their children.

    Pickling takes the exception out of its wrapper, and ``Request.on_retry`` counts on that.
    """
    if isinstance(einfo.exception, ExceptionWithTraceback):
        einfo.exception = einfo.exception.exc
    return einfo


def _received(request: Request) -> dict[str, Any]:
    return {
        "name": request.name,
        "args": request.argsrepr,
        "kwargs": request.kwargsrepr,
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        "retries": request.request_dict.get("retries", 0),
        "eta": request.eta and request.eta.isoformat(),
        "expires": request.expires and request.expires.isoformat(),
    }
