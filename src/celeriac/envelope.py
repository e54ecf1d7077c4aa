"""Celery's message protocol 2, packed into the one text that an engine stores.

A message as kombu knows it has a body, headers, properties, a content type and a content
encoding. An engine keeps the body as it is and the rest as one JSON text, the envelope. All who
write or read messages come through here (``publish``, ``transport``, ``worker``), so that what
one of them publishes any other can take up.
"""

from __future__ import annotations

from typing import Any
from typing import NamedTuple

from kombu.utils import json


class Envelope(NamedTuple):
    """All of a message but its body."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    content_type: str | None
    content_encoding: str | None

    def pack(self) -> str:
        """Return the envelope as text.

        kombu's JSON is used, as every other virtual transport does: dates, UUIDs and decimals
        in headers survive it.
        """
        return str(json.dumps(self))

    @classmethod
    def unpack(cls, text: str) -> Envelope:
        """Undo :meth:`pack`."""
        return cls(*json.loads(text))
