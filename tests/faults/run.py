"""One run: start, disturb, settle, read what is left."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from faults.arena import Arena
from faults.check import Run
from faults.disturb import schedule


def run(
    folder: Path,
    *,
    seed: int,
    seconds: float,
    pause: float = 1.5,
    durability: str = "full",
    workers: int = 2,
    concurrency: int = 2,
) -> Run:
    """Disturb workers and producers for ``seconds``; return what happened."""
    rng = random.Random(seed)
    arena = Arena(folder, seed, durability=durability, workers=workers, concurrency=concurrency)
    os.environ.update({"FAULTS_FOLDER": str(folder), "FAULTS_URL": arena.url})
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            arena.start()
            for fault in schedule(rng, pause):
                arena.journal.write("fault", fault.__name__)
                fault(arena, rng)
        arena.settle()
        return Run.read(arena)
    finally:
        arena.stop()
