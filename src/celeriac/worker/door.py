"""The door: where threads with nothing to do wait for their turn to wait for messages.

One of them sleeps until there is a message, claims, and lets the next one in. So a message wakes
one thread, not a thousand; and they do not even look up now and then, as a child otherwise does.
Who came last is the next: with little to do the same few threads do it all, and what a thread
makes when it first runs something (its event loop, say) the others never make.
"""

from __future__ import annotations

import threading


class _Turn:
    """One who waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.has_come = False

    def wait(self, timeout: float) -> None:
        """Sleep until told to look up."""
        self._lock.acquire(timeout=timeout)

    def tell(self, *, has_come: bool) -> None:
        """Have it look up."""
        self.has_come = has_come
        self._lock.release()


class Door:
    """The door of one pool."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_taken = False
        #: In the order in which they came.
        self._waiting: dict[_Turn, None] = {}

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def enter(self, timeout: float) -> bool:
        """Wait for the turn; say whether it came. If not, time is over, or somebody called.

        :param timeout: the longest wait (seconds).
        """
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return True
            turn = _Turn()
            self._waiting[turn] = None
        turn.wait(timeout)
        with self._lock:
            self._waiting.pop(turn, None)
            return turn.has_come

    def leave(self) -> None:
        """Let the next one in."""
        with self._lock:
            if self._waiting:
                self._waiting.popitem()[0].tell(has_come=True)
            else:
                self._is_taken = False

    def call(self) -> None:
        """Have all who wait look up: there is something to obey."""
        with self._lock:
            while self._waiting:
                self._waiting.popitem()[0].tell(has_come=False)
