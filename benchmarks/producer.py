"""Processes that enqueue while a trial's workers work: ``python -m benchmarks.producer``.

Such a process opens the contender's queue, says that it is ready, waits for the word, enqueues
for some seconds and writes what it sent. It keeps either to a rate, or to a number of tasks in
flight: a queue that only grows would make every delay a matter of how long the trial is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import BY_NAME
from benchmarks.queues.base import Queue
from benchmarks.queues.base import Sent
from benchmarks.stage import Stage
from benchmarks.worker import ROOT

#: Tasks in flight of all producers together.
_IN_FLIGHT = 500
#: Enqueued between two looks at how many are in flight.
_STEP = 10
#: No producer sends more in one trial.
_NUMBERS = 10_000_000
#: Seconds between two looks while nothing may be sent.
_POLL = 0.001


@dataclass(frozen=True)
class Order:
    """What one producer shall do."""

    contender: str
    folder: str
    #: The numbers of its tasks start here.
    first: int
    seconds: float
    in_flight: int
    #: Tasks per second; 0 is as fast as can be.
    rate: float


class Producers:
    """Processes that have begun to enqueue."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def sent(self) -> list[Sent]:
        """Wait until their time is over; return all that they sent."""
        sent = [task for process in self._processes for task in _sent(process)]
        return sorted(sent, key=lambda task: task.at)


@contextlib.contextmanager
def producing(
    stage: Stage, seconds: float, *, processes: int, rate: float = 0.0
) -> Iterator[Producers]:
    """Start producers, all at the same moment, and end them with the block."""
    in_flight = _IN_FLIGHT // processes
    orders = [
        Order(
            stage.contender.name,
            str(stage.folder),
            stage.numbers(_NUMBERS).start,
            seconds,
            in_flight,
            rate,
        )
        for _ in range(processes)
    ]
    running = [_start(stage, order) for order in orders]
    try:
        for process in running:
            _ready(process)
        for process in running:
            _say(process, "go")
        yield Producers(running)
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _sent(process: subprocess.Popen[str]) -> list[Sent]:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a producer ended with {process.returncode}")
    return [Sent(*task) for task in json.loads(output)]


def _start(stage: Stage, order: Order) -> subprocess.Popen[str]:
    with stage.log().open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.producer"],
            cwd=ROOT,
            env={**os.environ, **stage.contender.environment(stage.folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    _say(process, json.dumps(dataclasses.asdict(order)))
    return process


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError("a producer ended before it began")


def main() -> None:
    """Be one producer."""
    order = Order(**json.loads(sys.stdin.readline()))
    queue = BY_NAME[order.contender].open(Path(order.folder))
    print("ready", flush=True)
    sys.stdin.readline()
    produce = _at_rate if order.rate else _as_fast_as_possible
    print(json.dumps(produce(queue, order)), flush=True)
    queue.close()


def _as_fast_as_possible(queue: Queue, order: Order) -> list[Sent]:
    sent: list[Sent] = []
    stop_at = time.monotonic() + order.seconds
    while time.monotonic() < stop_at:
        first = order.first + len(sent)
        sent += queue.enqueue_each(range(first, first + _STEP))
        while _too_many(queue, sent, order.in_flight) and time.monotonic() < stop_at:
            time.sleep(_POLL)
    return sent


def _too_many(queue: Queue, sent: list[Sent], in_flight: int) -> bool:
    """Say whether the task that was sent so many tasks ago is not done yet."""
    return len(sent) >= in_flight and not queue.count_results([sent[-in_flight].id])


def _at_rate(queue: Queue, order: Order) -> list[Sent]:
    sent: list[Sent] = []
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < order.seconds:
        due = int(elapsed * order.rate) + 1
        first = order.first + len(sent)
        sent += queue.enqueue_each(range(first, order.first + due))
        time.sleep(max(0.0, began + due / order.rate - time.monotonic()))
    return sent


if __name__ == "__main__":
    main()
