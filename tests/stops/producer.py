"""Sends tasks of mixed length, some of which no grace period is enough for."""

from __future__ import annotations

import random
import sys
from typing import Any

from faults.producer import Kind
from faults.producer import main
from faults.producer import quick_early
from faults.producer import quick_late
from faults.producer import slow_early
from faults.producer import slow_late
from faults.program import celery
from faults.program import early
from faults.program import late

from celeriac.config import own_setting

GRACE = own_setting(celery.conf, "worker_grace_period")


def long_early(rng: random.Random) -> Any:
    return early.s(rng.uniform(GRACE, 2 * GRACE))


def long_late(rng: random.Random) -> Any:
    return late.s(rng.uniform(GRACE, 2 * GRACE))


#: Kinds of work, and how often each is sent.
KINDS: dict[Kind, int] = {
    quick_early: 40,
    quick_late: 40,
    slow_early: 6,
    slow_late: 6,
    long_early: 1,
    long_late: 1,
}


if __name__ == "__main__":
    main(int(sys.argv[1]), KINDS)
