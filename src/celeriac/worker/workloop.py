"""A child's loop, run where billiard's pool runs the loop of Celery's own children.

Instruments gather what they record in the process, and save it when the loop ends, since what
follows is ``os._exit``. Sentry's takes hold at :meth:`billiard.pool.Worker.workloop`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from billiard.pool import Worker


class _Nowhere:
    """Stands in for the queues of billiard's worker, which hands over no jobs here."""

    def put(self, item: Any) -> None:
        """Nobody reads it."""


class Workloop(Worker):
    """Billiard's worker with one job: ``loop``, which ends by itself."""

    inqW_fd = synqW_fd = None
    maxtasks = max_memory_per_child = on_ready_counter = wait_for_syn = None
    outq = _Nowhere()

    def __init__(self, loop: Callable[[], object]) -> None:
        # Billiard's would ask for pipes.
        self._loop = loop

    def run(self) -> None:
        """Run ``loop`` to its end. Raises what it raises."""
        try:
            self.workloop()
        except _Ended:
            pass

    def wait_for_job(self) -> None:
        self._loop()
        raise _Ended


class _Ended(BaseException):
    """Lets billiard's loop end without a word: it has no other way out."""
