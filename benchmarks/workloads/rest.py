"""What workers cost that do little: their start and end, memory, processor time at rest."""

from __future__ import annotations

import time

from benchmarks.stage import Figures
from benchmarks.stage import Stage
from benchmarks.worker import WorkerProcess


def measure(stage: Stage) -> Figures:
    """Start workers on one waiting task, give them some work, and then nothing to do."""
    first = stage.queue.enqueue_each(stage.numbers(1))
    began = time.time()
    with stage.worker() as process:
        stage.wait_for_results(first, process)
        (answer,) = stage.answers(first)
        some = stage.queue.enqueue_each(stage.numbers(stage.plan.singles))
        stage.wait_for_results(some, process)
        stage.answers(some)
        # The last of the cleaning up is not rest.
        time.sleep(min(1.0, stage.plan.rest_seconds))
        figures = {
            "start_up": answer.started - began,
            "memory": process.memory(),
            "processes": len(process.tree()),
            "server_memory": stage.server_memory(),
            **_at_rest(stage, process),
        }
        return {**figures, "stop_seconds": process.stop()}


def _at_rest(stage: Stage, process: WorkerProcess) -> Figures:
    worker, server, began = process.cpu_seconds(), stage.server_cpu_seconds(), time.monotonic()
    time.sleep(stage.plan.rest_seconds)
    percent = 100 / (time.monotonic() - began)
    return {
        "rest_cpu": (process.cpu_seconds() - worker) * percent,
        "rest_server_cpu": (stage.server_cpu_seconds() - server) * percent,
    }
