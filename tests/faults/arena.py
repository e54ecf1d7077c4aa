"""Workers and producers over one queue file, started again whenever they end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import psutil
from programs import celery_command
from programs import Program
from waiting import wait_until

from celeriac.engines import Engine
from celeriac.engines import EngineError
from celeriac.engines import open_engine
from celeriac.engines.base import TaskInfo
from faults.clock import Clock
from faults.journal import Journal

TESTS = Path(__file__).parent.parent
#: How long what is left may take once nothing disturbs any more (seconds).
SETTLE = 120.0
#: More than the clock is ever ahead, and than any task's countdown (seconds).
AHEAD = 86400.0 + 60
#: How long an operation waits for the lock before it fails: some faults hold it for longer.
BUSY_TIMEOUT = 10.0


@dataclass(frozen=True)
class Plan:
    """What is to run, and for how long."""

    seed: int
    seconds: float
    #: Mean seconds between two faults.
    pause: float = 0.8
    durability: str = "full"
    workers: int = 2
    #: Children of each worker.
    concurrency: int = 2
    #: The module that sends.
    producer: str = "faults.producer"
    #: Settings of the program.
    conf: Mapping[str, Any] = field(default_factory=dict)


class Arena:
    """What runs, and what happened to it.

    :param disk: the folder of the queue file.
    :param is_small: whether that is a disk of its own, which may be filled.
    """

    def __init__(self, folder: Path, plan: Plan, disk: Path, *, is_small: bool) -> None:
        self.folder, self.disk, self.is_small = folder, disk, is_small
        options = f"durability={plan.durability}&busy_timeout={BUSY_TIMEOUT:g}"
        self.url = f"sqlite:///{disk}/queue.sqlite3?{options}"
        self.engine: Engine = open_engine(self.url)
        self.journal = Journal(folder / "journal")
        self.clock = Clock(folder) if shutil.which("gcc") else None
        #: What callers saw of tasks that had succeeded: the newest of each moment.
        self.seen: dict[str, bytes] = {}
        self._plan = plan
        self._names = [f"w{number}" for number in range(plan.workers)]
        self._workers: dict[str, Program] = {}
        self._producer: Program | None = None
        self._started = 0
        self._timers: list[threading.Timer] = []

    # What runs

    def start(self) -> None:
        """Start what does not run; producers until all is to be settled."""
        self._start_workers()
        if not (self.folder / "stop").exists():
            self.start_producer()

    def start_producer(self) -> None:
        """Start the producer, if it does not run."""
        if self._producer is None or not self._producer.running:
            seed = str(self._plan.seed + self._started)
            producer = (sys.executable, "-m", self._plan.producer, seed)
            self._producer = self._start(*producer, name="producer")

    def start_worker(
        self, name: str, *, before: Sequence[str] = (), pool: str = "", soft: float = 0.0
    ) -> Program:
        """Start a worker.

        :param before: what to put before its command.
        :param soft: how long its soft shutdown takes (seconds).
        """
        return self._start(
            *before,
            *celery_command("-A", "faults.program", "worker", "-l", "WARNING"),
            *("-n", f"{name}@faults", "-c", str(self._plan.concurrency)),
            *(("-P", pool) if pool else ()),
            name=name,
            worker_soft_shutdown_timeout=soft,
        )

    def workers(self) -> list[Program]:
        """Return the workers that run."""
        return [worker for worker in self._workers.values() if worker.running]

    def ready(self) -> list[Program]:
        """Return the workers that have children, as soon as there are two, or all.

        Where a worker takes seconds to start, all would otherwise spend their lives starting.
        """
        enough = min(2, len(self._names))
        found: list[Program] = []

        def is_enough() -> bool:
            self.start()
            found[:] = [worker for worker in self.workers() if children(worker)]
            return len(found) >= enough

        wait_until(is_enough, 60, interval=0.05, message="workers that run")
        return found

    def children(self) -> list[psutil.Process]:
        """Return the children of all workers."""
        return [child for worker in self.workers() for child in children(worker)]

    @property
    def producer(self) -> Program:
        assert self._producer is not None
        return self._producer

    def look(self) -> None:
        """Look, as callers would, at results of tasks that just ended."""
        ended = [event.words[0] for event in self.journal.tail() if event.what == "end"]
        with suppress(EngineError):
            for task_id, result in self.engine.get_results(ended).items():
                if result.state == "SUCCESS":
                    self.seen.setdefault(task_id, result.meta)

    def impossible(self) -> Iterator[str]:
        """Yield what can not be done here."""
        if not self.is_small:
            yield "a full disk, which takes a user who may mount one"
        if self.clock is None:
            yield "a clock that jumps, which takes gcc"

    # What happens to it

    def kill(self, what: str, *pids: int) -> None:
        """Kill processes at the same moment, and note between which moments that was."""
        for pid in pids:
            before = time.monotonic()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.journal.write("killed", what, pid, before)

    def send(self, worker: Program, number: signal.Signals) -> None:
        """Have a worker end as a user would."""
        self.journal.write("signalled", worker.pid, number.name)
        worker.send(number)

    def set_clock(self, offset: float) -> None:
        """Let the clock of all that runs jump, and note it."""
        assert self.clock is not None
        self.clock.set(offset)
        self.journal.write("jumped", offset)

    def obstruct(self, seconds: float, go_on: Callable[[], object]) -> None:
        """Let what stands in the way go on for so many seconds, and note it."""
        self.journal.write("obstacle", seconds)
        self.later(seconds, go_on)

    def later(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something in so many seconds, and before all is settled."""
        timer = threading.Timer(seconds, action)
        timer.start()
        self._timers.append(timer)

    # The end

    def settle(self) -> None:
        """Let the producer stop and the workers finish, if they do in time."""
        for timer in self._timers:
            timer.join()
        if self.clock is not None:
            # For what was to run soon, and was sent while the clock was ahead.
            self.set_clock(AHEAD)
        (self.folder / "stop").touch()
        self.producer.wait(30)
        # The one that now starts in its place knows what nobody knew before.
        self.send(self.ready()[0], signal.SIGTERM)
        deadline = time.monotonic() + SETTLE
        while self._is_anything_left() and time.monotonic() < deadline:
            self._start_workers()
            time.sleep(0.2)

    def left(self) -> list[TaskInfo]:
        """Return what is still to be run."""
        return [info for info in self.engine.list_tasks() if info.status != "dead"]

    def stop(self) -> None:
        """End everything."""
        for program in self._workers.values():
            program.stop(timeout=30)
        if self._producer is not None:
            self._producer.kill()
        self.engine.close()

    def _is_anything_left(self) -> bool:
        # The callback of a chord whose last member's process died is sent by another, a little
        # later.
        now = self.clock.time() if self.clock else time.time()
        return bool(self.left() or self.engine.ready_chords(now))

    def _start_workers(self) -> None:
        for number, name in enumerate(self._names):
            if name not in self._workers or not self._workers[name].running:
                # Every other one knows Celery's soft shutdown.
                self._workers[name] = self.start_worker(name, soft=number % 2)

    def _start(self, *command: str, name: str, **conf: Any) -> Program:
        log_path = self.folder / f"{name}-{self._started}.log"
        self._started += 1
        env = {
            "FAULTS_FOLDER": str(self.folder),
            "FAULTS_URL": self.url,
            "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
            "FAULTS_CONF": json.dumps({**self._plan.conf, **conf}),
            **(self.clock.env if self.clock else {}),
        }
        return Program(command, log_path=log_path, cwd=self.folder, env=env)


def children(worker: Program) -> list[psutil.Process]:
    """Return the children of a worker, also of one that is just ending."""
    try:
        return worker.children()
    except psutil.NoSuchProcess:
        return []
