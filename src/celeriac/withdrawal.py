"""Tasks that will not run, taken out of their queues: called off, or expired.

A worker that comes to such a task records that it was revoked. But none may come soon, or at
all: the task is due tomorrow, its queue is not consumed, no worker runs. So whoever calls it off
comes here, and so do workers every few seconds, and those who wait for a result in vain. The
task is :const:`~celery.states.REVOKED` then, and all that depends on it is decided, in one commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from billiard.common import TERM_SIGNAME
from celery import signals
from celery.app.task import Context
from celery.platforms import signals as platform_signals
from celery.utils.log import get_logger
from kombu.serialization import prepare_accept_content
from kombu.utils.functional import maybe_list

from .collect import collecting
from .collect import Collector
from .engines import Engine
from .engines import EngineError
from .engines.base import Action
from .engines.base import Delivery
from .engines.base import Outcome
from .envelope import Envelope

logger = get_logger(__name__)

#: How long one call may go on (seconds).
LONGEST = 1.0


def withdraw(
    app: Any,
    engine: Engine,
    task_ids: Collection[str] | None = None,
    tell: Callable[[Delivery], None] | None = None,
) -> None:
    """Take tasks that wait out of their queues, as revoked.

    :param task_ids: those that were called off; ``None`` takes all that expired.
    :param tell: has Celery store and tell that a task is revoked, in place of
        :func:`announce`.
    """
    tell = tell or (lambda delivery: announce(app, delivery))
    deadline = time.monotonic() + LONGEST
    while deliveries := engine.withdraw(task_ids):
        outcomes = [_outcome(app, engine, delivery, tell) for delivery in deliveries]
        for part in engine.complete(outcomes).chords:
            app.backend.chord_ready(part)
        if task_ids is None and time.monotonic() > deadline:
            return  # There is more; others wait as well.


def stamps(headers: Mapping[str, Any] | Sequence[str]) -> dict[str, list[Any]]:
    """Return stamps and their values as an engine wants them; Celery also takes ``key=value``."""
    if not isinstance(headers, Mapping):
        headers = dict(header.partition("=")[::2] for header in headers)
    return {name: list(maybe_list(values) or ()) for name, values in headers.items()}


def revoke(engine: Engine, task_id: Any, terminate: Any = False, signal: Any = None) -> None:
    """Make a revocation durable, as Celery has it: of one task or several, by name or number."""
    signum = _signum(signal or TERM_SIGNAME) if terminate else None
    engine.revoke(list(map(str, maybe_list(task_id) or ())), signal=signum)


def _signum(signal: Any) -> int | None:
    try:
        return int(platform_signals.signum(signal))
    except (AttributeError, TypeError):
        return None  # The workers say that they know no such signal, as Celery's do.


def _outcome(
    app: Any, engine: Engine, delivery: Delivery, tell: Callable[[Delivery], None]
) -> Outcome:
    collector = Collector(engine, delivery.task_id, closing=True)
    with collecting(collector):
        try:
            tell(delivery)
        except EngineError:
            raise
        except Exception:  # Strangers can publish, too.
            logger.exception("The message of task %s can not be read", delivery.task_id)
            app.backend.mark_as_revoked(delivery.task_id, _reason(delivery))
    return Outcome(delivery, Action.ACKNOWLEDGE, *collector.collected)


def announce(app: Any, delivery: Delivery) -> None:
    """Store and tell that a task is revoked, as a worker does, without its log and its events."""
    request = _request(app, delivery)
    task = app.tasks.get(delivery.task)
    backend = app.backend if task is None else task.backend
    reason = _reason(delivery)
    backend.mark_as_revoked(
        delivery.task_id, reason, request=request, store_result=_is_kept(task, request)
    )
    signals.task_revoked.send(
        sender=task, request=request, terminated=False, signum=None, expired=reason == "expired"
    )


def _request(app: Any, delivery: Delivery) -> Context:
    envelope = Envelope.of(delivery)
    accept = prepare_accept_content(app.conf.accept_content)
    args, kwargs, embed = envelope.decode(delivery.body, accept)
    return Context({**envelope.headers, "args": args, "kwargs": kwargs, **embed})


def _is_kept(task: Any, request: Any) -> bool:
    """Say whether anybody wants to read that the task was revoked."""
    if getattr(task, "store_errors_even_if_ignored", False):
        return True
    return not (request.ignore_result or getattr(task, "ignore_result", False))


def _reason(delivery: Delivery) -> str:
    is_expired = delivery.expires_at is not None and delivery.expires_at <= time.time()
    return "expired" if is_expired else "revoked"
