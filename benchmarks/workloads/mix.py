"""Producers and workers together for some seconds, with no more than so many tasks in flight."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.apps.body import Answer
from benchmarks.producer import producing
from benchmarks.queues.base import Sent
from benchmarks.stage import Figures
from benchmarks.stage import percentiles
from benchmarks.stage import Stage
from benchmarks.worker import WorkerProcess

_PRODUCERS = 2


def measure(stage: Stage) -> Figures:
    """Return what came through, and how long each task was on its way until its end."""
    with stage.worker() as process:
        warm_up(stage, process)
        sent, answers = sustain(stage, process, stage.plan.seconds)
    delays = [(answer.ended - task.at) * 1e3 for task, answer in zip(sent, answers, strict=True)]
    return {"mix": throughput(sent, answers), **percentiles("mix", delays)}


def warm_up(stage: Stage, process: WorkerProcess) -> None:
    """Wait until the workers work."""
    stage.wait_for_results(stage.queue.enqueue_each(stage.numbers(20)), process)


def sustain(
    stage: Stage, process: WorkerProcess, seconds: float
) -> tuple[list[Sent], list[Answer]]:
    """Have tasks enqueued and run at the same time; return them and their answers."""
    with producing(stage, seconds, processes=_PRODUCERS) as producers:
        sent = producers.sent()
    stage.wait_for_results(sent, process)
    return sent, stage.answers(sent)


def throughput(sent: Sequence[Sent], answers: Sequence[Answer]) -> float:
    """Return tasks per second, from the first that was sent to the end of the last."""
    began = min(task.at for task in sent)
    return len(sent) / (max(answer.ended for answer in answers) - began)
