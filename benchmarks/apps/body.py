"""What every contender's task does, so that only the queue around it differs."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

#: How many bodies this process has run. The greatest number that each child reports must add
#: up to the number of tasks, or a task was run twice.
_runs = 0


class Answer(NamedTuple):
    """What a task returns; JSON makes a list of it."""

    total: int
    started: float
    ended: float
    pid: int
    run: int


def timed_sum(x: int, y: int) -> Answer:
    """Add two numbers, and say when, where and as which run of its process."""
    global _runs
    started = time.time()
    _runs += 1
    return Answer(x + y, started, time.time(), os.getpid(), _runs)
