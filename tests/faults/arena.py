"""Workers and producers over one queue file, started again whenever they end."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from programs import celery_command
from programs import Program

from celeriac.engines import Engine
from celeriac.engines import open_engine
from faults.journal import Journal

TESTS = Path(__file__).parent.parent
#: How long what is left may take once nothing disturbs any more (seconds).
SETTLE = 120.0


class Arena:
    """What runs, and what happened to it.

    :param workers: how many, of ``concurrency`` children each.
    :param producer: the module that sends.
    :param conf: settings of the workers.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        durability: str,
        workers: int,
        concurrency: int,
        producer: str = "faults.producer",
        conf: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.seed = folder, seed
        self.url = f"sqlite:///{folder}/queue.sqlite3?durability={durability}"
        self.engine: Engine = open_engine(self.url)
        self.journal = Journal(folder / "journal")
        self._concurrency = concurrency
        self._names = [f"w{number}" for number in range(workers)]
        self._workers: dict[str, Program] = {}
        self._producer: Program | None = None
        self._producing, self._conf = producer, dict(conf or {})
        self._started = 0

    # What runs

    def start(self) -> None:
        """Start what does not run."""
        self._start_workers()
        self.start_producer()

    def start_producer(self) -> None:
        """Start the producer, if it does not run."""
        if self._producer is None or not self._producer.running:
            producer = (sys.executable, "-m", self._producing, str(self.seed + self._started))
            self._producer = self._start(*producer, name="producer")

    def start_worker(self, name: str, *, before: Sequence[str] = (), pool: str = "") -> Program:
        """Start a worker.

        :param before: what to put before its command.
        """
        return self._start(
            *before,
            *celery_command("-A", "faults.program", "worker", "-l", "WARNING"),
            *("-n", f"{name}@faults", "-c", str(self._concurrency)),
            *(("-P", pool) if pool else ()),
            name=name,
        )

    def workers(self) -> list[Program]:
        """Return the workers that run."""
        return [worker for worker in self._workers.values() if worker.running]

    def children(self) -> list[psutil.Process]:
        """Return the children of all workers."""
        return [child for worker in self.workers() for child in _children(worker)]

    @property
    def producer(self) -> Program:
        assert self._producer is not None
        return self._producer

    # What happens to it

    def kill(self, *pids: int) -> None:
        """Kill processes at the same moment, and note it."""
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            self.journal.write("killed", pid)

    def send(self, worker: Program, number: signal.Signals) -> None:
        """Have a worker end as a user would."""
        self.journal.write("signalled", worker.pid, number.name)
        worker.send(number)

    # The end

    def settle(self) -> None:
        """Let the producer stop and the workers finish, if they do in time."""
        (self.folder / "stop").touch()
        self.producer.wait(30)
        deadline = time.monotonic() + SETTLE
        while self._is_anything_left() and time.monotonic() < deadline:
            self._start_workers()
            time.sleep(0.2)

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
        return bool(self.engine.list_tasks() or self.engine.ready_chords(time.time()))

    def _start_workers(self) -> None:
        for name in self._names:
            if name not in self._workers or not self._workers[name].running:
                self._workers[name] = self.start_worker(name)

    def _start(self, *command: str, name: str) -> Program:
        log_path = self.folder / f"{name}-{self._started}.log"
        self._started += 1
        env = {
            "FAULTS_FOLDER": str(self.folder),
            "FAULTS_URL": self.url,
            "FAULTS_CONF": json.dumps(self._conf),
            "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
        }
        return Program(command, log_path=log_path, cwd=self.folder, env=env)


def _children(worker: Program) -> list[psutil.Process]:
    try:
        return worker.children()
    except psutil.NoSuchProcess:
        return []
