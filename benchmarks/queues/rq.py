"""RQ. Its jobs and results are Redis keys that expire."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rq import Queue as Jobs
from rq.job import Job
from rq.results import Result

from benchmarks.apps.body import Answer
from benchmarks.apps.rq_app import add_together
from benchmarks.queues.base import Queue
from benchmarks.queues.base import RedisResults
from benchmarks.queues.base import Sent
from benchmarks.queues.base import sent_at_once
from benchmarks.servers import connect_redis
from benchmarks.servers import QUEUE

#: Seconds that a result lives: longer than a trial.
_RESULT_TTL = 7200


class RQQueue(RedisResults, Queue):
    """RQ's public API."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._jobs = Jobs(QUEUE, connection=connect_redis(self.broker))

    def enqueue(self, x: int) -> Any:
        return self._enqueue(x).id

    def _enqueue(self, x: int) -> Job:
        return self._jobs.enqueue(add_together, args=(x, x), result_ttl=_RESULT_TTL)

    def enqueue_many(self, numbers: Sequence[int]) -> list[Sent]:
        began = time.time()
        prepared = [
            Jobs.prepare_data(add_together, args=(x, x), result_ttl=_RESULT_TTL) for x in numbers
        ]
        return sent_at_once(numbers, [job.id for job in self._jobs.enqueue_many(prepared)], began)

    def result_key(self, id: Any) -> str:
        return str(Result.get_key(id))

    def read(self, id: Any) -> Answer | None:
        return _answer(Job.fetch(id, connection=self._jobs.connection).latest_result())

    def call(self, x: int, timeout: float) -> Answer:
        answer = _answer(self._enqueue(x).latest_result(timeout=int(timeout)))
        if answer is None:
            raise TimeoutError(f"no result for {x} after {timeout} s")
        return answer


def _answer(result: Result | None) -> Answer | None:
    return Answer.parse(result.return_value) if result and result.return_value else None
