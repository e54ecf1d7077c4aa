"""What a workload plays on: one contender, its queue, its workers, and nothing of other trials.

A :class:`Stage` hands out numbers for tasks, starts workers, waits for results and verifies
every one of them. The workloads themselves are in ``benchmarks.workloads``.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.apps.body import Answer
from benchmarks.contenders import BY_NAME
from benchmarks.queues.base import Sent
from benchmarks.servers import SERVERS
from benchmarks.worker import running_worker
from benchmarks.worker import WorkerProcess

Figures = dict[str, float]

#: Waiting is given up when the slowest contender would have been done twice.
_WAIT_SECONDS = 60.0
_WAIT_RATE = 40.0
#: The last tasks of a backlog, whose results are looked at first.
_TAIL = 500
#: Tasks enqueued in one call when many are to wait.
_FILL = 10_000


class WrongResult(Exception):
    """A task was lost, run twice, or answered wrongly."""


@dataclass(frozen=True)
class Plan:
    """What to do in one trial. Numbers of tasks are already scaled to the contender."""

    contender: str
    workload: str
    folder: str
    #: Tasks in a backlog that is drained.
    tasks: int
    #: Tasks that are enqueued one by one, and as many from several threads.
    singles: int
    #: Tasks that are enqueued in one call.
    many: int
    #: Single tasks for the latency, cut off after ``call_seconds``.
    calls: int
    call_seconds: float
    #: How long producers and workers work together.
    seconds: float
    rest_seconds: float
    #: Tasks to have waiting, and results to have stored, cut off after ``fill_seconds``.
    waiting: int
    stored: int
    fill_seconds: float


class Stage:
    """One contender, set up for one trial."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.contender = BY_NAME[plan.contender]
        self.folder = Path(plan.folder)
        self._servers = [SERVERS[name] for name in self.contender.servers]
        self._next = 0
        self._logs = itertools.count()
        for server in self._servers:
            server.empty()
        self.queue = self.contender.open(self.folder)
        self.queue.prepare()

    def close(self) -> None:
        """Leave nothing behind that is not in the trial's folder."""
        self.queue.close()
        for server in self._servers:
            server.empty()

    def numbers(self, count: int) -> range:
        """Return numbers that no other task has."""
        self._next += count
        return range(self._next - count, self._next)

    def log(self) -> Path:
        """Return a file for what a process writes."""
        return self.folder / f"process-{next(self._logs)}.log"

    def last_words(self) -> str:
        """Return the end of what each process wrote."""
        logs = sorted(self.folder.glob("process-*.log"))
        return "\n".join(log.read_text(errors="replace")[-1000:] for log in logs)

    def worker(self) -> contextlib.AbstractContextManager[WorkerProcess]:
        """Run the contender's workers while the block lasts."""
        return running_worker(
            self.contender.commands(self.folder),
            log=self.log(),
            environment=self.contender.environment(self.folder),
        )

    def server_cpu_seconds(self) -> float:
        """Return the processor time that the contender's servers have used."""
        return sum(server.cpu_seconds() for server in self._servers)

    def server_memory(self) -> float:
        """Return the memory of the contender's servers in MB."""
        return sum(server.memory() for server in self._servers)

    def fill(self, count: int, seconds: float) -> list[Sent]:
        """Enqueue ``count`` tasks as fast as can be, or as many as can be within ``seconds``."""
        size = max(100, int(_FILL * self.contender.scale))
        stop_at = time.monotonic() + seconds
        sent: list[Sent] = []
        while len(sent) < count and time.monotonic() < stop_at:
            sent += self.queue.enqueue_many(self.numbers(min(size, count - len(sent))))
        return sent

    def wait_for_results(self, sent: Sequence[Sent], process: WorkerProcess) -> float:
        """Wait until all results are stored; return when that was seen.

        Only the tail is looked at until it is complete, to leave the processor to the worker.
        """
        ids = [task.id for task in sent]
        self._wait(ids[-1:], process, len(ids))
        self._wait(ids[-_TAIL:], process, len(ids))
        seen_at = time.time()
        if self.queue.count_results(ids) == len(ids):
            return seen_at
        self._wait(ids, process, len(ids))
        return time.time()

    def _wait(self, ids: Sequence[object], process: WorkerProcess, tasks: int) -> None:
        def stored() -> bool:
            process.check()
            return self.queue.count_results(ids) == len(ids)

        seconds = _WAIT_SECONDS + tasks / _WAIT_RATE
        if not wait_until(stored, seconds):
            missing = len(ids) - self.queue.count_results(ids)
            raise WrongResult(f"{missing} of {len(ids)} tasks have no result after {seconds:.0f} s")

    def answers(self, sent: Sequence[Sent]) -> list[Answer]:
        """Return what the tasks answered; raise :exc:`WrongResult` unless all are right."""
        return [right(task.number, self.queue.read(task.id)) for task in sent]


def right(number: int, answer: Answer | None) -> Answer:
    """Return the answer; raise :exc:`WrongResult` if it is not that of the task."""
    if answer is None or answer.total != 2 * number:
        raise WrongResult(f"task {number} answered {answer}")
    return answer


def refuse_second_runs(answers: Sequence[Answer]) -> None:
    """Raise :exc:`WrongResult` if workers ran more tasks than have answered."""
    runs: dict[int, int] = defaultdict(int)
    for answer in answers:
        runs[answer.pid] = max(runs[answer.pid], answer.run)
    if sum(runs.values()) != len(answers):
        raise WrongResult(f"{sum(runs.values())} runs of {len(answers)} tasks")


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for the condition; say whether it came true in time."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.01)
    return True


@contextlib.contextmanager
def rate(figures: Figures, name: str, count: int) -> Iterator[None]:
    """Time the block and keep tasks per second under ``name``."""
    began = time.perf_counter()
    yield
    figures[name] = count / (time.perf_counter() - began)


def percentiles(name: str, values: Sequence[float]) -> Figures:
    """Return p50, and p99 where there are enough values to speak of one."""
    if not values:
        return {}
    ordered = sorted(values)
    figures = {f"{name}_p50": ordered[len(ordered) // 2]}
    if len(ordered) >= 100:
        figures[f"{name}_p99"] = ordered[int(len(ordered) * 0.99)]
    return figures
