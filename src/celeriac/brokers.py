"""What means something else on Redis and RabbitMQ, where stock workers run.

What can be translated is: :func:`for_reading` lets Redis serve the higher priority first, as the
others do, and :func:`for_writing` lets no sender wait without end. Of the rest, whoever is about
to rely on it is told once: senders by :class:`CautiousSender`, as warnings; workers by
:func:`worker_cautions`, as lines of their log. The whole list is in ``docs/moving.rst``, "What
is different".
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from time import monotonic
from typing import Any
from typing import cast

from celery.utils.time import maybe_iso8601

from .warning import warn

_REDIS = frozenset({"redis", "rediss", "sentinel"})
_AMQP = frozenset({"amqp", "amqps", "pyamqp", "librabbitmq"})

#: kombu's own: the priorities for which Redis has a list each.
PRIORITY_STEPS = (0, 3, 6, 9)
#: kombu's own, in seconds.
VISIBILITY_TIMEOUT = 3600.0
#: For how long a sender goes on trying to connect, and to one that does not answer (seconds).
#: Both may pass one after the other, so ``delay()`` raises within five seconds.
PATIENCE = 2.0
SILENCE = 2.5


class HighestFirst(list[int]):
    """Priority steps that are read from the highest down.

    kombu's Redis transport goes through its option ``priority_steps`` to see which list to read
    first, and bisects it to see which list a message goes into. So this is all it takes for
    higher priorities to come first; what is stored, and where, stays the same. Hence what
    stock programs send is understood, and a message without priority comes last.
    """

    def __iter__(self) -> Iterator[int]:
        return self.__reversed__()


def for_reading(conf: Any, url: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a connection that is to consume from this broker."""
    if _transport(conf, url) not in _REDIS:
        return options
    given = {**conf.broker_transport_options, **(options.get("transport_options") or {})}
    steps = HighestFirst(sorted(given.get("priority_steps") or PRIORITY_STEPS))
    return {**options, "transport_options": {**given, "priority_steps": steps}}


def for_writing(conf: Any, url: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a connection that is to send, and not to wait for long.

    Where nothing answers at all, kombu waits for Redis without end.
    """
    transport = _transport(conf, url)
    limits: dict[str, Any] = {"connect_retries_timeout": PATIENCE}
    if transport in _REDIS:
        limits |= {"socket_timeout": SILENCE, "socket_connect_timeout": SILENCE}
    elif transport not in _AMQP:
        return options
    given = {**conf.broker_transport_options, **(options.get("transport_options") or {})}
    return {**options, "transport_options": {**limits, **given}}


class CautiousSender:
    """Celery's function that sends a task's message, after a look at what it asks for.

    :param send: what ``celery.app.amqp.AMQP._create_task_sender`` returned.
    """

    def __init__(self, send: Callable[..., Any], conf: Any) -> None:
        self._send = send
        transport = _transport(conf, conf.broker_write_url)
        self._is_amqp = transport in _AMQP
        self._hidden_for = _visibility_timeout(conf) if transport in _REDIS else None
        self._told: set[tuple[str, str]] = set()
        self._is_bounded = not conf.value_set_for("task_publish_retry_policy")

    def __call__(self, producer: Any, name: str, message: Any, **options: Any) -> Any:
        if self._is_amqp and options.get("priority"):
            self._check_priority(options.get("queue"))
        if self._hidden_for is not None and message.headers.get("eta"):
            self._check_eta(name, message.headers["eta"], self._hidden_for)
        if self._is_bounded and not options.get("retry_policy"):
            options["retry_policy"] = {"errback": _Deadline()}
        return self._send(producer, name, message, **options)

    def _check_priority(self, queue: Any) -> None:
        if not hasattr(queue, "queue_arguments") or self._was_told("priority", queue.name):
            return
        if not (queue.max_priority or (queue.queue_arguments or {}).get("x-max-priority")):
            warn(
                f"RabbitMQ ignores priorities in the queue {queue.name!r}, which has no "
                "x-max-priority: set task_queue_max_priority = 10. A queue that exists without "
                "it must be deleted first, when it is empty."
            )

    def _check_eta(self, name: str, eta: Any, hidden_for: float) -> None:
        ahead = _moment(eta) - datetime.now(timezone.utc)
        if ahead.total_seconds() > hidden_for and not self._was_told("eta", name):
            warn(
                f"Task {name} is due in {_rounded(ahead)}, and Redis hands a message out again "
                f"after {timedelta(seconds=hidden_for)}, so it would run more than once: set "
                "broker_transport_options = {'visibility_timeout': seconds} to more than that, "
                "for its workers too."
            )

    def _was_told(self, subject: str, name: str) -> bool:
        known = (subject, name) in self._told
        self._told.add((subject, name))
        return known


class _Deadline:
    """Ends kombu's retries after a while: it asks before each, however long the one before took."""

    def __init__(self) -> None:
        self._end = monotonic() + PATIENCE

    def __call__(self, exc: Exception, interval: float) -> None:
        if monotonic() > self._end:
            raise exc


def worker_cautions(app: Any) -> Iterator[str]:
    """Yield a sentence for each thing that a stock worker's tasks rely on and do not get."""
    tasks = {name: task for name, task in sorted(app.tasks.items()) if task.app is app}
    limited = [name for name, task in tasks.items() if getattr(task, "rate_limit", None)]
    if limited and not app.conf.worker_disable_rate_limits:
        yield (
            "With this broker a rate limit holds for each worker by itself, not for all "
            f"together: {', '.join(limited)}."
        )
    if _transport(app.conf, app.conf.broker_read_url) in _REDIS:
        yield from _hidden_too_short(tasks, _visibility_timeout(app.conf))


def _hidden_too_short(tasks: Mapping[str, Any], hidden_for: float) -> Iterator[str]:
    late = [
        name
        for name, task in tasks.items()
        if task.acks_late and (task.time_limit or task.soft_time_limit or 0) > hidden_for
    ]
    if late:
        yield (
            f"Redis hands a message out again after {timedelta(seconds=hidden_for)}, and these "
            f"tasks, which are acks_late, may run longer: {', '.join(late)}. Set "
            "broker_transport_options = {'visibility_timeout': seconds} to more than their "
            "time limits, or they run a second time meanwhile."
        )


def _transport(conf: Any, url: Any) -> str:
    first = url[0] if isinstance(url, (list, tuple)) and url else url
    if isinstance(first, str) and "://" in first:
        return first.partition("://")[0].partition("+")[0]
    return str(conf.broker_transport or first or "")


def _visibility_timeout(conf: Any) -> float:
    return float(conf.broker_transport_options.get("visibility_timeout", VISIBILITY_TIMEOUT))


def _moment(eta: Any) -> datetime:
    moment = cast("datetime", maybe_iso8601(eta))
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _rounded(ahead: timedelta) -> timedelta:
    return timedelta(seconds=round(ahead.total_seconds()))
