"""Greenlets: for very many tasks that wait.

Celery has patched the standard library by now, so threads, locks, sleeping and polling are
gevent's, and a child is what it is in :mod:`.thread`. What differs is how it is interrupted: the
hub raises the exception where the greenlet waits. A greenlet that computes, or waits in C, can not
be interrupted, and all others wait for it.
"""

from __future__ import annotations

import itertools
from typing import Any

import gevent  # type: ignore[import-untyped]
from billiard.exceptions import SoftTimeLimitExceeded

from .thread import ThreadChild
from .thread import ThreadPool

_numbers = itertools.count(1)


class _GreenletChild(ThreadChild):
    """A greenlet, as its parent sees it."""

    def _start(self) -> None:
        self._greenlet: Any = gevent.spawn(self._run)

    def _run(self) -> None:
        try:
            super()._run()
        except (SystemExit, KeyboardInterrupt):
            pass  # Of a task; gevent would end the whole worker with it.

    def _own_pid(self) -> int:
        return next(_numbers)

    @property
    def alive(self) -> bool:
        return not self._greenlet.ready()

    def soften(self, tag: int) -> bool:
        if not self.claimant.fence.holds(tag):
            return False
        gevent.get_hub().loop.run_callback(self._soften, tag)
        return True

    def _soften(self, tag: int) -> None:
        # In the hub: nothing else runs between this look and the exception.
        if self.claimant.fence.holds(tag):
            self._greenlet.throw(SoftTimeLimitExceeded())

    def _is_interruptible(self) -> bool:
        return True

    def _interrupt(self, exc: type[BaseException]) -> None:
        gevent.get_hub().loop.run_callback(self._throw, exc)

    def _throw(self, exc: type[BaseException]) -> None:
        if self.alive:
            self._greenlet.throw(exc())


class GeventPool(ThreadPool):
    """Greenlets that are children."""

    is_green = True
    task_join_will_block = False
    child_class = _GreenletChild

    # Celery's handler of a signal runs in the hub, where nothing can wait. When it asks for a
    # cold shutdown, the worker's own greenlet terminates the pool afterwards.

    def finish(self, timeout: float | None) -> None:
        if not _is_in_hub():
            super().finish(timeout)

    def on_stop(self) -> None:
        if not _is_in_hub():
            super().on_stop()


def _is_in_hub() -> bool:
    return gevent.getcurrent() is gevent.get_hub()
