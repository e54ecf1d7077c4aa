"""TaskIQ with the broker that its documentation recommends: it acknowledges."""

from __future__ import annotations

import os

from taskiq_redis import RedisAsyncResultBackend
from taskiq_redis import RedisStreamBroker

from benchmarks.apps.body import timed_sum

broker = RedisStreamBroker(os.environ["BENCHMARK_BROKER_URL"]).with_result_backend(
    RedisAsyncResultBackend(os.environ["BENCHMARK_RESULT_BACKEND"])
)


@broker.task
async def add_together(x: int, y: int) -> str:
    """Add two numbers."""
    return timed_sum(x, y)
