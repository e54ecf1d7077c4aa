"""Producers and workers, each a process of its own, over one queue file."""

from __future__ import annotations

import os
import sys
import time
from array import array
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from programs import celery_command
from programs import Program

from celeriac.engines import open_engine

#: How long the workers may take for what is left (seconds).
SETTLE = 120.0
#: What a log says when a lock was not had in time, or something else went wrong.
TROUBLE = ("refused:", "locked", "CRITICAL", "ERROR")


class Measured(NamedTuple):
    """What a run showed."""

    #: How long each ``delay()`` took (seconds), sorted.
    delays: list[float]
    #: Lines of logs that tell of trouble.
    trouble: list[str]
    #: How many tasks have no ``SUCCESS``.
    unfinished: int


def run(folder: Path, *, producers: int, workers: int, seconds: float) -> Measured:
    """Let them work for so many seconds, and then until all is done."""
    url = f"sqlite:///{folder}/queue.sqlite3"
    env = {
        "FAULTS_FOLDER": str(folder),
        "FAULTS_URL": url,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path]),
    }
    with ExitStack() as stack:

        def start(name: str, command: list[str]) -> Program:
            program = Program(command, log_path=folder / f"{name}.log", cwd=folder, env=env)
            stack.callback(program.stop, timeout=30)
            return program

        command = celery_command("-A", "faults.program", "worker", "-c", "1", "-l", "WARNING", "-n")
        for number in range(workers):
            start(f"worker-{number}", [*command, f"w{number}@contention"])
        sending = [sys.executable, "-m", "contention.producer"]
        paths = [folder / f"producer-{number}" for number in range(producers)]
        for program in [start(path.name, [*sending, str(path), str(seconds)]) for path in paths]:
            program.wait(seconds + 60)
        return _measure(folder, url, paths)


def _measure(folder: Path, url: str, paths: list[Path]) -> Measured:
    delays = array("d")
    for path in paths:
        delays.frombytes(path.with_suffix(".times").read_bytes())
    ids = [each for path in paths for each in path.with_suffix(".ids").read_text().split()]
    engine = open_engine(url)
    try:
        deadline = time.monotonic() + SETTLE
        while engine.list_tasks(limit=1) and time.monotonic() < deadline:
            time.sleep(0.1)
        states = [result.state for result in engine.get_results(ids).values()]
    finally:
        engine.close()
    logs = [line for path in folder.glob("*.log") for line in path.read_text().splitlines()]
    trouble = [line for line in logs if any(word in line for word in TROUBLE)]
    return Measured(sorted(delays), trouble, len(ids) - states.count("SUCCESS"))
