"""One run: a worker takes the place of another, again and again, and each is stopped under load.

A stop is what a container engine does: SIGTERM to the worker, and SIGKILL to all that is left
after :data:`PATIENCE` seconds. Where that is possible, every other worker is process 1 of a
namespace of its own.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

import psutil
from faults.arena import Arena
from faults.arena import Plan
from faults.story import Run
from namespaces import ALONE
from namespaces import process_1
from namespaces import why_not
from waiting import wait_until

from celeriac.engines.base import Worker

#: How long a container engine waits before it kills (seconds).
PATIENCE = 30.0
#: What is promised: how long after the grace period a worker takes to exit (seconds).
MARGIN = 2.0
#: What a death leaves in the log.
DEATH = "is run again: process"


@dataclass
class Stop:
    """One stop of one worker."""

    #: From the signal to the exit (seconds).
    seconds: float
    #: Sentences on what was promised and did not hold.
    broken: list[str]


@dataclass
class Stops:
    """All stops of a run, and what became of the tasks."""

    stops: list[Stop] = field(default_factory=list)
    run: Run = field(default_factory=Run)


def run(
    folder: Path,
    *,
    stops: int,
    seed: int,
    grace: float,
    margin: float = MARGIN,
    concurrency: int = 2,
    pool: str = "",
) -> Stops:
    """Stop so many workers under load; return what happened.

    :param margin: how long after the grace period a worker may take to exit (seconds).
    """
    rng = random.Random(seed)
    plan = Plan(
        seed,
        seconds=0,
        durability="normal",
        concurrency=concurrency,
        producer="stops.producer",
        conf={"worker_grace_period": grace},
    )
    disk = folder / "disk"
    disk.mkdir()
    arena = Arena(folder, plan, disk, is_small=False)
    os.environ.update({"FAULTS_FOLDER": str(folder), "FAULTS_URL": arena.url})
    done = Stops()
    running = []
    try:
        arena.start_producer()
        running.append(_Running(arena, 0, pool))
        for number in range(stops):
            running.append(_Running(arena, number + 1, pool))
            time.sleep(rng.uniform(0, 1))
            done.stops.append(running.pop(0).stop(grace + margin))
        running.pop().stop(grace + margin)
        arena.settle()
        done.run = Run.read(arena)
        return done
    finally:
        for worker in running:
            worker.program.kill()
        arena.stop()


class _Running:
    """A worker that runs."""

    def __init__(self, arena: Arena, number: int, pool: str) -> None:
        is_alone = number % 2 == 0 and not why_not()
        name = f"s{number}"
        self._arena, self._name = arena, name
        before = ALONE if is_alone else ()
        self.program = arena.start_worker(name, before=before, pool=pool)
        self._worker: Worker = wait_until(self._known, PATIENCE, message=lambda: self.program.log)
        process = process_1(self.program) if is_alone else psutil.Process(self.program.pid)
        self._process = process

    def _known(self) -> Worker | None:
        known = self._arena.engine.list_workers()
        return next((each for each in known if each.hostname.startswith(f"{self._name}@")), None)

    def stop(self, allowed: float) -> Stop:
        """Stop it, and look at what it leaves.

        :param allowed: how long that may take (seconds).
        """
        all_of_it = [self._process, *self._process.children(recursive=True)]
        told_at = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            self.program.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.program.kill()
        seconds = time.monotonic() - told_at
        return Stop(seconds, list(self._broken(seconds, allowed, all_of_it)))

    def _broken(
        self, seconds: float, allowed: float, all_of_it: list[psutil.Process]
    ) -> Iterator[str]:
        if seconds > allowed:
            yield f"{self._name} took {seconds:.2f} s to exit"
        if self.program.process.returncode:
            yield f"{self._name} exited with {self.program.process.returncode}"
        if left := [process for process in all_of_it if process.is_running()]:
            yield f"{self._name} left {left} running"
        if claimed := self._arena.engine.list_tasks(worker=self._worker.id, status="claimed"):
            yield f"{self._name} left {len(claimed)} claims, the first is {claimed[0]}"
        if files := list(self._arena.engine.folder.glob(f"*-{self._worker.id}")):
            yield f"{self._name} left {files}"
        if DEATH in self.program.log:
            yield f"{self._name} counted a death"
