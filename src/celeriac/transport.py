"""A complete kombu transport over an engine.

Features
========
* Type: Virtual
* Supports Direct: Yes
* Supports Topic: Yes
* Supports Fanout: Yes
* Supports Priority: Yes, higher first
* Supports TTL: Yes

Connection String
=================

.. code-block:: text

    sqlite:///relative.sqlite3
    sqlite:////absolute/path.sqlite3

Publishing comes in through :meth:`Channel.basic_publish` and goes out as
:class:`~celeriac.engines.base.Message`; consuming goes through :meth:`Transport.drain_events`.
Queues and bindings live in the database, so that exchanges reach across processes. Deliveries
are held in the name of a claimant, one for each connection that consumes: if its process dies,
they return to their queues. :mod:`celeriac.qos` has those that are not acknowledged yet.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import deque
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from itertools import count
from time import monotonic
from time import time
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.exceptions import OperationalError
from kombu.transport import base
from kombu.transport import virtual
from kombu.utils import json

from . import collect
from .engines import Engine
from .engines import EngineConfigurationError
from .engines import EngineError
from .engines import open_engine
from .engines.base import Binding
from .engines.base import Delivery
from .engines.base import Message as StoredMessage
from .engines.base import Outcome
from .engines.base import Queue
from .engines.base import Worker
from .engines.routing import unique
from .envelope import Envelope
from .envelope import MAX_PRIORITY
from .qos import Message
from .qos import QoS
from .withdrawal import revoke
from .withdrawal import stamps

#: How many messages to claim at once for a consumer without a prefetch limit.
BATCH = 64
#: How often a waiting consumer looks after the dead and the expired (seconds).
UPKEEP_INTERVAL = 30.0

# The published stubs of kombu's transports contradict kombu in thirty places (tags, return
# values, who is a connection and who a transport), so its classes are taken as untyped.
_base: Any = base
_virtual: Any = virtual

_STANDARD_TYPES = {"amq.topic": "topic", "amq.fanout": "fanout"}


class Consumer(NamedTuple):
    """A callback that consumes from a queue."""

    queue: str
    no_ack: bool
    callback: Callable[[Message], object]


# Under these names because kombu's class attributes hide the plain ones inside the classes.
_Message: TypeAlias = Message
_QoS: TypeAlias = QoS


class Channel(_virtual.Channel):  # type: ignore[misc]
    """A channel over an engine."""

    Message = Message
    QoS = QoS
    supports_fanout = True
    max_priority = MAX_PRIORITY
    from_transport_options = ("deadletter_queue",)

    connection: Transport
    deadletter_queue: str | None
    qos: _QoS
    _qos: _QoS | None

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self.engine: Engine = connection.engine
        self._tags = count(1)
        self._consumers: dict[str, Consumer] = {}
        self._claimed: deque[Delivery] = deque()
        self._auto_delete: set[str] = set()

    # Exchanges and queues

    def queue_declare(
        self,
        queue: str | None = None,
        passive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> queue_declare_ok_t:
        """Create the queue; return its name, how many messages wait in it, its consumers."""
        queue = queue or f"amq.gen-{uuid.uuid4()}"
        if not passive:
            self._declare(queue, auto_delete, arguments or {})
        sizes = self.engine.queue_sizes([queue])
        if queue not in sizes:
            raise ChannelError(
                f"NOT_FOUND - no queue {queue!r}", (50, 10), "Channel.queue_declare", 404
            )
        return queue_declare_ok_t(queue, sizes[queue], len(self._workers_on(queue)))

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> None:
        """Delete the queue, its messages and its bindings."""
        if if_empty and self._size(queue):
            return
        if if_unused and self._workers_on(queue):
            return
        self._auto_delete.discard(queue)
        self.engine.delete_queue(queue)

    def queue_bind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", **kwargs: Any
    ) -> None:
        """Bind the queue to the exchange, for every process."""
        exchange = exchange or "amq.direct"
        self.engine.bind(Binding(exchange, self._type_of(exchange), routing_key or "", queue))

    def queue_unbind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", **kwargs: Any
    ) -> None:
        """Undo :meth:`queue_bind`."""
        exchange = exchange or "amq.direct"
        self.engine.unbind(Binding(exchange, self._type_of(exchange), routing_key or "", queue))

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete the exchange's bindings; the queues stay, as with AMQP."""
        bindings = self.engine.bindings(exchange)
        if not (if_unused and bindings):
            for binding in bindings:
                self.engine.unbind(binding)
            self.state.exchanges.pop(exchange, None)

    def list_bindings(self) -> Iterator[tuple[str, str, str]]:
        """Yield queue, exchange and routing key for the exchanges declared here."""
        for exchange in self.state.exchanges:
            for binding in self.engine.bindings(exchange):
                yield binding.queue, exchange, binding.routing_key

    def get_table(self, exchange: str) -> list[tuple[str, None, str]]:
        """Return the bindings of the exchange, as kombu's exchange types keep them."""
        return [(each.routing_key, None, each.queue) for each in self.engine.bindings(exchange)]

    def prepare_queue_arguments(
        self, arguments: Mapping[str, Any], **options: Any
    ) -> Mapping[str, Any]:
        """Translate kombu's queue options into AMQP's ``x-`` arguments."""
        prepared: Mapping[str, Any] = _base.to_rabbitmq_queue_arguments(arguments, **options)
        return prepared

    def _declare(self, queue: str, auto_delete: bool, arguments: Mapping[str, Any]) -> None:
        if auto_delete:
            self._auto_delete.add(queue)
        self.engine.declare_queue(
            Queue(
                queue,
                expires=_seconds(arguments.get("x-expires")),
                message_ttl=_seconds(arguments.get("x-message-ttl")),
                auto_delete=auto_delete,
            )
        )

    def _type_of(self, exchange: str) -> str:
        declared = self.state.exchanges.get(exchange)
        if declared is not None:
            return str(declared["type"])
        known = self.engine.bindings(exchange)
        return known[0].type if known else _STANDARD_TYPES.get(exchange, "direct")

    def _workers_on(self, queue: str) -> list[Worker]:
        return [each for each in self.engine.list_workers() if each.alive and queue in each.queues]

    def _size(self, queue: str) -> int:
        return self.engine.queue_sizes([queue]).get(queue, 0)

    def _purge(self, queue: str) -> int:
        return self.engine.purge(queue)

    # Publishing

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> None:
        """Store the message in every queue that the exchange routes it to.

        When this returns, it is committed. A message that no queue wants is dropped.
        """
        if exchange and exchange.endswith(".pidbox"):
            _remember(self.engine, message)
        queues = self._lookup(exchange or "", routing_key or "")
        if queues:
            packed = _pack(message, exchange or "", routing_key or "")
            collect.publish(self.engine, [packed._replace(queue=queue) for queue in queues])

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        if not exchange:
            return [routing_key]
        bindings = self.engine.bindings(exchange)
        found = unique(each.queue for each in bindings if each.matches(routing_key))
        if not found and self.deadletter_queue:
            return [self.deadletter_queue]
        return list(found)

    # Consuming

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,
        callback: Callable[[_Message], object],
        consumer_tag: str,
        **kwargs: Any,
    ) -> None:
        """Have ``callback`` called for the messages of the queue."""
        self._consumers[consumer_tag] = Consumer(queue, no_ack, callback)
        self.connection.introduce()

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop a consumer. What was claimed for it and not delivered returns to the queue."""
        consumer = self._consumers.pop(consumer_tag, None)
        if consumer is None:
            return
        if consumer.queue not in self.queues:
            rest = [each for each in self._claimed if each.queue == consumer.queue]
            self._claimed = deque(each for each in self._claimed if each.queue != consumer.queue)
            self.give_back(rest, started=False)
        self.connection.introduce()
        if consumer.queue in self._auto_delete:
            self.queue_delete(consumer.queue, if_unused=True)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> _Message | None:
        """Return the next message of the queue, or ``None``."""
        claimant = self.connection.claimant()
        for delivery in self.engine.claim([queue], 1, worker=claimant):
            if self._drop_expired(delivery):
                continue
            message = self._unpack(delivery)
            if no_ack:
                self.engine.complete([Outcome(delivery)])
            else:
                self.qos.append(message, message.delivery_tag)
            return message
        return None

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Acknowledge the message, or it and all before it."""
        if multiple:
            self.qos.ack_until(delivery_tag)
        else:
            self.qos.ack(delivery_tag)

    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        """Limit how many messages may be out unacknowledged; zero sets no limit."""
        self.qos.prefetch_count = prefetch_count
        self.on_credit()

    @property
    def queues(self) -> Sequence[str]:
        """The queues consumed here."""
        return unique(each.queue for each in self._consumers.values())

    @property
    def credit(self) -> int:
        """How many messages may be claimed now."""
        limit = self.qos.prefetch_count
        return max(0, limit - len(self.qos._delivered)) if limit else BATCH

    def deliver(self, claimant: str) -> bool:
        """Claim if nothing is left of the last claim, and deliver; say whether anything was.

        Without a prefetch limit all that was claimed is delivered; with one, a message at a
        time, so that a consumer that works inline can stop in between.
        """
        if not self._claimed and self._consumers and self.credit:
            self._claimed.extend(self._claim(claimant))
        delivered = False
        while self._claimed and not (delivered and self.qos.prefetch_count):
            delivered |= self._deliver(self._claimed.popleft())
        return delivered

    def on_credit(self) -> None:
        """Have the consumer look whether it may claim more."""
        if self.connection is not None:
            self.connection.on_credit()

    def give_back(self, deliveries: Sequence[Delivery], *, started: bool) -> None:
        """Return deliveries to their queues, unless they are another process's."""
        if not deliveries or not self.connection.is_own():
            return
        if started:
            self.engine.redeliver(deliveries, died=False)
        else:
            self.engine.release(deliveries)

    def forget_deliveries(self) -> None:
        """Drop what another process holds: this one came out of a fork."""
        self._claimed.clear()
        if self._qos is not None:
            self._qos.forget()

    def close(self) -> None:
        """Cancel all consumers and give back what is not acknowledged."""
        if not self.closed:
            rest = list(self._claimed)
            self._claimed.clear()
            self.give_back(rest, started=False)
        super().close()

    def _claim(self, claimant: str) -> list[Delivery]:
        claimed = self.engine.claim(self.queues, min(self.credit, BATCH), worker=claimant)
        # AMQP's meaning of no_ack: what is on its way to such a consumer is gone.
        no_ack = {each.queue for each in self._consumers.values() if each.no_ack}
        self.engine.complete([Outcome(each) for each in claimed if each.queue in no_ack])
        return claimed

    def _deliver(self, delivery: Delivery) -> bool:
        if self._drop_expired(delivery):
            return False
        tag, consumer = next(
            item for item in self._consumers.items() if item[1].queue == delivery.queue
        )
        self._consumers[tag] = self._consumers.pop(tag)  # Consumers of one queue take turns.
        message = self._unpack(delivery)
        if not consumer.no_ack:
            self.qos.append(message, message.delivery_tag)
        consumer.callback(message)
        return True

    def _drop_expired(self, delivery: Delivery) -> bool:
        """Delete an expired message, unless its consumer has to record that it was revoked."""
        if delivery.expires_at is None or delivery.expires_at > time():
            return False
        if delivery.task and Envelope.of(delivery).headers.get("expires"):
            return False
        self.engine.complete([Outcome(delivery)])
        return True

    def _unpack(self, delivery: Delivery) -> _Message:
        envelope = Envelope.of(delivery)
        address = {"exchange": "", "routing_key": delivery.queue}
        info = {**address, **envelope.properties.get("delivery_info", {})}
        return self.Message(
            {
                "delivery": delivery,
                "body": delivery.body,
                "content-type": envelope.content_type,
                "content-encoding": envelope.content_encoding,
                "headers": envelope.headers,
                "properties": {
                    **envelope.properties,
                    "delivery_info": {**info, "redelivered": delivery.redelivered},
                    "delivery_tag": next(self._tags),
                },
            },
            channel=self,
        )


