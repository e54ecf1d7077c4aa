"""Send single tasks and wait for each: to workers at rest, and to workers at half their load."""

from __future__ import annotations

import random
import time

from benchmarks.producer import producing
from benchmarks.stage import Figures
from benchmarks.stage import percentiles
from benchmarks.stage import right
from benchmarks.stage import Stage
from benchmarks.workloads.mix import sustain
from benchmarks.workloads.mix import throughput
from benchmarks.workloads.mix import warm_up

#: Seconds to wait for one task.
_CALL_SECONDS = 30.0


def measure(stage: Stage) -> Figures:
    """Return the delays from the call to the start, and to the result in the caller's hands."""
    plan = stage.plan
    with stage.worker() as process:
        warm_up(stage, process)
        figures = _call(stage)
        capacity = throughput(*sustain(stage, process, plan.seconds / 4))
        with producing(stage, plan.call_seconds, processes=1, rate=capacity / 2) as producers:
            loaded = _call(stage)
            sent = producers.sent()
        stage.wait_for_results(sent, process)
        stage.answers(sent)
    figures["loaded_rate"] = len(sent) / plan.call_seconds
    return figures | {f"loaded_{name}": value for name, value in loaded.items()}


def _call(stage: Stage) -> Figures:
    starts, results = [], []
    chance = random.Random(stage.plan.contender)
    # Less than the load lasts: the first calls find it begun, the last do not outlast it.
    stop_at = time.monotonic() + stage.plan.call_seconds * 0.9
    for number in stage.numbers(stage.plan.calls):
        time.sleep(chance.uniform(0.005, 0.045))
        sent_at = time.time()
        answer = right(number, stage.queue.call(number, _CALL_SECONDS))
        received_at = time.time()
        starts.append((answer.started - sent_at) * 1e3)
        results.append((received_at - sent_at) * 1e3)
        if time.monotonic() > stop_at:
            break
    figures = percentiles("start", starts)
    return figures | percentiles("result", results) if stage.queue.stores_results else figures
