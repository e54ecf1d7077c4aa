"""Event loops beside each other in greenlets, where gevent has put these in the place of threads.

asyncio lets a thread run one loop at a time, and all greenlets are one thread to it. So loops take
turns: one runs until it has nothing to do, and while it waits, others may.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
import sys
import threading
from collections.abc import Awaitable
from contextlib import AbstractContextManager
from contextlib import nullcontext
from typing import Any
from typing import TypeVar

R = TypeVar("R")


def are_threads() -> bool:
    """Say whether threads are greenlets in this process."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a loop for the current thread, or greenlet."""
    if not are_threads():
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(_make_selector())


def run(loop: asyncio.AbstractEventLoop, awaitable: Awaitable[R]) -> R:
    """Run something to its end in a loop that :func:`new_event_loop` has returned."""
    with _turn() if are_threads() else nullcontext():
        return loop.run_until_complete(awaitable)


@functools.cache
def _turn() -> AbstractContextManager[Any]:
    """Return the lock which the running loop holds. It is gevent's, as it is made so late."""
    return threading.Lock()


def _acquire(turn: Any) -> None:
    """Acquire the lock, whatever is thrown into the greenlet while it waits for that."""
    thrown: BaseException | None = None
    while True:
        try:
            turn.acquire()
            break
        except BaseException as error:
            thrown = error
    if thrown is not None:
        raise thrown


def _make_selector() -> selectors.BaseSelector:
    turn: Any = _turn()

    # Known only now, because gevent replaces it.
    class Selector(selectors.DefaultSelector):
        """Lets others take their turn while its own loop waits."""

        def select(self, timeout: float | None = None) -> Any:
            loop = asyncio._get_running_loop()
            asyncio._set_running_loop(None)
            turn.release()
            try:
                return super().select(timeout)
            finally:
                try:
                    _acquire(turn)
                finally:
                    asyncio._set_running_loop(loop)

    return Selector()
