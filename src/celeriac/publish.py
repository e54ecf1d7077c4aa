"""The short way from ``apply_async()`` to the queue.

Celery's ``Task.apply_async`` and ``Celery.send_task`` run unchanged, with their routing, their
signals and their options. Only the producer that they are given is ours: it packs the message
and publishes it through the engine, without kombu's connections, channels and declarations.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from celery.app import amqp
from kombu.compression import compress
from kombu.exceptions import OperationalError
from kombu.serialization import dumps

from . import collect
from .engines import Engine
from .engines import EngineError
from .engines import open_engine
from .engines.base import Binding
from .engines.base import Message
from .engines.base import Queue
from .engines.base import unique
from .envelope import Envelope

_PERSISTENT = 2


class AMQP(amqp.AMQP):
    """Celery's message maker, that knows when a task is done and its callbacks are being sent."""

    @cached_property
    def engine(self) -> Engine:
        """The engine that is the broker, where one is."""
        return open_engine(self.app.conf.broker_write_url)

    def _retry_publish(self, publish: Any, *args: Any, **kwargs: Any) -> Any:
        """Send a callback or the next step of a chain, with the outcome of the task before it.

        Celery calls this (:func:`celery.app.trace.build_tracer`, since 5.7) when the task's
        function has returned: from here on all that is sent belongs to the outcome. Before 5.7
        callbacks are published on their own, just before the outcome is recorded.
        """
        if not self.app.uses_engine:
            return super()._retry_publish(publish, *args, **kwargs)
        collector = collect.current(self.engine)
        if collector is not None:
            collector.closing = True
        # Nothing to retry: what is collected here is sent when the outcome is recorded.
        return publish(*args, **kwargs)


class EngineProducer:
    """Stands in for kombu's producer where the broker is an engine.

    :param app: a Celery app whose ``broker_write_url`` names an engine.
    """

    #: Celery asks its producer for the serializer that eager tasks use.
    serializer: str | None = None

    def __init__(self, app: Any) -> None:
        self.app = app
        self.engine: Engine = app.amqp.engine
        self._shared: list[Message] | None = None

    def __enter__(self) -> EngineProducer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        messages, self._shared = self._shared, None
        if messages and kind is None:
            with self._reraise_as_library_errors():
                collect.publish(self.engine, messages)

    def share(self) -> EngineProducer:
        """Publish from now on at the end of the ``with`` block, all messages at once or none.

        Celery's ``group`` acquires one producer and hands it to the ``apply_async`` of each of
        its members, which is where :meth:`Celeriac.producer_or_acquire` calls this.
        """
        if self._shared is None:
            self._shared = []
        return self

    @property
    def connection(self) -> EngineProducer:
        """Celery uses its producer's connection to have errors translated."""
        return self

    @contextmanager
    def _reraise_as_library_errors(self) -> Iterator[None]:
        """Raise kombu's :exc:`~kombu.exceptions.OperationalError` for an engine's errors."""
        try:
            yield
        except EngineError as exc:
            raise OperationalError(str(exc)) from exc

    def publish(
        self,
        body: Any,
        routing_key: str | None = None,
        exchange: Any = None,
        *,
        serializer: str | None = None,
        compression: str | None = None,
        headers: Mapping[str, Any] | None = None,
        declare: Any = None,
        delivery_mode: Any = None,
        expiration: float | None = None,
        retry: Any = None,
        retry_policy: Any = None,
        timeout: Any = None,
        confirm_timeout: Any = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        **properties: Any,
    ) -> None:
        """Store the message in every queue that it is routed to, committed when this returns.

        Takes what :meth:`kombu.Producer.publish` takes. There is nothing to reconnect to, so
        ``retry`` means nothing: the engine waits for its lock by itself, for a bounded time.
        """
        name = getattr(exchange, "name", exchange) or ""
        key = routing_key or ""
        sent = dict(headers or {})
        if content_type is None:
            content_type, content_encoding, body = dumps(body, serializer=serializer)
        if compression:
            body, sent["compression"] = compress(body, compression)
        properties["delivery_mode"] = _PERSISTENT if delivery_mode is None else _mode(delivery_mode)
        properties.setdefault("priority", 0)
        if properties["priority"] is None:
            properties["priority"] = 0
        if expiration is not None:
            properties["expiration"] = str(int(expiration * 1000))
        properties["delivery_info"] = {"exchange": name, "routing_key": key}
        envelope = Envelope(sent, properties, content_type, content_encoding)
        message = envelope.message(body)
        queues = self._route(name, key, declare or ())
        messages = [message._replace(queue=queue) for queue in queues]
        if self._shared is None:
            collect.publish(self.engine, messages)
        else:
            self._shared += messages

    def _route(self, exchange: str, routing_key: str, declare: Any) -> tuple[str, ...]:
        if not exchange:
            return (routing_key,)
        for queue in declare:
            self._declare(queue)
        return unique(
            binding.queue
            for binding in self.engine.bindings(exchange)
            if binding.matches(routing_key)
        )

    def _declare(self, queue: Any) -> None:
        if not hasattr(queue, "exchange") or not queue.exchange.name:
            return
        exchange = queue.exchange
        binding = Binding(exchange.name, exchange.type, queue.routing_key or "", queue.name)
        if binding not in self.engine.bindings(exchange.name):
            self.engine.declare_queue(
                Queue(queue.name, queue.expires, queue.message_ttl, bool(queue.auto_delete))
            )
            self.engine.bind(binding)


def _mode(delivery_mode: Any) -> int:
    return int({"transient": 1, "persistent": 2}.get(delivery_mode, delivery_mode))
