"""Whether what Celery and kombu do is their own doing, so that a short way may come to the same.

A short way leaves out calls of their functions. Where an instrument has put one of its own in the
place of such a function, or a program another serializer in the place of JSON, all goes the long
way.
"""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any

import kombu.serialization
from kombu.utils import json

_serializers: Any = kombu.serialization.registry  # type: ignore[attr-defined]
JSON = "application/json"


def is_original(kind: type, name: str) -> bool:
    """Say whether a function of Celery's or kombu's is their own, and not an instrument's."""
    function = getattr(kind, name)
    # A wrapper may take over its name and module, but not its file.
    return (
        isinstance(function, FunctionType)
        and function.__code__.co_filename == sys.modules[kind.__module__].__file__
    )


def writes_json() -> bool:
    """Say whether the serializer ``json`` is kombu's."""
    encoder = _serializers._encoders.get("json")
    return encoder is not None and encoder.encoder is json.dumps


def reads_json() -> bool:
    """Say whether JSON is read by kombu."""
    return _serializers._decoders.get(JSON) is json.loads
