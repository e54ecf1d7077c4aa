"""How many files the worker's process may have open, where many tasks run in it side by side.

Most systems begin a program with 1,024, and let it have many more if it asks. That is so low for
the sake of programs that use ``select()``, which knows no higher number; so a worker asks only if
it is to run that many tasks, and for no more than these may need.
"""

from __future__ import annotations

import math
import resource

from celery.utils.log import get_logger

logger = get_logger(__name__)

#: What a worker has open without any task, and then some.
_BASE = 128
#: What we open for a task: the stopwatch of its thread, and three for the event loop.
_OURS = 4
#: What a task that waits may open itself: a socket or two, and a place to wait for results.
_ITS_OWN = 4


def allow(tasks: int) -> None:
    """Allow this process to have open what so many tasks at once need, as far as it may."""
    may = _raise(_BASE + (_OURS + _ITS_OWN) * tasks)
    needed = _BASE + _OURS * tasks
    if may < needed:
        logger.warning(
            "The worker may have %d files open, and %d tasks at once may need %d. Start it with a "
            "lower -c, or raise the limit (ulimit -Hn, LimitNOFILE of systemd, --ulimit of Docker)",
            *(may, tasks, needed),
        )


def _raise(wanted: int) -> float:
    """Raise the limit if it is lower, and may be raised; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return math.inf
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if raised <= soft:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    except (OSError, ValueError):  # macOS has yet another limit, which it does not tell.
        return soft
    return raised
