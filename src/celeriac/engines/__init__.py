"""One database behind some thirty operations: see :mod:`celeriac.engines.base`.

:func:`open_engine` turns a URL into an engine. Engines are shared: one per URL and process.
"""

from __future__ import annotations

from .base import Engine as Engine
from .base import EngineConfigurationError as EngineConfigurationError
from .base import EngineError as EngineError

#: URL schemes that are ours. All others are Celery's and kombu's.
SCHEMES = frozenset({"sqlite"})

_engines: dict[str, Engine] = {}


def is_engine_url(url: str | None) -> bool:
    """Say whether a broker or backend URL names an engine of ours."""
    return bool(url) and str(url).partition("://")[0] in SCHEMES


def open_engine(url: str) -> Engine:
    """Return this process's engine for ``url``, opening it on first use.

    Nothing is read or written before the first operation.

    :raises EngineConfigurationError: when the URL can not be understood.
    """
    from .sqlite import SQLiteEngine

    engine = _engines.get(url)
    if engine is None:
        # Atomic without a lock, which a fork could leave locked in the child. Two threads may
        # both make one; both get the first.
        engine = _engines.setdefault(url, SQLiteEngine(url))
    return engine


def close_engines() -> None:
    """Close the connections of every engine of this process."""
    for engine in list(_engines.values()):
        engine.close()
