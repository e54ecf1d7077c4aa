"""Huey, on SQLite and on Redis. It has no call that enqueues many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.apps.body import Answer
from benchmarks.apps.huey_app import add_together
from benchmarks.apps.huey_app import huey
from benchmarks.queues.base import chunks
from benchmarks.queues.base import Queue


class HueyQueue(Queue):
    """Huey's public API. Results are read without taking them out of the store."""

    enqueues_many = False

    def enqueue(self, x: int) -> Any:
        return add_together(x, x).id

    def read(self, id: Any) -> Answer | None:
        text = huey.result(id, preserve=True)
        return Answer.parse(text) if text else None

    def call(self, x: int, timeout: float) -> Answer:
        result = add_together(x, x)
        # It polls: as shipped each 50 ms and then ever less.
        return Answer.parse(result.get(blocking=True, timeout=timeout, max_delay=0.005))


class SqliteHueyQueue(HueyQueue):
    """Results in a table."""

    _COUNT = "SELECT count(*) FROM kv WHERE queue = ? AND key IN "

    def count_results(self, ids: Sequence[Any]) -> int:
        return sum(self._count(some) for some in chunks(ids))

    def _count(self, ids: Sequence[Any]) -> int:
        marks = ", ".join("?" * len(ids))
        ((count,),) = huey.storage.sql(f"{self._COUNT} ({marks})", (huey.name, *ids), results=True)
        return int(count)


class RedisHueyQueue(HueyQueue):
    """Results in one hash."""

    def count_results(self, ids: Sequence[Any]) -> int:
        storage = huey.storage
        values = (storage.conn.hmget(storage.result_key, some) for some in chunks(ids))
        return sum(value is not None for some in values for value in some)
