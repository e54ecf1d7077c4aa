"""Dramatiq on Redis. It has no call that enqueues many."""

from __future__ import annotations

from typing import Any

from dramatiq import Message
from dramatiq.results import ResultMissing

from benchmarks.apps.body import Answer
from benchmarks.apps.dramatiq_app import add_together
from benchmarks.apps.dramatiq_app import results
from benchmarks.queues.base import Queue
from benchmarks.queues.base import RedisResults


class DramatiqQueue(RedisResults, Queue):
    """Dramatiq's public API."""

    enqueues_many = False

    def enqueue(self, x: int) -> Any:
        return add_together.send(x, x).message_id

    def result_key(self, id: Any) -> str:
        return str(results.build_message_key(_message(id)))

    def read(self, id: Any) -> Answer | None:
        try:
            return Answer.parse(results.get_result(_message(id)))
        except ResultMissing:
            return None

    def call(self, x: int, timeout: float) -> Answer:
        message = add_together.send(x, x)
        return Answer.parse(results.get_result(message, block=True, timeout=int(timeout * 1000)))


def _message(id: str) -> Message[str]:
    """Return a message that has the same place in the result backend."""
    return add_together.message(0, 0).copy(message_id=id)
