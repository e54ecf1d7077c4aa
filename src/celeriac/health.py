"""How workers and queues are, told from the database alone: no worker is asked.

:func:`look` reads an engine and judges each worker; :class:`Report` is what it saw, as text, as
JSON and as an exit code. ``celery health`` is the caller (:mod:`.commands`).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from time import time
from typing import Any
from typing import NamedTuple

from .engines import Engine
from .engines.base import Worker

#: A worker that lives and was not heard of for so long is wedged, or its process stopped
#: (seconds). One that goes on is heard of every five.
SILENCE = 20.0


class State(str, enum.Enum):
    """How a worker is."""

    IDLE = "idle"
    BUSY = "busy"
    WEDGED = "wedged"
    DEAD = "dead"


class WorkerHealth(NamedTuple):
    """How one worker is."""

    name: str
    state: State
    pid: int
    #: How many of its children have work.
    running: int
    concurrency: int
    queues: Sequence[str]
    #: When it was heard of last (Unix time).
    heartbeat_at: float

    @property
    def is_well(self) -> bool:
        """Whether it works, or could."""
        return self.state in (State.IDLE, State.BUSY)


class QueueHealth(NamedTuple):
    """What waits in one queue."""

    name: str
    waiting: int
    #: For how long the oldest has waited (seconds); ``None`` where nothing waits.
    oldest: float | None


class Report(NamedTuple):
    """How workers and queues were at one moment."""

    at: float
    workers: Sequence[WorkerHealth]
    queues: Sequence[QueueHealth]
    #: The one worker that was asked about, if it was one.
    asked: str = ""

    @property
    def exit_code(self) -> int:
        """0: all are well; 1: some worker is wedged or dead; 2: no worker lives."""
        if all(worker.state is State.DEAD for worker in self.workers):
            return 2
        return 0 if all(worker.is_well for worker in self.workers) else 1

    @property
    def verdict(self) -> str:
        """All of it in a sentence."""
        if self.exit_code == 2:
            return f"No worker {self.asked} runs." if self.asked else "No worker runs."
        ill = [f"{each.name} is {each.state.value}" for each in self.workers if not each.is_well]
        if ill:
            return f"Unhealthy: {', '.join(ill)}."
        count = len(self.workers)
        return f"Healthy: {count} worker{'s' if count != 1 else ''}."

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return {
            "healthy": self.exit_code == 0,
            "verdict": self.verdict,
            "workers": [
                {**worker._asdict(), "state": worker.state.value} for worker in self.workers
            ],
            "queues": [queue._asdict() for queue in self.queues],
        }

    def __str__(self) -> str:
        workers = [_tell_worker(worker, self.at) for worker in self.workers]
        return "\n".join([*workers, *map(_tell_queue, self.queues), self.verdict])


def look(engine: Engine, name: str = "") -> Report:
    """See how the workers are, and what waits.

    :param name: look at this worker alone, and at its queues.
    """
    now = time()
    # Consumers of events and of remote control, and stock workers, tell no tasks.
    known = [worker for worker in engine.list_workers() if worker.tasks]
    live = {worker.hostname for worker in known if worker.alive}
    # One that died and was started again is not missed.
    seen = [worker for worker in known if worker.alive or worker.hostname not in live]
    seen = [worker for worker in seen if not name or worker.hostname == name]
    workers = [_judge(engine, worker, now) for worker in sorted(seen, key=_by_name)]
    queues = {queue for worker in workers for queue in worker.queues} if name else None
    return Report(now, workers, _waiting(engine, queues, now), name)


def _by_name(worker: Worker) -> tuple[str, float]:
    return worker.hostname, worker.started_at


def _judge(engine: Engine, worker: Worker, now: float) -> WorkerHealth:
    claimed = engine.list_tasks(worker=worker.id, status="claimed") if worker.alive else []
    running = len({info.slot for info in claimed})
    return WorkerHealth(
        worker.hostname,
        _state(worker, running, now),
        worker.pid,
        running,
        worker.concurrency,
        tuple(worker.queues),
        worker.heartbeat_at,
    )


def _state(worker: Worker, running: int, now: float) -> State:
    if not worker.alive:
        return State.DEAD
    if now - worker.heartbeat_at > SILENCE:
        return State.WEDGED
    return State.BUSY if running else State.IDLE


def _waiting(engine: Engine, names: set[str] | None, now: float) -> list[QueueHealth]:
    """Return the queues of tasks, those of ``names`` only if there are any."""
    sizes = engine.queue_sizes(None if names is None else sorted(names))
    return [
        QueueHealth(queue, size, _age_of_oldest(engine, queue, now) if size else None)
        for queue, size in sorted(sizes.items())
        if (names is not None or size) and not _is_internal(queue)
    ]


def _is_internal(queue: str) -> bool:
    # Those of events and of remote control.
    return queue.startswith("celeryev") or queue.endswith(".pidbox")


def _age_of_oldest(engine: Engine, queue: str, now: float) -> float | None:
    found = engine.list_tasks(queues=[queue], status="ready", limit=1)
    if not found:
        return None  # It was taken meanwhile.
    return max(0.0, now - max(found[0].published_at, found[0].due_at or 0.0))


def _tell_worker(worker: WorkerHealth, now: float) -> str:
    if worker.state is State.DEAD:
        return f"{worker.name}: dead, process {worker.pid} ended"
    heard = f"heard of {now - worker.heartbeat_at:.0f} s ago"
    queues = ", ".join(worker.queues) or "no queue"
    work = f"{worker.running} of {worker.concurrency} running"
    return f"{worker.name}: {worker.state.value}, {work}, on {queues}, {heard}"


def _tell_queue(queue: QueueHealth) -> str:
    oldest = "" if queue.oldest is None else f", the oldest for {queue.oldest:.0f} s"
    return f"queue {queue.name}: {queue.waiting} waiting{oldest}"
