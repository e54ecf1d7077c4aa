"""Dramatiq on Redis, with its result backend."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.apps.body import timed_sum

results = RedisBackend(url=os.environ["BENCHMARK_RESULT_BACKEND"])
broker = RedisBroker(url=os.environ["BENCHMARK_BROKER_URL"])
#: Milliseconds that results live: longer than a trial.
broker.add_middleware(Results(backend=results, store_results=True, result_ttl=7_200_000))
dramatiq.set_broker(broker)


@dramatiq.actor
def add_together(x: int, y: int) -> str:
    """Add two numbers."""
    return timed_sum(x, y)
