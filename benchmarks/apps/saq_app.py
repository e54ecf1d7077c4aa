"""SAQ on Redis."""

from __future__ import annotations

import os
from typing import Any

from saq import Queue

from benchmarks.apps.body import timed_sum

queue = Queue.from_url(os.environ["BENCHMARK_BROKER_URL"])


async def add_together(ctx: dict[str, Any], *, x: int, y: int) -> str:
    """Add two numbers."""
    return timed_sum(x, y)


settings = {"queue": queue, "functions": [add_together], "concurrency": 10}
