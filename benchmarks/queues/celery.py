"""The contenders with Celery's API: Celeriac, and stock Celery on what it can use."""

from __future__ import annotations

import contextlib
import importlib
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import group

from benchmarks.apps.body import Answer
from benchmarks.contenders import Contender
from benchmarks.queues.base import chunks
from benchmarks.queues.base import Queue
from benchmarks.queues.base import RedisResults
from benchmarks.queues.base import Sent
from benchmarks.queues.base import sent_at_once


class CeleryQueue(Queue):
    """Celery's public API, whatever is below it."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        super().__init__(contender, folder)
        program = importlib.import_module(contender.command[contender.command.index("-A") + 1])
        self.app = program.celery
        self._task = program.add_together

    def enqueue(self, x: int) -> Any:
        return self._task.delay(x, x).id

    def enqueue_many(self, numbers: Sequence[int]) -> list[Sent]:
        began = time.time()
        result: Any = group(self._task.s(x, x) for x in numbers).apply_async()
        return sent_at_once(numbers, [each.id for each in result.results], began)

    def count_results(self, ids: Sequence[Any]) -> int:
        return sum(self.app.AsyncResult(id).ready() for id in ids)

    def read(self, id: Any) -> Answer | None:
        # One look, not get(): a result that is not there is a failure, not something to await.
        meta = self.app.backend.get_task_meta(id)
        return Answer.parse(meta["result"]) if meta["status"] == "SUCCESS" else None

    def call(self, x: int, timeout: float) -> Answer:
        return Answer.parse(self._task.delay(x, x).get(timeout=timeout))


class CeleriacQueue(CeleryQueue):
    """Celeriac on an engine."""

    def enqueue_many(self, numbers: Sequence[int]) -> list[Sent]:
        began = time.time()
        results = self._task.delay_many((x, x) for x in numbers)
        return sent_at_once(numbers, [each.id for each in results], began)

    def count_results(self, ids: Sequence[Any]) -> int:
        results = self.app.backend.engine.get_results(ids)
        return sum(result.state == "SUCCESS" for result in results.values())


class RedisResultsQueue(RedisResults, CeleryQueue):
    """Stock Celery with any broker and its results in Redis."""

    def result_key(self, id: Any) -> str:
        return f"celery-task-meta-{id}"


class SQLAlchemyQueue(CeleryQueue):
    """Stock Celery on kombu's SQLAlchemy transport and Celery's database backend."""

    _COUNT = "SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS' AND task_id IN "

    def count_results(self, ids: Sequence[Any]) -> int:
        path = self.results.removeprefix("db+sqlite:///")
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
            try:
                return sum(self._count(connection, some) for some in chunks(ids))
            except sqlite3.OperationalError:  # the worker has not created the table yet
                return 0

    def _count(self, connection: sqlite3.Connection, ids: Sequence[Any]) -> int:
        marks = ", ".join("?" * len(ids))
        (count,) = connection.execute(f"{self._COUNT} ({marks})", ids).fetchone()
        return int(count)
