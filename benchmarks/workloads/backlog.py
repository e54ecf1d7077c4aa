"""Drain the same number of tasks when these are all, and when very many more wait behind them."""

from __future__ import annotations

from benchmarks.stage import Figures
from benchmarks.stage import Stage
from benchmarks.workloads.drain import drain


def measure(stage: Stage) -> Figures:
    """Return the speed of both. Many are as many as could be enqueued in the time for it."""
    plan = stage.plan
    alone = stage.queue.enqueue_many(stage.numbers(plan.tasks))
    figures = {"backlog_small": len(alone), "backlog_small_drain": drain(stage, alone)}
    waiting = stage.fill(plan.waiting, plan.fill_seconds)
    drained = drain(stage, waiting[: plan.tasks])
    return figures | {"backlog_large": len(waiting), "backlog_large_drain": drained}
