"""SAQ on Redis. It has no call that enqueues many and returns before they are done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from saq.job import Job
from saq.job import Status

from benchmarks.apps.body import Answer
from benchmarks.apps.saq_app import add_together
from benchmarks.apps.saq_app import queue
from benchmarks.queues.base import AsyncQueue

#: Seconds that a job and its result live: longer than a trial.
_TTL = 7200
#: Seconds to wait before asking again. ``Job.refresh()`` reads first and subscribes then, so it
#: misses a job that ends in between.
_ASK_AGAIN = 1.0


class SAQQueue(AsyncQueue):
    """SAQ's public API."""

    enqueues_many = False

    async def send(self, x: int) -> Any:
        return (await self._enqueue(x)).key

    async def _enqueue(self, x: int) -> Job:
        job = await queue.enqueue(add_together.__name__, x=x, y=x, ttl=_TTL)
        assert job is not None
        return job

    def count_results(self, ids: Sequence[Any]) -> int:
        jobs = self.run(queue.jobs(ids))
        return sum(job is not None and job.status == Status.COMPLETE for job in jobs)

    def read(self, id: Any) -> Answer | None:
        job = self.run(queue.job(id))
        return Answer.parse(job.result) if job and job.status == Status.COMPLETE else None

    def call(self, x: int, timeout: float) -> Answer:
        return self.run(self._call(x, timeout))

    async def _call(self, x: int, timeout: float) -> Answer:
        limit_at = time.monotonic() + timeout
        job = await self._enqueue(x)
        while not job.completed:
            if time.monotonic() > limit_at:
                raise TimeoutError(f"no result for {x} after {timeout} s")
            await job.refresh(until_complete=_ASK_AGAIN)
        return Answer.parse(job.result)

    def close(self) -> None:
        self.run(queue.disconnect())
        super().close()
