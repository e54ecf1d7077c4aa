"""One contender, measured once, in a process of its own.

Enqueue, start the worker on what waits, time the drain, verify every result, let it rest, then
send single tasks. ``python -m benchmarks.trial`` reads a :class:`Plan` and writes the figures,
both as JSON; ``benchmarks.__main__`` starts it.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.apps.body import Answer
from benchmarks.contenders import BY_NAME
from benchmarks.machine import other_load
from benchmarks.queues import CHUNK
from benchmarks.queues import open_queue
from benchmarks.queues import Queue
from benchmarks.worker import running_worker
from benchmarks.worker import WorkerProcess

#: Untimed tasks that open connections and fill caches.
_WARM_UP = 20
#: A trial is given up when the slowest contender would have been done twice.
_DRAIN_SECONDS = 60.0
_DRAIN_RATE = 40.0
_CALL_SECONDS = 30.0
#: The last tasks of a backlog, whose results are looked at first.
_TAIL = 500

Figures = dict[str, float]


class WrongResult(Exception):
    """A task was lost, run twice, or answered wrongly."""


@dataclass(frozen=True)
class Plan:
    """What to do in one trial."""

    contender: str
    folder: str
    #: Tasks in the backlog that is drained, those enqueued one by one included.
    tasks: int
    singles: int
    #: Single tasks for the latency, cut off after ``call_seconds``.
    calls: int
    call_seconds: float
    rest_seconds: float


def run(plan: Plan) -> Figures:
    """Measure everything; raise if any result is missing or wrong."""
    contender = BY_NAME[plan.contender]
    folder = Path(plan.folder)
    figures: Figures = {"other_load": other_load()}
    queue = open_queue(contender, folder)
    try:
        ids, numbers = _fill(queue, plan, figures)
        worker = running_worker(
            contender.worker_command(folder),
            log=folder / "worker.log",
            environment=contender.environment(folder),
        )
        with worker as process:
            _drain(queue, process, ids, numbers, figures)
            _rest(queue, process, plan.rest_seconds, figures)
            _latency(queue, plan, figures)
            figures["stop_seconds"] = process.stop()
    finally:
        queue.close()
    return figures


def _fill(queue: Queue, plan: Plan, figures: Figures) -> tuple[list[Any], list[int]]:
    """Enqueue the backlog: some tasks one by one, then the others many at once."""
    numbers = list(range(plan.tasks))
    warm_up, rest = numbers[:_WARM_UP], numbers[_WARM_UP:]
    singles, many = rest[: plan.singles], rest[plan.singles :]
    ids = [queue.enqueue(x) for x in warm_up]
    with _rate(figures, "enqueue", len(singles)):
        ids += [queue.enqueue(x) for x in singles]
    chunks = [many[start : start + CHUNK] for start in range(0, len(many), CHUNK)]
    with _rate(figures, "enqueue_many", len(many)):
        for chunk in chunks:
            ids += queue.enqueue_many(chunk)
    return ids, numbers


def _drain(
    queue: Queue,
    process: WorkerProcess,
    ids: Sequence[Any],
    numbers: Sequence[int],
    figures: Figures,
) -> None:
    # From the first result on: what the worker needed to start is not the tasks' cost.
    _wait_until(lambda: queue.count_results(ids[:1]) == 1, process, len(ids))
    cpu_before = process.cpu_seconds() + queue.server_cpu_seconds()
    readable_at = _wait_for_all(queue, process, ids)
    cpu = process.cpu_seconds() + queue.server_cpu_seconds() - cpu_before
    answers = [queue.read(id) for id in ids]
    good = _verify(answers, numbers)
    first = min(answer.started for answer in good)
    last = max(answer.ended for answer in good)
    figures["tasks"] = len(ids)
    figures["drain"] = len(ids) / (last - first)
    figures["drain_until_readable"] = len(ids) / (readable_at - first)
    figures["drain_cpu_us"] = cpu / len(ids) * 1e6


def _wait_for_all(queue: Queue, process: WorkerProcess, ids: Sequence[Any]) -> float:
    """Wait until all results are stored; return when that was seen.

    Only the tail is looked at until it is complete, to leave the processor to the worker.
    """
    _wait_until(lambda: queue.count_results(ids[-1:]) == 1, process, len(ids))
    _wait_until(lambda: queue.count_results(ids[-_TAIL:]) == len(ids[-_TAIL:]), process, len(ids))
    seen_at = time.time()
    if queue.count_results(ids) == len(ids):
        return seen_at
    _wait_until(lambda: queue.count_results(ids) == len(ids), process, len(ids))
    return time.time()


def _wait_until(condition: Callable[[], bool], process: WorkerProcess, tasks: int) -> None:
    give_up_at = time.monotonic() + _DRAIN_SECONDS + tasks / _DRAIN_RATE
    while not condition():
        process.check()
        if time.monotonic() > give_up_at:
            raise WrongResult(f"not all of {tasks} tasks have a result")
        time.sleep(0.01)


def _verify(answers: Iterable[Answer | None], numbers: Iterable[int]) -> list[Answer]:
    """Return the answers; raise unless each task ran once and answered rightly."""
    good = []
    runs: dict[int, int] = defaultdict(int)
    for number, answer in zip(numbers, answers, strict=True):
        if answer is None or answer.total != 2 * number:
            raise WrongResult(f"task {number} answered {answer}")
        runs[answer.pid] = max(runs[answer.pid], answer.run)
        good.append(answer)
    if sum(runs.values()) != len(good):
        raise WrongResult(f"{sum(runs.values())} runs of {len(good)} tasks")
    return good


def _rest(queue: Queue, process: WorkerProcess, seconds: float, figures: Figures) -> None:
    """Take the memory after the work, and what doing nothing costs."""
    time.sleep(1)  # the last of the drain's cleaning up is not rest
    figures["memory"] = process.memory()
    figures["processes"] = len(process.tree())
    figures["server_memory"] = queue.server_memory()
    worker, server, began = process.cpu_seconds(), queue.server_cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    percent = 100 / (time.monotonic() - began)
    figures["rest_cpu"] = (process.cpu_seconds() - worker) * percent
    figures["rest_server_cpu"] = (queue.server_cpu_seconds() - server) * percent


def _latency(queue: Queue, plan: Plan, figures: Figures) -> None:
    """Send single tasks to the resting worker, each after the answer to the one before."""
    starts, results = [], []
    chance = random.Random(plan.contender)
    stop_at = time.monotonic() + plan.call_seconds
    for number in range(-2, plan.calls):
        time.sleep(chance.uniform(0.005, 0.045))
        sent_at = time.time()
        answer = queue.call(number, _CALL_SECONDS)
        received_at = time.time()
        if answer.total != 2 * number:
            raise WrongResult(f"task {number} answered {answer}")
        if number >= 0:  # the first two open connections
            starts.append((answer.started - sent_at) * 1e3)
            results.append((received_at - sent_at) * 1e3)
        if time.monotonic() > stop_at:
            break
    figures["calls"] = len(starts)
    figures |= _percentiles("start", starts) | _percentiles("result", results)


def _percentiles(name: str, values: list[float]) -> Figures:
    """Return p50, and p99 where there are enough values to speak of one."""
    if not values:
        return {}
    ordered = sorted(values)
    figures = {f"{name}_p50": ordered[len(ordered) // 2]}
    if len(ordered) >= 100:
        figures[f"{name}_p99"] = ordered[int(len(ordered) * 0.99)]
    return figures


@contextlib.contextmanager
def _rate(figures: Figures, name: str, count: int) -> Iterator[None]:
    """Time the block and keep tasks per second under ``name``."""
    began = time.perf_counter()
    yield
    figures[name] = count / (time.perf_counter() - began)


if __name__ == "__main__":
    print(json.dumps(run(Plan(**json.load(sys.stdin)))))
