"""How a worker that hangs begins anew: the same program, under the same process id.

The watchdog's thread does it (:mod:`.watchdog`), because no other can be relied on. Whatever the
hanging loop holds, a lock of the pool or of logging, must not stop it: so it takes none, and what
it can not do without has a bound, after which the process ends.

Children are told to stop and may finish their tasks within ``worker_grace_period``. Then the
process executes its own command line. The kernel closes what it had open, its presence lock too, so
that the new worker finds an old one that died, and deals with what that held as with every death
(:mod:`.redelivery`).
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from typing import Any

import click
from celery.utils.log import get_logger
from celery.worker import state

from celeriac.stopping import is_program_stopping

from .child import STDERR

logger = get_logger(__name__)

#: A worker begins anew at most so many times
MOST = 3
#: within so many seconds. The next time it ends, and leaves the rest to its supervisor.
WITHIN = 600.0
#: How long logging and telling children may take, before the process ends without (seconds).
BOUND = 30.0
#: Where the process id and the times of restarts (monotonic seconds) are handed on.
VARIABLE = "CELERIAC_RESTARTS"


class Restart:
    """How one worker begins anew, or ends.

    Made in the thread that runs the worker, which must be the program's main thread, under
    ``celery worker``: what else runs in a program that starts a worker by itself is not ours to
    end, so there the worker alone is told to end.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        context = click.get_current_context(silent=True)
        is_command = context is not None and context.command.name == "worker"
        self._is_program = is_command and threading.current_thread() is threading.main_thread()

    def begin(self, reason: str) -> None:
        """Say what hangs and where; return only where the worker is no program of its own."""
        if not self._is_program:
            state.should_stop = os.EX_SOFTWARE
            logger.critical("The worker is wedged: %s. It is to end.\n%s", reason, stacks())
            return
        try:
            self._begin_anew(reason)
        finally:
            os._exit(os.EX_SOFTWARE)

    def _begin_anew(self, reason: str) -> None:
        now = time.monotonic()
        times = [*_recent(now), now]
        is_last = len(times) > MOST or is_program_stopping()
        faulthandler.dump_traceback_later(BOUND, exit=True, file=STDERR)
        then = "It ends" if is_last else "It begins anew"
        logger.critical("The worker is wedged: %s. %s.\n%s", reason, then, stacks())
        faulthandler.cancel_dump_traceback_later()
        self._consumer.pool.abandon()
        if not is_last:
            os.environ[VARIABLE] = f"{os.getpid()}:{','.join(map(str, times))}"
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def stacks() -> str:
    """Return where each thread of the process is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


def _recent(now: float) -> list[float]:
    """Return when this process began anew, as far as that counts."""
    pid, _, times = os.environ.get(VARIABLE, "").partition(":")
    if pid != str(os.getpid()):
        return []  # Of a worker that started this program.
    return [at for at in map(float, times.split(",")) if now - at < WITHIN]
