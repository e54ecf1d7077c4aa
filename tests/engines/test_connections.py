"""Many threads of one process on one queue file."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from celeriac.engines import EngineError
from celeriac.engines.base import Result
from celeriac.engines.connections import MOST
from celeriac.engines.sqlite import SQLiteEngine

MANY = 3 * MOST


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.sqlite3"


@pytest.fixture
def engine(path: Path) -> Iterator[SQLiteEngine]:
    with closing(SQLiteEngine(f"sqlite:///{path}?busy_timeout=0.5")) as engine:
        engine.list_tasks()
        yield engine


def test_threads_share_connections_where_there_are_many(engine: SQLiteEngine, path: Path) -> None:
    everybody_read = threading.Barrier(MANY)

    def read_and_write(number: int) -> int:
        engine.list_tasks()
        everybody_read.wait(10)
        files = _times_open(path)
        engine.store_results([Result(str(number), "SUCCESS", b"")])
        return files

    with ThreadPoolExecutor(MANY) as threads:
        files = list(threads.map(read_and_write, range(MANY)))

    assert MOST // 2 < max(files) <= MOST
    assert len(engine.get_results([str(number) for number in range(MANY)])) == MANY


def test_all_who_wait_for_a_locked_file_are_told_in_time(engine: SQLiteEngine, path: Path) -> None:
    def write(number: int) -> float:
        began = time.monotonic()
        with pytest.raises(EngineError, match=r"stayed locked for 0\.5 s"):
            engine.store_results([Result(str(number), "SUCCESS", b"")])
        return time.monotonic() - began

    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(8) as threads:
            waits = list(threads.map(write, range(8)))
        db.execute("ROLLBACK")

    assert min(waits) >= 0.5
    assert max(waits) < 2.0  # One after another it would be 4.


def _times_open(path: Path) -> int:
    return sum(_is_open_as(name, path) for name in os.listdir("/proc/self/fd"))


def _is_open_as(name: str, path: Path) -> bool:
    try:
        return Path(f"/proc/self/fd/{name}").samefile(path)
    except OSError:  # Another thread closed it meanwhile.
        return False
