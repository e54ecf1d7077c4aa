"""One run: start, disturb, settle, read what is left."""

from __future__ import annotations

import os
import random
import time
from contextlib import ExitStack
from pathlib import Path

from faults.arena import Arena
from faults.arena import Plan
from faults.disk import small_disk
from faults.disturb import FIRST
from faults.disturb import schedule
from faults.story import Run


def run(folder: Path, plan: Plan, *, may_mount: bool = True) -> Run:
    """Disturb workers and producers; return what happened.

    :param may_mount: whether the queue file is to be on a disk of its own, if that is possible.
    """
    disk = folder / "disk"
    with ExitStack() as stack:
        is_small = may_mount and stack.enter_context(small_disk(disk))
        disk.mkdir(exist_ok=True)
        arena = Arena(folder, plan, disk, is_small=is_small)
        stack.callback(arena.stop)
        os.environ.update({"FAULTS_FOLDER": str(folder), "FAULTS_URL": arena.url})
        disturb(arena, plan)
        arena.settle()
        return Run.read(arena)


def disturb(arena: Arena, plan: Plan) -> None:
    """Let one fault follow the other, until the time is over and the first ones have happened."""
    rng = random.Random(plan.seed)
    deadline = time.monotonic() + plan.seconds
    arena.start()
    for count, faults in enumerate(schedule(rng, plan.pause)):
        if time.monotonic() > deadline and count >= len(FIRST):
            break
        arena.start()
        arena.look()
        for fault in faults:
            arena.journal.write("fault", fault.__name__)
            fault(arena, rng)
