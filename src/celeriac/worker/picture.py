"""The worker as others see it: Celery's own picture of it, drawn from the store when asked for.

Celery's worker keeps in :mod:`celery.worker.state` what it holds and runs, and remote control and
heartbeat events read that. Ours is not told of what its children claim. So :meth:`Picture.refresh`
fills it in before it is read; what waits is read from the store directly (:mod:`.control`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

from celery.worker import state
from celery.worker.request import Request

from celeriac.engines import Engine
from celeriac.engines.base import Delivery
from celeriac.engines.base import TaskInfo
from celeriac.envelope import Envelope

from .board import Activity
from .board import Board
from .pool import Job
from .request import as_message

#: More than the children of any worker hold.
ALL = 1_000_000


class Picture:
    """What one worker holds and runs.

    :param consumer: the worker's :class:`~.consumer.Consumer`.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        # The sets of Celery's picture are weak.
        self._held: list[Request] = []

    def refresh(self) -> None:
        """Fill in Celery's picture of the worker, which remote control reads, from the store."""
        state.requests.clear()
        state.reserved_requests.clear()
        state.active_requests.clear()
        settings = self._consumer.settings
        if settings is None:
            return
        self._held = []
        for request, activity in self.running(self.claimed()):
            self._held.append(request)
            state.task_reserved(request)
            if activity is not None:
                state.active_requests.add(request)
        _refresh_totals(settings.board)

    def scheduled(self) -> list[dict[str, Any]]:
        """Return the tasks in our queues that are not due yet, as ``inspect scheduled`` does."""
        consumer = self._consumer
        infos = consumer.engine.list_tasks(queues=consumer.queues(), status="scheduled")
        return [
            {
                "eta": request.eta.isoformat() if request.eta else None,
                "priority": 6,
                "request": request.info(),
            }
            for request in map(self._as_request, infos)
            if request is not None
        ]

    def claimed(self) -> list[TaskInfo]:
        """Return what the worker's children hold."""
        engine: Engine = self._consumer.engine
        return engine.list_tasks(worker=self._consumer.id, status="claimed", limit=ALL)

    def running(self, claimed: Iterable[TaskInfo]) -> Iterator[tuple[Request, Activity | None]]:
        """Yield Celery's request for each claimed task, and who runs it, if anybody does."""
        running = {
            activity.started[-1]: activity
            for _, activity in self._consumer.pool.running()
            if activity.started
        }
        for info in claimed:
            request = self._as_request(info)
            if request is None:
                continue
            activity = running.get(info.tag)
            if activity is not None:
                request.worker_pid = Job.of(activity)
                request.time_start = time.time() - (time.monotonic() - activity.began)
                request.acknowledged = not request.task.acks_late
            yield request, activity

    def waiting(self, task_ids: Iterable[str]) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return state and description of the tasks in our queues that nobody runs yet."""
        consumer = self._consumer
        infos = consumer.engine.list_tasks(task_ids=list(task_ids), queues=consumer.queues())
        waiting = [(info, self._as_request(info)) for info in infos if info.status != "claimed"]
        return {info.task_id: (info.status, request.info()) for info, request in waiting if request}

    def _as_request(self, info: TaskInfo) -> Request | None:
        consumer = self._consumer
        if info.task not in consumer.app.tasks:
            return None
        delivery = Delivery(
            info.tag,
            0,
            info.queue,
            info.envelope,
            info.body,
            info.task,
            info.task_id,
            info.priority,
            info.deaths,
            info.deaths > 0,
            None,
            info.form,
        )
        try:
            return Request(
                as_message(delivery, Envelope.of(info)),
                app=consumer.app,
                hostname=consumer.hostname,
                task=consumer.app.tasks[info.task],
                eventer=consumer.event_dispatcher,
                on_ack=lambda *_: None,
                on_reject=lambda *_: None,
            )
        except Exception:  # Its headers are nonsense; what else runs is to be seen all the same.
            return None


def _refresh_totals(board: Board) -> None:
    totals = board.totals()
    state.total_count.clear()
    state.total_count.update(totals)
    state.all_total_count[:] = [sum(totals.values())]
