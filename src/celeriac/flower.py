"""Flower's broker page, and its queue lengths, where the broker is an engine.

Flower asks brokers in ways of its own, which it has for RabbitMQ and Redis, and answers 404 for
any other (``flower.utils.broker:Broker``; it asks no plugins). :func:`add_pages` puts two handlers
before Flower's own, which know engines and leave all other brokers to Flower.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

from flower.api.tasks import GetQueueLengths
from flower.urls import handlers
from flower.views.broker import BrokerView

from .engines import Engine
from .engines import is_engine_url
from .engines import open_engine


class _Broker:
    """What Flower asks for the lengths of queues."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return each queue that exists, in RabbitMQ's words."""
        return await asyncio.to_thread(self._queues, list(names))

    def _queues(self, names: list[str]) -> list[dict[str, Any]]:
        engine = self._engine
        claimed = Counter(each.queue for each in engine.list_tasks(queues=names, status="claimed"))
        workers = [worker for worker in engine.list_workers() if worker.alive]
        return [
            {
                "name": name,
                "messages": ready + claimed[name],
                "messages_ready": ready,
                "messages_unacknowledged": claimed[name],
                "consumers": sum(name in worker.queues for worker in workers),
            }
            for name, ready in sorted(engine.queue_sizes(names).items())
        ]


class _KnowsEngines:
    capp: Any

    def get_broker(self) -> Any:
        url = self.capp.conf.broker_read_url
        if is_engine_url(url):
            return _Broker(open_engine(url))
        return super().get_broker()  # type: ignore[misc]


class _Page(_KnowsEngines, BrokerView):
    """The broker page."""


class _Lengths(_KnowsEngines, GetQueueLengths):
    """``/api/queues/length``."""


def add_pages() -> None:
    """Put the handlers into Flower's list, which it reads when it starts."""
    handlers[:0] = [(r"/broker", _Page), (r"/api/queues/length", _Lengths)]
