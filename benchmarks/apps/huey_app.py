"""Huey, on SQLite or on Redis."""

from __future__ import annotations

import os

from huey import RedisHuey
from huey import SqliteHuey

from benchmarks.apps.body import timed_sum
from benchmarks.servers import QUEUE

_url = os.environ["BENCHMARK_BROKER_URL"]
huey = (
    RedisHuey(QUEUE, url=_url)
    if _url.startswith("redis")
    else SqliteHuey(QUEUE, filename=_url, timeout=30)
)


@huey.task()
def add_together(x: int, y: int) -> str:
    """Add two numbers."""
    return timed_sum(x, y)