_Channel: TypeAlias = Channel


class Transport(_virtual.Transport):  # type: ignore[misc]
    """The transport of one connection."""

    Channel = Channel
    can_parse_url = True
    default_port = None
    driver_type = "sqlite"
    driver_name = "sqlite3"
    connection_errors = (*_virtual.Transport.connection_errors, EngineError)
    implements = _virtual.Transport.implements.extend(
        asynchronous=False,
        exchange_type=frozenset(["direct", "topic", "fanout"]),
        heartbeats=False,
    )

    channels: list[_Channel]

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        with _configuration_checked():
            self.engine: Engine = open_engine(client.hostname)
        self._lock = threading.RLock()
        self._claimant: str | None = None
        self._pid = os.getpid()
        self._upkeep_at = 0.0
        self._waiting_for_credit = False

    def driver_version(self) -> str:
        """Return the version of the SQLite library."""
        import sqlite3

        return sqlite3.sqlite_version

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Return the URL: it holds no password."""
        return uri

    def establish_connection(self) -> Transport:
        """Open the database, so that what is wrong with it shows here."""
        with _configuration_checked():
            self.engine.queue_sizes([])
        super().establish_connection()
        return self

    def close_connection(self, connection: Transport) -> None:
        """Close all channels; the claimant is forgotten."""
        super().close_connection(connection)
        self._leave()

    def drain_events(self, connection: Transport, timeout: float | None = None) -> None:
        """Deliver what is due, waiting for it at most ``timeout`` seconds.

        :raises TimeoutError: when nothing came.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while not self._deliver_next():
            left = UPKEEP_INTERVAL if deadline is None else deadline - monotonic()
            if left <= 0:
                raise TimeoutError()
            self._wait(left)

    # The claimant

    def claimant(self) -> str:
        """Return the id under which this process holds deliveries, registering it first."""
        with self._lock:
            if self._claimant is None or not self.is_own():
                self.introduce()
            assert self._claimant is not None
            return self._claimant

    def introduce(self) -> None:
        """Tell the engine, and so everyone, which queues are consumed here."""
        with self._lock:
            if not self.is_own():
                self._start_over()
            self._claimant = self._claimant or str(uuid.uuid4())
            queues = unique(queue for channel in self.channels for queue in channel.queues)
            self.engine.register(
                Worker(self._claimant, hostname="", pid=os.getpid(), queues=queues, tasks=())
            )

    def is_own(self) -> bool:
        """Say whether the deliveries held here are this process's."""
        return self._pid == os.getpid()

    def on_credit(self) -> None:
        """Wake the consumer if it waits for an acknowledgement from another thread."""
        if self._waiting_for_credit and self._claimant is not None:
            self.engine.wake(self._claimant, 0)

    def _leave(self) -> None:
        with self._lock:
            claimant, self._claimant = self._claimant, None
            if claimant is not None and self.is_own():
                self.engine.deregister(claimant)

    def _start_over(self) -> None:
        self._claimant = None
        self._pid = os.getpid()
        for channel in self.channels:
            channel.forget_deliveries()

    # Waiting

    def _deliver_next(self) -> bool:
        consuming = [channel for channel in self.channels if channel.queues]
        if not consuming:
            return False
        claimant = self.claimant()
        self._keep_up(claimant)
        # Each in turn, so that no channel starves: not a generator, which would stop at the first.
        delivered = [channel.deliver(claimant) for channel in consuming]
        return any(delivered)

    def _wait(self, timeout: float) -> None:
        self._waiting_for_credit = True
        try:
            # Looked at again after the flag is up: whoever acknowledges later will wake us.
            open_channels = [channel for channel in self.channels if channel.credit]
            queues = unique(queue for channel in open_channels for queue in channel.queues)
            place = (self.claimant(), 0)
            self.engine.wait_for_messages(queues, min(timeout, UPKEEP_INTERVAL), place=place)
        finally:
            self._waiting_for_credit = False

    def _keep_up(self, claimant: str) -> None:
        """Now and then do for the database what workers do, in case none of ours runs."""
        if monotonic() < self._upkeep_at:
            return
        self._upkeep_at = monotonic() + UPKEEP_INTERVAL
        self.engine.heartbeat(claimant)
        # The deliveries of others are for worker/redelivery.py to judge.
        dead = [each.delivery for each in self.engine.lost() if not each.hostname]
        if dead:
            self.engine.redeliver(dead, died=True)
        self.engine.maintain(time())


