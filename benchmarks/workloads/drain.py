"""Start the workers on a backlog and time how fast it empties."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.apps.body import Answer
from benchmarks.queues.base import Sent
from benchmarks.stage import Figures
from benchmarks.stage import refuse_second_runs
from benchmarks.stage import Stage
from benchmarks.worker import WorkerProcess


def measure(stage: Stage) -> Figures:
    """Drain all, and see that each task ran once."""
    sent = stage.queue.enqueue_many(stage.numbers(stage.plan.tasks))
    figures: Figures = {"tasks": len(sent)}
    with stage.worker() as process:
        cpu = _cpu_seconds(stage, process, sent)
        readable_at = stage.wait_for_results(sent, process)
        cpu = _cpu_seconds(stage, process, sent) - cpu
        answers = stage.answers(sent)
    refuse_second_runs(answers)
    figures["drain"] = speed(answers)
    figures["drain_until_readable"] = len(sent) / (readable_at - _first(answers))
    figures["drain_cpu_us"] = cpu / len(sent) * 1e6
    return figures


def drain(stage: Stage, sent: Sequence[Sent]) -> float:
    """Start workers on a backlog that begins with ``sent``; return the speed, in tasks/s."""
    with stage.worker() as process:
        stage.wait_for_results(sent, process)
        return speed(stage.answers(sent))


def speed(answers: Sequence[Answer]) -> float:
    """Return tasks per second, from the start of the first to the end of the last."""
    return len(answers) / (max(answer.ended for answer in answers) - _first(answers))


def _first(answers: Sequence[Answer]) -> float:
    return min(answer.started for answer in answers)


def _cpu_seconds(stage: Stage, process: WorkerProcess, sent: Sequence[Sent]) -> float:
    """Return the processor time so far, once the first task is done.

    What the worker needed to start is not the tasks' cost.
    """
    stage.wait_for_results(sent[:1], process)
    return process.cpu_seconds() + stage.server_cpu_seconds()
