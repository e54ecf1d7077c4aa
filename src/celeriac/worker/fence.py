"""Who ends the running task: the thread that runs it, or the parent that gives the thread up.

A process that exceeds its time limit is killed, and writes nothing afterwards. A thread can not
be killed: it goes on, and may come to its end at the very moment in which its parent decides
over its task. So both reach for the same thing, the task's tag, and only one gets it.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from types import FrameType

from billiard.exceptions import SoftTimeLimitExceeded

from celeriac import coroutines

#: Modules whose locks a thread would keep for ever if it were interrupted while it takes them;
#: Celery's signals, whose receivers' errors nobody hears of, and its handlers of a shutdown.
_NOT_INSIDE = ("logging", "importlib", "threading", "celery.utils.dispatch", "celery.apps")
#: What takes locks there, or gives them up. Interrupted in one of these, it would keep the lock.
_LOCKING = frozenset(
    {"acquire", "release", "__enter__", "__exit__", "_acquireLock", "_releaseLock"}
)


class Abandoned(BaseException):
    """The task was decided over without the thread that runs it, which is to end.

    No :exc:`Exception`, so that neither Celery nor most tasks take it for an error of the task.
    """


class Fence:
    """The fence around one child's running task."""

    def __init__(self) -> None:
        self._running: dict[int, bool] = {}
        self._lock = threading.Lock()
        self._softened = False
        self.taken = False

    # The child's side

    def enter(self, tag: int) -> None:
        """Begin a task."""
        self._running[tag] = True

    def leave(self, tag: int) -> None:
        """End the task; a soft limit that comes too late is held back.

        :raises Abandoned: when the parent was faster.
        """
        if self._running.pop(tag, None) is None or self._softened:
            try:
                self._leave_slowly(tag)
            except SoftTimeLimitExceeded:
                self._leave_slowly(tag)

    def _leave_slowly(self, tag: int) -> None:
        with self._lock:
            self._running.pop(tag, None)
            if self.taken:
                raise Abandoned
            if self._softened:
                _set_exception(threading.get_ident(), None)
                self._softened = False

    # The parent's side

    def holds(self, tag: int) -> bool:
        """Say whether the task runs, and is the child's to end."""
        return tag in self._running

    def soften(self, tag: int, interrupt: Callable[[type[BaseException]], None]) -> bool:
        """Have a soft time limit raised in this task and in no other; say whether it still ran."""
        with self._lock:
            # Out of the child's hands meanwhile: should it be through now, it waits for the lock.
            if not self._running.pop(tag, None):
                return False
            self._softened = True
            interrupt(SoftTimeLimitExceeded)
            self._running[tag] = True
            return True

    def take(self, tag: int) -> bool:
        """Take the end of this task away from the child, for good; say whether it still ran."""
        with self._lock:
            self.taken = self._running.pop(tag, None) is not None or self.taken
            return self.taken


def interrupt(ident: int, exc: type[BaseException]) -> None:
    """Raise an exception in a thread, as soon as it runs Python; in a coroutine, at its await."""
    if not coroutines.interrupt(ident, exc()):
        _set_exception(ident, exc)


def is_safe(ident: int) -> bool:
    """Say whether a thread may be interrupted: it is in the task's code and holds no lock."""
    return is_in_task(sys._current_frames().get(ident))


def is_at_a_lock(ident: int) -> bool:
    """Say whether a thread may just have taken a lock that nobody would ever give up."""
    return takes_lock(sys._current_frames().get(ident))


def takes_lock(frame: FrameType | None) -> bool:
    """Say whether a frame takes a lock, or gives one up, by a function written in Python."""
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_NOT_INSIDE):
        if frame.f_code.co_name in _LOCKING:
            return True
        frame = frame.f_back
    return False


def is_in_task(frame: FrameType | None) -> bool:
    """Say whether a frame is in the task's code, and in nobody else's that it called."""
    innermost = frame
    while frame is not None:
        name: str = frame.f_globals.get("__name__", "")
        if name == "celery.app.trace":
            return frame is not innermost
        if name.startswith(_NOT_INSIDE):
            return False
        frame = frame.f_back
    return False


def _set_exception(ident: int, exc: type[BaseException] | None) -> None:
    value = None if exc is None else ctypes.py_object(exc)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), value)
