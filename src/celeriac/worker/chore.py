"""What a worker does now and then, between two looks after its children."""

from __future__ import annotations

import time
from collections.abc import Callable

from celery.utils.log import get_logger

from celeriac.engines import EngineError

from .trouble import tell

logger = get_logger(__name__)


class Chore:
    """Something to do every so often, or when it answers in how many seconds."""

    def __init__(
        self, interval: float, action: Callable[[], float | None], *, first: float | None = None
    ) -> None:
        self._interval = interval
        self._action = action
        self._due = time.monotonic() + (interval if first is None else first)

    def run_if_due(self) -> None:
        """Do it if it is time to. An error is told, and does not end the worker."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._interval
        try:
            nap = self._action()
            if nap is not None:
                self._due = time.monotonic() + nap
        except EngineError as exc:
            tell(logger, "%s", exc)
        except Exception:
            logger.exception("The worker goes on after an error of its own")
