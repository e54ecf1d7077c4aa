"""TaskIQ on a Redis stream. It has no call that enqueues many."""

from __future__ import annotations

from typing import Any

from taskiq import AsyncTaskiqTask

from benchmarks.apps.body import Answer
from benchmarks.apps.taskiq_app import add_together
from benchmarks.apps.taskiq_app import broker
from benchmarks.queues.base import AsyncQueue
from benchmarks.queues.base import RedisResults

#: Seconds between two looks for a result; as shipped it is 0.2.
_CHECK_INTERVAL = 0.005


class TaskIQQueue(RedisResults, AsyncQueue):
    """TaskIQ's public API."""

    enqueues_many = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.run(broker.startup())

    async def send(self, x: int) -> Any:
        return (await add_together.kiq(x, x)).task_id

    def read(self, id: Any) -> Answer | None:
        return self.run(self._read(id))

    async def _read(self, id: Any) -> Answer | None:
        task = AsyncTaskiqTask(id, broker.result_backend)
        if not await task.is_ready():
            return None
        result = await task.get_result()
        return None if result.is_err else Answer.parse(result.return_value)

    def call(self, x: int, timeout: float) -> Answer:
        return self.run(self._call(x, timeout))

    async def _call(self, x: int, timeout: float) -> Answer:
        task = await add_together.kiq(x, x)
        result = await task.wait_result(check_interval=_CHECK_INTERVAL, timeout=timeout)
        return Answer.parse(result.return_value)

    def close(self) -> None:
        self.run(broker.shutdown())
        super().close()
