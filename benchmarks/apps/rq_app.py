"""RQ needs no more than a function; the worker command names Redis."""

from __future__ import annotations

from benchmarks.apps.body import timed_sum


def add_together(x: int, y: int) -> str:
    """Add two numbers."""
    return timed_sum(x, y)
