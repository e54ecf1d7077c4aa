"""Raw ``sqlite3``: see ``benchmarks.limit``."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import limit
from benchmarks.apps.body import Answer
from benchmarks.queues.base import Queue
from benchmarks.queues.base import Sent
from benchmarks.queues.base import sent_at_once


class LimitQueue(Queue):
    """A message's id is the number that it carries: no other has the same."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._threads = threading.local()

    def prepare(self) -> None:
        limit.create_tables(self._connection)

    def enqueue(self, x: int) -> int:
        limit.publish(self._connection, [(x, json.dumps([x, x]))])
        return x

    def enqueue_many(self, numbers: Sequence[int]) -> list[Sent]:
        began = time.time()
        limit.publish(self._connection, ((x, json.dumps([x, x])) for x in numbers))
        return sent_at_once(numbers, numbers, began)

    def count_results(self, ids: Sequence[int]) -> int:
        statement = "SELECT count(*) FROM result WHERE id IN (SELECT value FROM json_each(?))"
        (count,) = self._connection.execute(statement, (json.dumps(ids),)).fetchone()
        return int(count)

    def read(self, id: int) -> Answer | None:
        statement = "SELECT meta FROM result WHERE id = ?"
        row = self._connection.execute(statement, (id,)).fetchone()
        return Answer.parse(json.loads(row[0])) if row else None

    def call(self, x: int, timeout: float) -> Answer:
        watch = limit.ChangeWatch(self._connection)
        self.enqueue(x)
        limit_at = time.monotonic() + timeout
        while time.monotonic() < limit_at:
            if answer := self.read(x):
                return answer
            watch.wait()
        raise TimeoutError(f"no result for message {x} after {timeout} s")

    @property
    def _connection(self) -> sqlite3.Connection:
        """This thread's own."""
        if "connection" not in vars(self._threads):
            self._threads.connection = limit.open_queue(self.folder, self.broker)
        connection: sqlite3.Connection = self._threads.connection
        return connection
