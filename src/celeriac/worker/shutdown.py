"""How a worker ends when it is told to: at once, in time, and with nothing lost.

Celery tells of a signal from within its handler. At that moment the board is told, and no task
begins any more, in any child. What was not started returns to its queue; what runs has
``worker_grace_period`` seconds. Then it is ended, and :mod:`.redelivery` hands it back. What the
worker has not done :data:`LATE` seconds later (a locked file, a thread that never ends) it leaves
to the next one: its board says that it was stopping, so that nothing counts as a death.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import billiard
from celery.utils.log import get_logger
from celery.worker import state

from .board import Board
from .native import original

logger = get_logger(__name__)

#: How long after the grace period the worker exits, whatever holds it up (seconds).
LATE = 1.5

_LATE_WORDS = (
    b"The worker could not end in time, and exits as it is. "
    b"The next one that runs or starts takes over what it held.\n"
)


class Shutdown:
    """One worker's end.

    :param grace: how long it waits for what runs (seconds); ``None`` for ever.
    :param is_program: whether the process is there for the worker, and may be ended with it.
    """

    def __init__(self, grace: float | None, *, is_program: bool) -> None:
        self.grace = grace
        self._is_program = is_program
        self._threads = frozenset(threading.enumerate())
        self._board: Board | None = None
        self._deadline: float | None = None
        self._is_announced = False
        #: Whether no task begins any more; so it is, too, in a soft shutdown, before the end began.
        self.is_halted = False
        self.has_begun = False
        self._is_done = False

    def begin(self) -> None:
        """Let no task begin any more. A signal's handler may call it, and more than once."""
        self.halt()
        if self.has_begun:
            return
        self.has_begun = True
        if self.grace is not None:
            self._deadline = time.monotonic() + max(0.0, self.grace)
            if self._is_program:
                # A thread of the system's, which a greenlet that computes can not hold up. Started
                # without threading's locks, one of which the handler may have interrupted.
                original("_thread", "start_new_thread")(self._exit_late, (self._deadline,))

    def halt(self) -> None:
        """Let no task begin any more, and what runs take its time."""
        self.is_halted = True
        if self._board is not None:
            self._board.stop()

    def watch(self, board: Board) -> None:
        """Take the board, which may come after :meth:`begin`."""
        self._board = board
        if self.is_halted:
            board.stop()

    def left(self) -> float | None:
        """Return how much of the grace period is left (seconds), or ``None`` if it has no end."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether the grace period is over."""
        return self.left() == 0.0

    def announce(self, running: int) -> None:
        """Log, once, how many tasks the worker waits for."""
        if self._is_announced:
            return
        self._is_announced = True
        grace = self.grace
        until = "" if grace is None else f", for at most {grace:g} s (worker_grace_period)"
        if running:
            noun = "task" if running == 1 else "tasks"
            logger.warning("Waiting for %d running %s to end%s", running, noun, until)

    def leave(self, *, goes_on: bool) -> None:
        """Let the board go, and the process end by itself, unless a task goes on in it.

        Python waits for the threads that a task started, too, as long as they run.
        """
        self._board = None
        threads = set(threading.enumerate()) - self._threads
        self._is_done = not goes_on and all(thread.daemon for thread in threads)

    def _exit_late(self, deadline: float) -> None:
        # No logging here: its locks may be what holds the worker up.
        sleep = original("time", "sleep")
        while not self._is_done:
            left = deadline + LATE - time.monotonic()
            if left <= 0:
                os.write(2, _LATE_WORDS)
                # The pool's, and beat with -B, which would go on without their parent.
                for process in billiard.active_children():
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                os._exit(state.should_terminate or state.should_stop or 0)
            sleep(min(left, 0.5))
