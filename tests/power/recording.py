"""A run whose writes and syncs are recorded."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from programs import celery_command
from programs import Program
from programs import run

HERE = Path(__file__).parent
#: The files that are recorded.
QUEUE, LOG, CONFIRMED = "queue.sqlite3", "queue.sqlite3-wal", "confirmed"

_HEADER = struct.Struct("=cIQI")


class Operation(NamedTuple):
    """One thing done to a file."""

    #: ``w`` for a write, ``t`` for a change of length, ``s`` and ``S`` for a sync's two ends.
    kind: str
    file: str
    #: Where it was written; the new length; the process that syncs.
    offset: int
    data: bytes


def record(folder: Path, seconds: float, durability: str) -> list[Operation]:
    """Let a producer and a worker run for so many seconds, and return what they wrote."""
    library = compile_recorder(folder)
    arena = folder / "arena"
    arena.mkdir()
    url = f"sqlite:///{arena}/{QUEUE}?durability={durability}"
    env = {
        "FAULTS_FOLDER": str(arena),
        "FAULTS_URL": url,
        "POWER_FOLDER": str(arena),
        "POWER_RECORD": str(folder / "record"),
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]),
    }
    command = celery_command("-A", "faults.program", "worker", "-c", "2", "-l", "INFO")
    worker = Program(command, log_path=folder / "worker.log", cwd=arena, env=env)
    try:
        worker.wait_for_log(" ready.")
        producer = [sys.executable, "-m", "power.producer", str(arena), str(seconds)]
        run(producer, cwd=arena, env=env, timeout=seconds + 60)
        # While the worker runs, nobody closes the last connection, so the log keeps its number.
        names = {(arena / name).stat().st_ino: name for name in (QUEUE, LOG, CONFIRMED)}
    finally:
        worker.stop()
    return [*read(folder / "record", names)]


def compile_recorder(folder: Path) -> Path:
    """Compile ``record.c`` into a library to preload."""
    library = folder / "record.so"
    command = ["gcc", "-shared", "-fPIC", "-O2", "-o", str(library), str(HERE / "record.c"), "-ldl"]
    subprocess.run(command, check=True)
    return library


def read(path: Path, names: dict[int, str]) -> Iterator[Operation]:
    """Yield what ``record.c`` wrote, of the files that have a name."""
    data = memoryview(path.read_bytes())
    at = 0
    while at < len(data):
        kind, number, offset, length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        if number in names:
            yield Operation(kind.decode(), names[number], offset, bytes(data[at : at + length]))
        at += length
