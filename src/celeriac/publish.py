"""The short way from ``apply_async()`` to the queue.

Celery's ``Task.apply_async`` and ``Celery.send_task`` run unchanged, with their routing, their
signals and their options. Only the producer that they are given is ours: it packs the message
and publishes it through the engine, without kombu's connections, channels and declarations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import kombu
from celery.app import amqp
from kombu.exceptions import OperationalError
from kombu.transport import get_transport_cls

from . import collect
from .brokers import CautiousSender
from .canvas import CanvasBackend
from .engines import Engine
from .engines import EngineError
from .engines import open_engine
from .engines.base import Binding
from .engines.base import Message
from .engines.base import Queue
from .engines.routing import unique
from .envelope import Envelope
from .replacement import counting_outside


class AMQP(amqp.AMQP):
    """Celery's message maker, that knows when a task is done and its callbacks are being sent."""

    @cached_property
    def engine(self) -> Engine:
        """The engine that is the broker, where one is."""
        return open_engine(self.app.conf.broker_write_url)

    def _create_task_sender(self) -> Any:
        send = super()._create_task_sender()
        return send if self.app.uses_engine else CautiousSender(send, self.app.conf)

    def _retry_publish(self, publish: Any, *args: Any, **kwargs: Any) -> Any:
        """Send a callback or the next step of a chain, with the outcome of the task before it.

        Celery calls this (:func:`celery.app.trace.build_tracer`, since 5.7) when the task's
        function has returned: from here on all that is sent belongs to the outcome. Before 5.7
        callbacks are published on their own, just before the outcome is recorded.
        """
        # Another backend takes the size of such a group for that of the chord.
        is_ours = isinstance(self.app.backend, CanvasBackend)
        with counting_outside(getattr(publish, "__self__", None) if is_ours else None):
            if not self.app.uses_engine:
                return super()._retry_publish(publish, *args, **kwargs)
            collector = collect.current(self.engine)
            if collector is not None:
                collector.closing = True
            # Nothing to retry: what is collected here is sent when the outcome is recorded.
            return publish(*args, **kwargs)


def publish(engine: Engine, messages: list[Message]) -> None:
    """Publish messages as a producer does, who has kombu's errors.

    :raises kombu.exceptions.OperationalError: when the engine can not.
    """
    try:
        collect.publish(engine, messages)
    except EngineError as exc:
        raise OperationalError(str(exc)) from exc


class EngineProducer(kombu.Producer):
    """Kombu's producer where the broker is an engine: it needs no connection and no channel.

    ``publish()`` is kombu's own, because that is where instruments such as Sentry's take hold.

    :param app: a Celery app whose ``broker_write_url`` names an engine.
    """

    exchange = kombu.Exchange("")
    auto_declare = False

    def __init__(self, app: Any) -> None:
        # Kombu's would ask for a channel.
        self.app = app
        self.engine: Engine = app.amqp.engine
        #: The messages that wait for the end of the ``with`` block; see :meth:`share`.
        self.shared: list[Message] | None = None

    def __enter__(self) -> EngineProducer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        messages, self.shared = self.shared, None
        if messages and kind is None:
            publish(self.engine, messages)

    def share(self) -> EngineProducer:
        """Publish from now on at the end of the ``with`` block, all messages at once or none.

        Celery's ``group`` acquires one producer and hands it to the ``apply_async`` of each of
        its members, which is where :meth:`Celeriac.producer_or_acquire` calls this.
        """
        if self.shared is None:
            self.shared = []
        return self

    def send(self, messages: list[Message]) -> None:
        """Publish messages that are packed already."""
        if self.shared is None:
            collect.publish(self.engine, messages)
        else:
            self.shared += messages

    @cached_property
    def channel(self) -> Any:  # type: ignore[override]  # Kombu's can be replaced.
        """A channel of the transport: results over RPC declare their queue on it."""
        return self.app.connection_for_write().default_channel

    @property
    def connection(self) -> Any:
        """Celery uses its producer's connection to have errors translated."""
        return self

    @property
    def transport(self) -> Any:
        """The class of the transport: instruments ask a producer's connection for its name."""
        return get_transport_cls(self.app.conf.broker_write_url.partition("://")[0])

    @contextmanager
    def _reraise_as_library_errors(self) -> Iterator[None]:
        """Raise kombu's :exc:`~kombu.exceptions.OperationalError` for an engine's errors."""
        try:
            yield
        except EngineError as exc:
            raise OperationalError(str(exc)) from exc

    def publish(self, body: Any, *args: Any, **kwargs: Any) -> None:
        """Store the message in every queue that it is routed to, committed when this returns.

        There is nothing to reconnect to, so ``retry`` means nothing: the engine waits for its
        lock by itself, for a bounded time.
        """
        kwargs["retry"] = False
        super().publish(body, *args, **kwargs)

    def _publish(self, *args: Any, **kwargs: Any) -> None:
        """Store a message that :meth:`publish` has prepared; the order is kombu's."""
        body, priority, content_type, content_encoding, headers, properties, routing_key = args[:7]
        exchange, declare = args[9:11]
        properties["priority"] = priority or 0
        properties["delivery_info"] = {"exchange": exchange, "routing_key": routing_key}
        message = Envelope(headers, properties, content_type, content_encoding).message(body)
        queues = self._route(exchange, routing_key, declare or ())
        self.send([message._replace(queue=queue) for queue in queues])

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