@contextmanager
def _configuration_checked() -> Iterator[None]:
    """Turn what no retry mends into the error that is not in :attr:`connection_errors`."""
    try:
        yield
    except EngineConfigurationError as exc:
        raise OperationalError(str(exc)) from exc


def _pack(message: dict[str, Any], exchange: str, routing_key: str) -> StoredMessage:
    """Turn kombu's message into the engine's, for a queue to be filled in."""
    properties = dict(message["properties"])
    # Of another transport, whose messages are moved here; ours are stored as they are.
    for name in ("body_encoding", "delivery_tag"):
        properties.pop(name, None)
    properties["delivery_info"] = {"exchange": exchange, "routing_key": routing_key}
    envelope = Envelope(
        message["headers"], properties, message.get("content-type"), message.get("content-encoding")
    )
    return envelope.message(message["body"])


def _remember(engine: Engine, message: dict[str, Any]) -> None:
    """Make a revocation durable that is on its way to the workers, of which none may listen."""
    if message.get("content-type") != "application/json":
        return  # A worker that hears it will do so.
    command = json.loads(message["body"])
    method, arguments = command.get("method"), command.get("arguments") or {}
    if method in ("revoke", "terminate"):
        terminate = method == "terminate" or arguments.get("terminate")
        revoke(engine, arguments.get("task_id"), terminate, arguments.get("signal"))
    elif method == "revoke_by_stamped_headers":
        engine.revoke(stamps=stamps(arguments.get("headers") or {}))


def _seconds(milliseconds: Any) -> float | None:
    return None if milliseconds is None else int(milliseconds) / 1000
