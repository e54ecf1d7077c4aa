"""Raw ``sqlite3`` with no library around it: the least that a durable queue costs here.

One table of messages, one of results, batches of a hundred, two processes. No names of tasks,
no retries, no leases, no routing. As a worker: ``python -m benchmarks.limit <folder> <full>``.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

from benchmarks.apps.body import timed_sum
from benchmarks.contenders import CHILDREN

_BATCH = 100
_POLL_SECONDS = 0.001

_SCHEMA = """
CREATE TABLE message (
    id INTEGER PRIMARY KEY, body TEXT NOT NULL, claimed INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX message_waiting ON message (id) WHERE claimed = 0;
CREATE TABLE result (id INTEGER PRIMARY KEY, meta TEXT NOT NULL) WITHOUT ROWID;
"""
_CLAIM = """
UPDATE message SET claimed = 1
WHERE id IN (SELECT id FROM message WHERE claimed = 0 ORDER BY id LIMIT ?)
RETURNING id, body
"""

Row = tuple[int, str]


def open_queue(folder: Path, synchronous: str) -> sqlite3.Connection:
    """Open the queue file."""
    connection = sqlite3.connect(folder / "queue.sqlite3", timeout=30, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables in a new file."""
    connection.executescript(_SCHEMA)


def publish(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Store messages in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO message (id, body) VALUES (?, ?)", rows)
    connection.execute("COMMIT")


def claim(connection: sqlite3.Connection, limit: int = _BATCH) -> list[Row]:
    """Take up to ``limit`` messages."""
    connection.execute("BEGIN IMMEDIATE")
    rows = connection.execute(_CLAIM, (limit,)).fetchall()
    connection.execute("COMMIT")
    return rows


def complete(connection: sqlite3.Connection, results: list[Row]) -> None:
    """Store results and delete their messages in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO result (id, meta) VALUES (?, ?)", results)
    connection.executemany("DELETE FROM message WHERE id = ?", [(row[0],) for row in results])
    connection.execute("COMMIT")


class ChangeWatch:
    """Notices that another connection has committed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._version = -1

    def wait(self, timeout: float = 1.0) -> None:
        """Sleep until there was a commit, or until ``timeout`` seconds are over."""
        for _ in range(int(timeout / _POLL_SECONDS)):
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                self._version = version
                return
            time.sleep(_POLL_SECONDS)


def work(folder: Path, synchronous: str) -> None:
    """Claim, run and complete until SIGTERM."""
    connection = open_queue(folder, synchronous)
    watch = ChangeWatch(connection)
    while True:
        watch.wait()
        while rows := claim(connection):
            complete(connection, [(id, _run(body)) for id, body in rows])


def _run(body: str) -> str:
    return json.dumps(timed_sum(*json.loads(body)))


def main() -> None:
    """Fork the children and end them when told to end."""
    folder, synchronous = Path(sys.argv[1]), sys.argv[2]
    children = []
    for _ in range(CHILDREN):
        pid = os.fork()
        if pid == 0:
            work(folder, synchronous)
        children.append(pid)
    signal.signal(signal.SIGTERM, lambda number, frame: _end(children, frame))
    signal.pause()


def _end(children: list[int], frame: FrameType | None) -> None:
    for pid in children:
        os.kill(pid, signal.SIGTERM)
    for pid in children:
        os.waitpid(pid, 0)
    sys.exit(0)


if __name__ == "__main__":
    main()
