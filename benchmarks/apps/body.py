"""What every contender's task does, so that only the queue around it differs."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

#: How many bodies this process has run. The greatest number that each child reports must add
#: up to the number of tasks, or a task was run twice.
_runs = 0


class Answer(NamedTuple):
    """What a task's result says."""

    total: int
    started: float
    ended: float
    pid: int
    run: int

    @classmethod
    def parse(cls, text: str) -> Answer:
        """Read the result of :func:`timed_sum`."""
        total, started, ended, pid, run = text.split()
        return cls(int(total), float(started), float(ended), int(pid), int(run))


def timed_sum(x: int, y: int) -> str:
    """Add two numbers, and say when, where and as which run of its process.

    The answer is one text: Celery makes a representation of every result for its log, and that
    of a list of five costs more than the rest of this function.
    """
    global _runs
    started = time.time()
    _runs += 1
    return f"{x + y} {started!r} {time.time()!r} {os.getpid()} {_runs}"
