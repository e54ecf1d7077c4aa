"""Trouble with the database, as a worker tells of it and lives with it.

A full disk stays full, and everything that a worker does meets it, many times a second: so each
error is told once a minute. It waits, and goes on by itself when it can. But it does not go on
with a damaged file: every write could damage more of it, so the worker ends, and the next one
refuses to start until somebody has mended or replaced the file.
"""

from __future__ import annotations

import os
import time
from logging import Logger

from celery.worker import state

from celeriac.exceptions import EngineDamagedError
from celeriac.exceptions import EngineError

#: Seconds in which the same error is not told again.
REPEAT = 60.0
#: The exit code of a worker, and of a child, that met a damaged file.
DAMAGED = os.EX_DATAERR

_told: dict[str, float] = {}


def tell(logger: Logger, message: str, exc: EngineError) -> None:
    """Log an error, unless this process told the same a moment ago; end over a damaged file."""
    if isinstance(exc, EngineDamagedError):
        state.should_stop = DAMAGED
        message = "The worker ends, so as not to damage more. %s"
    text = message % exc
    now = time.monotonic()
    if now - _told.get(text, -REPEAT) >= REPEAT:
        _told[text] = now
        logger.error("%s", text)
