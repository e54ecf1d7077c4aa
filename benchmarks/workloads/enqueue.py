"""Enqueue one by one, from eight threads (or coroutines), and many in one call."""

from __future__ import annotations

from benchmarks.stage import Figures
from benchmarks.stage import rate
from benchmarks.stage import Stage

_THREADS = 8
#: Untimed tasks that open connections and fill caches.
_WARM_UP = 20


def measure(stage: Stage) -> Figures:
    """Enqueue while no worker runs; have all but the many run afterwards, and verify them."""
    queue, plan = stage.queue, stage.plan
    figures: Figures = {}
    sent = queue.enqueue_each(stage.numbers(_WARM_UP))
    numbers = stage.numbers(plan.singles)
    with rate(figures, "enqueue", plan.singles):
        sent += queue.enqueue_each(numbers)
    numbers = stage.numbers(plan.singles)
    parts = [numbers[start::_THREADS] for start in range(_THREADS)]
    with rate(figures, "enqueue_threads", plan.singles):
        sent += queue.enqueue_from_several(parts)
    if queue.enqueues_many:
        numbers = stage.numbers(plan.many)
        with rate(figures, "enqueue_many", plan.many):
            queue.enqueue_many(numbers)
    with stage.worker() as process:
        stage.wait_for_results(sent, process)
    stage.answers(sent)
    return figures
