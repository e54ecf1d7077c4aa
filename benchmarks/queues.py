"""How a trial talks to a contender: enqueue, see that results are stored, read them.

For the Celery contenders enqueueing and reading go through Celery's public API. Only
:meth:`Queue.count_results` looks into the store behind it, because asking for thousands of
results one by one would take processor time from the worker that is being measured.
"""

from __future__ import annotations

import abc
import contextlib
import importlib
import json
import sqlite3
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import group

from benchmarks import limit
from benchmarks.apps.body import Answer
from benchmarks.contenders import Contender

#: How many tasks go into one ``group()``, or into one transaction of the raw limit.
CHUNK = 1000


class Queue(abc.ABC):
    """One contender as its producer sees it. A task's id is whatever the contender uses."""

    @abc.abstractmethod
    def enqueue(self, x: int) -> Any:
        """Enqueue one task that adds ``x`` to itself; return its id."""

    @abc.abstractmethod
    def enqueue_many(self, numbers: Sequence[int]) -> list[Any]:
        """Enqueue a task for each number at once; return their ids."""

    @abc.abstractmethod
    def count_results(self, ids: Sequence[Any]) -> int:
        """Return how many of the tasks have their results stored."""

    @abc.abstractmethod
    def read(self, id: Any) -> Answer | None:
        """Return the stored answer of one task, or ``None`` if it did not succeed."""

    @abc.abstractmethod
    def call(self, x: int, timeout: float) -> Answer:
        """Enqueue one task and wait for its result."""

    def server_cpu_seconds(self) -> float:
        """Return the processor time that the contender's server has used."""
        return 0.0

    def server_memory(self) -> float:
        """Return the resident memory of the contender's server in MB."""
        return 0.0

    def close(self) -> None:
        """Leave nothing behind that is not in the trial's folder."""
        return


class CeleryQueue(Queue):
    """A contender with Celery's API."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        program = importlib.import_module(contender.app)
        self.app = program.celery
        self._task = program.add_together
        self.broker, self.results = contender.urls(folder)

    def enqueue(self, x: int) -> Any:
        return self._task.delay(x, x).id

    def enqueue_many(self, numbers: Sequence[int]) -> list[Any]:
        result: Any = group(self._task.s(x, x) for x in numbers).apply_async()
        return [each.id for each in result.results]

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

    def count_results(self, ids: Sequence[Any]) -> int:
        from celeriac.engines import open_engine

        results = open_engine(self.broker).get_results(ids)
        return sum(result.state == "SUCCESS" for result in results.values())


class RedisQueue(CeleryQueue):
    """Stock Celery on a Redis database that is this benchmark's alone."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        super().__init__(contender, folder)
        self._client = connect_redis(self.broker)
        self._client.flushdb()

    def count_results(self, ids: Sequence[Any]) -> int:
        return int(self._client.exists(*(f"celery-task-meta-{id}" for id in ids)))

    def server_cpu_seconds(self) -> float:
        info = self._client.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    def server_memory(self) -> float:
        return float(self._client.info("memory")["used_memory_rss"]) / 1e6

    def close(self) -> None:
        self._client.flushdb()


class SQLAlchemyQueue(CeleryQueue):
    """Stock Celery on kombu's SQLAlchemy transport and Celery's database backend."""

    _COUNT = "SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS' AND task_id IN "

    def count_results(self, ids: Sequence[Any]) -> int:
        path = self.results.removeprefix("db+sqlite:///")
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
            try:
                return sum(self._count(connection, some) for some in _chunks(ids, 500))
            except sqlite3.OperationalError:  # the worker has not created the table yet
                return 0

    def _count(self, connection: sqlite3.Connection, ids: Sequence[Any]) -> int:
        marks = ", ".join("?" * len(ids))
        (count,) = connection.execute(f"{self._COUNT} ({marks})", ids).fetchone()
        return int(count)


class LimitQueue(Queue):
    """Raw ``sqlite3``. Ids are numbers that the producer counts."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        self._connection = limit.open_queue(folder, contender.synchronous)
        self._watch = limit.ChangeWatch(self._connection)
        self._last = 0

    def enqueue(self, x: int) -> int:
        return self.enqueue_many([x])[0]

    def enqueue_many(self, numbers: Sequence[int]) -> list[int]:
        first = self._last + 1
        self._last += len(numbers)
        ids = list(range(first, self._last + 1))
        bodies = (json.dumps([x, x]) for x in numbers)
        limit.publish(self._connection, zip(ids, bodies, strict=True))
        return ids

    def count_results(self, ids: Sequence[int]) -> int:
        statement = "SELECT count(*) FROM result WHERE id BETWEEN ? AND ?"
        (count,) = self._connection.execute(statement, (ids[0], ids[-1])).fetchone()
        return int(count)

    def read(self, id: int) -> Answer | None:
        statement = "SELECT meta FROM result WHERE id = ?"
        row = self._connection.execute(statement, (id,)).fetchone()
        return Answer.parse(json.loads(row[0])) if row else None

    def call(self, x: int, timeout: float) -> Answer:
        id = self.enqueue(x)
        limit_at = time.monotonic() + timeout
        while time.monotonic() < limit_at:
            if answer := self.read(id):
                return answer
            self._watch.wait()
        raise TimeoutError(f"no result for message {id} after {timeout} s")


def connect_redis(url: str) -> Any:
    """Return a client for one Redis database."""
    import redis

    return redis.Redis.from_url(url)


def open_queue(contender: Contender, folder: Path) -> Queue:
    """Return the contender's queue, empty, with its files in ``folder``."""
    return _KINDS[contender.kind](contender, folder)


_KINDS: dict[str, Callable[[Contender, Path], Queue]] = {
    "celeriac": CeleriacQueue,
    "redis": RedisQueue,
    "sqlalchemy": SQLAlchemyQueue,
    "limit": LimitQueue,
}


def _chunks(ids: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
