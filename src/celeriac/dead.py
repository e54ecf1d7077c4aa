"""Dead letters: what ended badly for a reason that somebody may mend, kept with all of its message.

The worker sets a message aside in the commit of its failure, for a reason of :mod:`.aside`.
:class:`DeadLetters` lists what was set aside, runs it again and deletes it; it is
``celery.dead_letters``, and ``celery dead`` on the command line (:mod:`.dead_commands`). How an
engine keeps dead letters is told in :meth:`.Engine.complete` and :meth:`.Engine.revive`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone
from itertools import chain
from time import time
from typing import Any

from kombu.utils.url import maybe_sanitize_url

from .aside import in_words
from .aside import last_error
from .dependents import find_dependents
from .engines import Engine
from .engines import is_engine_url
from .engines import open_engine
from .engines.base import TaskInfo
from .envelope import Envelope

#: How many are run again or deleted in one transaction.
PAGE = 500

_NO_BROKER = (
    "No broker is known, so say whose dead letters: celery -A your_application.celery dead …"
)
_NO_ENGINE = (
    "Dead letters are kept where the broker is a queue file, and the broker is {url}. With "
    "RabbitMQ give the queue an x-dead-letter-exchange; with others look for failures in the "
    "result backend, and send these tasks again."
)


@dataclass(frozen=True)
class DeadLetter:
    """A message that was set aside."""

    #: The task's id.
    id: str
    #: The task's name.
    task: str
    #: The arguments as they were sent, if they are JSON; else as text, as far as it is known.
    args: Any
    kwargs: Any
    #: Where it waited, and will again.
    queue: str
    #: ``deaths``, ``lost``, ``signature``, ``unreadable`` or ``rejected``.
    reason: str
    #: The same in words.
    why: str
    sent_at: datetime
    died_at: datetime
    #: How often its worker died.
    deaths: int
    #: The error that was recorded, with its type.
    error: str
    #: Its runs that ended badly, the last one last: ``at`` (Unix time), ``worker``, ``pid``,
    #: ``ended``, and what else is known.
    report: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, info: TaskInfo) -> DeadLetter:
        """Return a dead letter as an engine lists it."""
        args, kwargs = _arguments(info)
        report = json.loads(info.report or "[]")
        return cls(
            id=info.task_id,
            task=info.task,
            args=args,
            kwargs=kwargs,
            queue=info.queue,
            reason=info.reason or "",
            why=in_words(info.reason, info.deaths),
            sent_at=_instant(info.published_at),
            died_at=_instant(info.died_at or 0),
            deaths=info.deaths,
            error=last_error(info),
            report=report,
        )


def _arguments(info: TaskInfo) -> tuple[Any, Any]:
    headers: Mapping[str, Any] = {}
    try:
        envelope = Envelope.of(info)
        headers = envelope.headers
        args, kwargs, _ = envelope.decode(info.body, {"application/json"})
        return args, kwargs
    except Exception:  # It may have been set aside for that.
        return headers.get("argsrepr"), headers.get("kwargsrepr")


def _dependents(info: TaskInfo) -> Sequence[str]:
    """Return the ids of the tasks that failed with this one, and may run after it."""
    try:
        _, _, embed = Envelope.of(info).decode(info.body, {"application/json"})
        later = chain(embed.get("chain") or (), embed.get("callbacks") or ())
        return [each.task_id for each in find_dependents(later)]
    except Exception:  # Strangers can publish, too.
        return []


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


class DeadLetters:
    """The dead letters of a Celery app, whose broker must be an engine of Celeriac's.

    All but :meth:`get` take filters, which all must match: the task's name, the queue, the
    reason.

    :raises RuntimeError: at the first use, if the broker is another one.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    def list(
        self,
        task: str | None = None,
        queue: str | None = None,
        reason: str | None = None,
        limit: int = 100,
    ) -> Sequence[DeadLetter]:
        """Return what was set aside, oldest first."""
        found = self._engine.list_tasks(limit=limit, **_filters(task, queue, reason))
        return [DeadLetter.of(info) for info in found]

    def get(self, task_id: str) -> DeadLetter | None:
        """Return the dead letter of a task, the last one if it has several."""
        found = self._engine.list_tasks(task_ids=[task_id], status="dead")
        return DeadLetter.of(found[-1]) if found else None

    def retry(
        self,
        task_ids: str | Collection[str] | None = None,
        *,
        task: str | None = None,
        queue: str | None = None,
        reason: str | None = None,
    ) -> int:
        """Put dead letters back into their queues, under their ids; return how many.

        Their failures are forgotten, and those of the later steps of their chains and of their
        callbacks: who asks for these results waits again. A chord that failed with them stays
        as it is. Without any argument it is all that were set aside before the call.
        """
        pages = self._pages(task_ids, _filters(task, queue, reason))
        return sum(self._revive(page) for page in pages)

    def discard(
        self,
        task_ids: str | Collection[str] | None = None,
        *,
        task: str | None = None,
        queue: str | None = None,
        reason: str | None = None,
    ) -> int:
        """Delete dead letters; return how many. Their results stay as long as any other.

        Without any argument it is all that were set aside before the call.
        """
        pages = self._pages(task_ids, _filters(task, queue, reason))
        return sum(self._engine.discard([info.tag for info in page]) for page in pages)

    def checked(self) -> DeadLetters:
        """Return this, having seen to it that there can be any.

        :raises RuntimeError: if the broker keeps none.
        """
        _ = self._engine
        return self

    @property
    def _engine(self) -> Engine:
        url = self._app.conf.broker_write_url
        if not is_engine_url(url):
            known = _NO_ENGINE.format(url=maybe_sanitize_url(url or ""))
            raise RuntimeError(known if url else _NO_BROKER)
        return open_engine(url)

    def _revive(self, page: Sequence[TaskInfo]) -> int:
        later = [task_id for info in page for task_id in _dependents(info)]
        return self._engine.revive([info.tag for info in page], forget=later)

    def _pages(
        self, task_ids: str | Collection[str] | None, filters: Mapping[str, Any]
    ) -> Iterator[Sequence[TaskInfo]]:
        """Yield them in pages; the caller takes each out of the dead before the next."""
        began = time()
        if task_ids is None:
            # What dies again meanwhile is listed last.
            while page := self._page(began, limit=PAGE, **filters):
                yield page
            return
        ids = [task_ids] if isinstance(task_ids, str) else list(task_ids)
        for first in range(0, len(ids), PAGE):
            yield self._page(began, task_ids=ids[first : first + PAGE], **filters)

    def _page(self, before: float, **filters: Any) -> Sequence[TaskInfo]:
        found = self._engine.list_tasks(**filters)
        return [info for info in found if info.died_at is not None and info.died_at <= before]


def _filters(task: str | None, queue: str | None, reason: str | None) -> Mapping[str, Any]:
    """Return the filters as :meth:`.Engine.list_tasks` takes them."""
    return {
        "status": "dead",
        "tasks": None if task is None else [task],
        "queues": None if queue is None else [queue],
        "reason": reason,
    }
