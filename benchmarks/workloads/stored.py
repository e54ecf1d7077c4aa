"""Drain the same number of tasks with no results stored, and with very many."""

from __future__ import annotations

import time

from benchmarks.stage import Figures
from benchmarks.stage import Stage
from benchmarks.workloads.drain import drain


def measure(stage: Stage) -> Figures:
    """Return the speed of both. Many are as many as could be had in the time for it."""
    fresh = _drain(stage)
    stored = stage.plan.tasks + _store(stage)
    return {"fresh_drain": fresh, "stored": stored, "stored_drain": _drain(stage)}


def _drain(stage: Stage) -> float:
    return drain(stage, stage.queue.enqueue_many(stage.numbers(stage.plan.tasks)))


def _store(stage: Stage) -> int:
    """Run tasks until enough results are stored; return how many more there are."""
    plan = stage.plan
    stop_at = time.monotonic() + plan.fill_seconds
    stored = 0
    with stage.worker() as process:
        while stored < plan.stored and time.monotonic() < stop_at:
            sent = stage.fill(plan.tasks, plan.fill_seconds)
            stage.wait_for_results(sent, process)
            stored += len(sent)
    return stored
