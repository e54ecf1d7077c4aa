"""Procrastinate on PostgreSQL. It stores no results: the task writes its answer to a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.apps.body import Answer
from benchmarks.apps.procrastinate_app import add_together
from benchmarks.apps.procrastinate_app import app
from benchmarks.queues.base import Queue
from benchmarks.queues.base import Sent
from benchmarks.queues.base import sent_at_once
from benchmarks.servers import PostgreSQL


class ProcrastinateQueue(Queue):
    """Procrastinate's public API, without a running loop."""

    stores_results = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._opened = False
        self._answers = _AnswerFile(Path(self.results))

    def prepare(self) -> None:
        PostgreSQL(self.broker).create()
        self._open()
        app.schema_manager.apply_schema()

    def _open(self) -> None:
        if not self._opened:
            app.open()
            self._connection = psycopg.connect(self.broker, autocommit=True)
            self._opened = True

    def enqueue(self, x: int) -> Any:
        self._open()
        return add_together.defer(x=x, y=x)

    def enqueue_many(self, numbers: Sequence[int]) -> list[Sent]:
        began = time.time()
        ids = add_together.batch_defer(*({"x": x, "y": x} for x in numbers))
        return sent_at_once(numbers, ids, began)

    def count_results(self, ids: Sequence[Any]) -> int:
        statement = (
            "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded' AND id = ANY(%s)"
        )
        self._open()
        ((count,),) = self._connection.execute(statement, (list(ids),)).fetchall()
        return int(count)

    def read(self, id: Any) -> Answer | None:
        return self._answers.read(id)

    def call(self, x: int, timeout: float) -> Answer:
        limit_at = time.monotonic() + timeout
        id = self.enqueue(x)
        while time.monotonic() < limit_at:
            if answer := self._answers.read(id):
                return answer
            time.sleep(0.005)
        raise TimeoutError(f"no answer to {x} after {timeout} s")

    def close(self) -> None:
        if self._opened:
            self._connection.close()
            app.close()


class _AnswerFile:
    """What tasks appended to one file: the id of their job and the answer, a line each."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open()
        self._answers: dict[int, Answer] = {}

    def read(self, id: int) -> Answer | None:
        """Return the answer of a job, if it is there."""
        if id not in self._answers:
            for line in self._file:  # what came since
                job, _, answer = line.partition(" ")
                self._answers[int(job)] = Answer.parse(answer)
        return self._answers.get(id)
