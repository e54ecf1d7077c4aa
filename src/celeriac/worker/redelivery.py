"""What happens when a worker dies: every death, in one place.

=============================  =====================  =============  ===========================
death                          noticed by             how soon       what becomes of the task
=============================  =====================  =============  ===========================
the task raises                the child itself       at once        Celery's: FAILURE or RETRY
it ends its process            the worker's parent    within 0.25 s  as below
the child is killed            the worker's parent    within 0.25 s  as below
hard time limit                the worker's parent    within 0.25 s  FAILURE(TimeLimitExceeded)
revoked with ``terminate``     the worker's parent    within 0.25 s  REVOKED
warm shutdown (TERM)           nobody needs to        --             it finishes; the rest returns
cold shutdown (QUIT)           the worker's parent    at once        as below
parent or machine killed       any other worker, or   within 5 s     as below
                               the next one to start
=============================  =====================  =============  ===========================

*As below*: what was claimed and not started returns to its queue, as if it had never been
claimed. What was started runs again if it is ``acks_late`` (unless ``reject_on_worker_lost`` is
explicitly false), and is ``FAILURE(WorkerLostError)`` if it is not, which is Celery's default.
A message that killed its worker :data:`MAX_DEATHS` times is not run again.

Whoever acts on a death ends the claim first or records with it; the fence in
:meth:`~celeriac.engines.base.Engine.complete` lets only one of all win.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from billiard.exceptions import Terminated
from billiard.exceptions import WorkerLostError
from celery.utils.log import get_logger

from celeriac.collect import collecting
from celeriac.collect import Collector
from celeriac.engines.base import Action
from celeriac.engines.base import Delivery
from celeriac.engines.base import Lost
from celeriac.engines.base import Outcome
from celeriac.envelope import Envelope

from .board import Board
from .child import Settings
from .request import failure
from .request import Requests

logger = get_logger(__name__)

#: A message that so many workers died of is not handed out again.
MAX_DEATHS = 3


class Redelivery:
    """One worker's dealing with deaths: of its own children, and of other workers."""

    def __init__(self, settings: Settings, requests: Requests, folder: Path) -> None:
        self._settings = settings
        self._requests = requests
        self._folder = folder

    def child_died(self, slot: int, pid: int, reason: str) -> None:
        """Deal with what the dead child of a slot held."""
        settings = self._settings
        activity = settings.board.read(slot)
        lost = settings.engine.lost(settings.worker_id, slot)
        self._settle(lost, activity.started, pid, reason)
        settings.board.enter(slot, 0)

    def take_over(self) -> None:
        """Deal with what dead workers held."""
        by_place: dict[tuple[str, int], list[Lost]] = {}
        for item in self._settings.engine.lost():
            by_place.setdefault((item.worker_id, item.slot), []).append(item)
        for (worker_id, slot), lost in by_place.items():
            started, pid = self._read_board(worker_id, slot)
            self._settle(lost, started, pid, "its worker died")
        self._remove_boards()

    def _settle(self, lost: Sequence[Lost], started: Sequence[int], pid: int, why: str) -> None:
        """Return what was not started, and decide over what was."""
        rest = [item.delivery for item in lost if item.delivery.tag not in started]
        if rest:
            self._settings.engine.release(rest)
        for item in lost:
            if item.delivery.tag in started:
                self._decide(item, pid, why)

    def _decide(self, lost: Lost, pid: int, why: str) -> None:
        delivery = lost.delivery
        if not delivery.task:  # No task: AMQP's rule, it is handed out again.
            self._settings.engine.redeliver([delivery], died=True)
        elif why.startswith("time limit "):
            self._record(delivery, lambda request: request.on_timeout(False, float(why[11:])))
        elif why.startswith("terminated "):
            error = failure(Terminated(int(why[11:])))
            self._record(delivery, lambda request: request.on_failure(error))
        elif self._runs_again(delivery):
            logger.error(
                "Task %s[%s] is run again: process %s died (%s)",
                delivery.task,
                delivery.task_id,
                pid,
                why,
            )
            self._settings.engine.redeliver([delivery], died=True)
        else:
            self._fail(lost, pid, why)

    def _runs_again(self, delivery: Delivery) -> bool:
        task = self._settings.app.tasks.get(delivery.task)
        if task is None or not task.acks_late:
            return False
        # Celery's default is None: nobody said that it must not run again.
        return task.reject_on_worker_lost is not False and delivery.deaths + 1 < MAX_DEATHS

    def _fail(self, lost: Lost, pid: int, why: str) -> None:
        delivery = lost.delivery
        worker = f" of {lost.hostname}" if lost.hostname else ""
        times = f" It was its death no. {delivery.deaths + 1}." if delivery.deaths else ""
        error = WorkerLostError(f"Worker exited prematurely: process {pid}{worker}, {why}.{times}")
        logger.error("Task %s[%s]: %s", delivery.task, delivery.task_id, error)
        einfo = failure(error)

        def fail(request: Any) -> None:
            request.task.backend.mark_as_failure(
                request.id,
                error,
                einfo.traceback,
                request=request._context,
                store_result=request.store_errors,
            )
            request.send_event("task-failed", exception=repr(error), traceback=str(einfo.traceback))

        self._record(delivery, fail)

    def _record(self, delivery: Delivery, decide: Callable[[Any], None]) -> None:
        """Have Celery's request decide, and record what it decides if we still may."""
        action = [Action.ACKNOWLEDGE]
        engine = self._settings.engine
        collector = Collector(engine, delivery.task_id, closing=True)
        with collecting(collector):
            envelope = Envelope.unpack(delivery.envelope)
            decide(self._requests.as_request(delivery, envelope, action))
        outcome = Outcome(
            delivery, action[0], collector.results, collector.messages, collector.parts
        )
        for part in engine.complete([outcome]).chords:
            self._settings.app.backend.chord_ready(part)

    def _read_board(self, worker_id: str, slot: int) -> tuple[Sequence[int], int]:
        path = board_path(self._folder, worker_id)
        if not path.exists():
            # Of a claimant without a board, say a stock worker, nothing is known: it may have
            # started all that it held.
            return _Everything(), 0
        activity = Board(path).read(slot)
        return activity.started, activity.pid

    def _remove_boards(self) -> None:
        alive = {w.id for w in self._settings.engine.list_workers() if w.alive}
        for path in self._folder.glob("board-*"):
            if path.name.removeprefix("board-") not in alive:
                path.unlink(missing_ok=True)


class _Everything(tuple[int, ...]):
    """Contains every tag."""

    def __contains__(self, tag: object) -> bool:
        return True


def board_path(folder: Path, worker_id: str) -> Path:
    """Return where the board of a worker is."""
    return folder / f"board-{worker_id}"
