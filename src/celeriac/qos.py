"""Messages as consumers get them, and what becomes of them: acknowledged, rejected, given back.

A channel of :mod:`celeriac.transport` has one :class:`QoS`, which holds its deliveries until they
are settled, and settles them through the engine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from typing import Protocol

from kombu.transport import virtual

from .engines import Engine
from .engines.base import Action
from .engines.base import Delivery
from .engines.base import Outcome

# See transport.py for why kombu's classes are taken as untyped.
_virtual: Any = virtual


class Holder(Protocol):
    """The channel, as far as its messages know it."""

    engine: Engine

    def give_back(self, deliveries: Sequence[Delivery], *, started: bool) -> None: ...

    def on_credit(self) -> None: ...


class Message(_virtual.Message):  # type: ignore[misc]
    """A message as consumers get it, with the delivery that holds it."""

    def __init__(self, payload: dict[str, Any], channel: Holder, **kwargs: Any) -> None:
        self.delivery: Delivery = payload.pop("delivery")
        super().__init__(payload, channel=channel, **kwargs)


class QoS(_virtual.QoS):  # type: ignore[misc]
    """The unacknowledged messages of one channel.

    Messages may be acknowledged by other threads than the one that consumes. An acknowledgement
    is committed when it returns: a task acknowledged early must not run twice.
    """

    channel: Holder
    _delivered: OrderedDict[int, Message]

    def append(self, message: Message, delivery_tag: int) -> None:
        """Note that the message is out."""
        self._delivered[delivery_tag] = message

    def ack(self, delivery_tag: int) -> None:
        """Delete the message from the database."""
        self._settle([delivery_tag], Action.ACKNOWLEDGE)

    def ack_until(self, delivery_tag: int) -> None:
        """Delete this message and all delivered before it, in one transaction."""
        tags = [tag for tag in list(self._delivered) if tag <= delivery_tag]
        self._settle(tags, Action.ACKNOWLEDGE)

    def reject(self, delivery_tag: int, requeue: bool = False) -> None:
        """Delete the message, or put it back into its queue as redelivered."""
        self._settle([delivery_tag], Action.REQUEUE if requeue else Action.ACKNOWLEDGE)

    def restore_unacked(self) -> list[tuple[BaseException, Message]]:
        """Give all unacknowledged messages back, as redelivered."""
        deliveries = [message.delivery for message in self._delivered.values()]
        self._delivered.clear()
        self.channel.give_back(deliveries, started=True)
        return []

    def forget(self) -> None:
        """Drop what another process holds: this one came out of a fork."""
        self._delivered.clear()

    def _settle(self, tags: Sequence[int], action: Action) -> None:
        deliveries = [self._delivered[tag].delivery for tag in tags if tag in self._delivered]
        if deliveries:
            self.channel.engine.complete([Outcome(each, action) for each in deliveries])
        for tag in tags:
            self._delivered.pop(tag, None)
        self.channel.on_credit()
