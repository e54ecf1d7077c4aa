"""What happens when a worker dies: every death, in one place.

=============================  =======================  =======================================
death                          noticed                  what becomes of the task
=============================  =======================  =======================================
the task raises                by its child, at once    Celery's: ``FAILURE`` or ``RETRY``
it ends its process            by the parent, 0.25 s    as below: "exitcode 3"
the child is killed            by the parent, 0.25 s    as below: "signal 9 (SIGKILL)", and what
                                                        its memory was
killed for lack of memory      by the parent, 0.25 s    as below: "signal 9 (SIGKILL), by the
                                                        kernel for lack of memory"
soft time limit                by the parent, 0.25 s    ``SoftTimeLimitExceeded`` is raised in it
hard time limit                by the parent, 0.25 s    ``FAILURE(TimeLimitExceeded)``
revoked with ``terminate``     by the parent, 0.25 s    ``REVOKED``
its child hangs between tasks  by the watchdog, 21 s    what was not started returns; the child
                               (:mod:`.watchdog`)       is replaced
its parent hangs               by the watchdog, 21 s    it may finish; the worker begins anew
warm shutdown (TERM)           nobody needs to          it finishes; what was not started returns
``worker_grace_period`` over   by the parent, at once   as below, but it does not count as a death
soft shutdown                  by the parent, at once   it has that time; then as with a cold one
cold shutdown (QUIT)           by the parent, at once   as below, but it does not count as a death
killed while it stops          by any worker, 0.5 s,    as below, but it does not count as a death
                               or the next to start
the parent is killed           by any worker, 0.5 s,    as below: "its worker died"; on Linux its
                               or the next to start     children are killed with it
the whole worker is killed     by any worker, 0.5 s,    as below: "its worker died"
                               or the next to start
power cut, ``full``            by the next worker       what was confirmed is there; what ran may
                                                        run again, or as below
power cut, ``normal``          by the next worker       the last moments may be missing; the rest
                                                        as with ``full``
=============================  =======================  =======================================

*As below*: what was claimed and not started returns to its queue, as if it had never been
claimed. What was started runs again if it is ``acks_late`` (unless ``reject_on_worker_lost`` is
explicitly false), and is ``FAILURE(WorkerLostError)`` if it is not, which is Celery's default;
the error has the words quoted above, and the arguments are kept.
A thread can not be killed. It is given up, which counts as its death (:mod:`.thread`).
A message that killed its worker :data:`MAX_DEATHS` times is not run again. It is set aside, as is
what was started and is not ``acks_late``: a dead letter, which can be run again on purpose.

Whoever acts on a death ends the claim first or records with it; the fence in
:meth:`~celeriac.engines.base.Engine.complete` lets only one of all win.

Where something is wrong with the file or the machine, nobody dies of it, but for one case:

=============================  ====================================  ==========================
trouble                        workers                               callers
=============================  ====================================  ==========================
the disk is full               wait and go on by themselves; what    ``delay()`` raises, and
                               ended meanwhile is recorded then      nothing was enqueued
the file is locked             the same                              ``delay()`` waits for
                                                                     ``busy_timeout``, then
                                                                     raises
the file can only be read      the same; none starts                 ``delay()`` raises
the file is damaged            end with exit code 65, and say what   all calls raise, and say
                               to do; none starts. Writing on        what to do
                               could damage more
the file is deleted            make a new one, and are known in it   what was in it is gone:
                               within 5 s; of what still ran the     ``get()`` warns that
                               outcome is left out                   nobody knows the task
a copy of it is put back       the same                              the state is the copy's
its log is deleted             go on; what stood only there is gone  the same
its folder is deleted          go on; wake-ups come up to 1 s late,  go on
                               deaths of whole workers are noticed
                               after 60 s
the clock is set forward       go on; what is due by then starts,    what expires by then is
                               and runs once                         gone
the clock is set back          go on; what is due at a time waits    go on
                               for it, intervals of beat do not
=============================  ====================================  ==========================

They tell the same error once a minute. Durations (time limits, time-outs, who is silent) are
measured by a clock that nobody sets. Cutting off the files in the folder beside the queue file
while processes have them mapped kills these (SIGBUS): nothing guards against that.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple

from billiard.exceptions import WorkerLostError
from celery.utils.log import get_logger
from kombu.utils.encoding import ensure_bytes

from celeriac.aside import incident
from celeriac.aside import Reason
from celeriac.aside import set_aside
from celeriac.collect import collecting
from celeriac.collect import Collector
from celeriac.engines import EngineError
from celeriac.engines.base import Delivery
from celeriac.engines.base import Lost
from celeriac.engines.base import Outcome
from celeriac.engines.base import Result
from celeriac.engines.base import Worker
from celeriac.envelope import Envelope

from .board import Activity
from .board import Board
from .child import Settings
from .memory import Memory
from .request import failure
from .request import record_failure
from .request import Requests
from .request import Verdict

logger = get_logger(__name__)

#: A message that so many workers died of is not handed out again.
MAX_DEATHS = 3
#: A worker that lives, but was not heard of for so long, is not waited for (seconds).
SILENCE = 60.0

#: How reasons begin that go on with the seconds of the limit, and with the signal.
TIME_LIMIT = "time limit "
TERMINATED = "terminated "
COLD_SHUTDOWN = "cold shutdown"
ITS_WORKER_DIED = "its worker died"
GRACE_OVER = (
    "stopped, and its worker_grace_period was over; a task that is acks_late would run again"
)
KILLED_STOPPING = (
    "killed while it was being stopped, before its worker_grace_period was over; "
    "a task that is acks_late would run again"
)
#: What ends a worker and says nothing about its tasks, so that it does not count as their deaths.
STOPS = frozenset({COLD_SHUTDOWN, GRACE_OVER, KILLED_STOPPING})


class Redelivery:
    """One worker's dealing with deaths: of its own children, and of other workers."""

    def __init__(self, settings: Settings, requests: Requests, folder: Path) -> None:
        self._settings = settings
        self._requests = requests
        self._folder = folder
        #: The heartbeats of workers whose children died, and when each was new (monotonic seconds).
        self._heard: dict[str, tuple[float, float]] = {}

    def child_died(self, slot: int, pid: int, reason: str, memory: Memory | None = None) -> None:
        """Deal with what the dead child of a slot held."""
        settings = self._settings
        if reason == exit_text(-signal.SIGTERM) and settings.board.is_stopping():
            reason = KILLED_STOPPING  # Who ends this worker told its children, too.
        death = Death.of(settings.board.read(slot), reason, pid)._replace(memory=memory)
        self._settle(settings.engine.lost(settings.worker_id, slot), death)
        settings.board.enter(slot, 0)

    def take_over(self) -> None:
        """Deal with what dead workers held."""
        engine = self._settings.engine
        lost = engine.lost()
        if not lost:
            return
        # A living worker knows better than we what its children died of, and is about to act.
        busy = {each.id for each in engine.list_workers() if each.alive and not self._silent(each)}
        by_place: dict[tuple[str, int], list[Lost]] = {}
        for item in lost:
            if not item.hostname:
                # A stock worker has acknowledged what it started, unless that is ``acks_late``.
                report = json.dumps(report_of(item, Death(0, ITS_WORKER_DIED, ())))
                engine.redeliver([item.delivery], died=True, report=report)
            elif item.worker_id not in busy:
                by_place.setdefault((item.worker_id, item.slot), []).append(item)
        for place, items in by_place.items():
            self._settle(items, self._read_board(*place))

    def remove_boards(self) -> None:
        """Delete the boards of workers that are known no more."""
        # In this order: whoever comes to have a board now was known before.
        paths = list(self._folder.glob("board-*"))
        known = {each.id for each in self._settings.engine.list_workers()}
        for path in paths:
            if path.name.removeprefix("board-") not in known:
                path.unlink(missing_ok=True)

    def _settle(self, lost: Sequence[Lost], death: Death) -> None:
        """Return what was not started, and decide over what was."""
        if lost:
            # Fails on a full disk, before anybody is told of what could not be recorded then.
            self._settings.engine.heartbeat(self._settings.worker_id)
        rest = [item.delivery for item in lost if item.delivery.tag not in death.started]
        if rest:
            self._settings.engine.release(rest)
        for item in lost:
            if item.delivery.tag in death.started:
                self._decide(item, death)

    def _decide(self, lost: Lost, death: Death) -> None:
        delivery, engine = lost.delivery, self._settings.engine
        task = self._settings.app.tasks.get(delivery.task)
        if task is None:
            return  # A worker that knows the task will decide.
        why = death.of_task(delivery)
        if why.startswith(TIME_LIMIT):
            seconds = float(why.removeprefix(TIME_LIMIT))
            self._record(delivery, lambda request, _: request.on_timeout(False, seconds))
        elif why.startswith(TERMINATED) and self._is_called_off(delivery):
            # Celery's request announced the revocation when it was terminated.
            engine.complete([Outcome(delivery)])
        elif task.acks_late and why in STOPS:
            engine.redeliver([delivery], died=False)
            text = "Task %s[%s] was handed back, and runs again on a worker"
            logger.warning(text, delivery.task, delivery.task_id)
        elif self._runs_again(delivery, task):
            text = "Task %s[%s] is run again: process %s died (%s).%s"
            told = (death.pid, why, death.memory_in(delivery))
            logger.error(text, delivery.task, delivery.task_id, *told)
            report = json.dumps(report_of(lost, death))
            engine.redeliver([delivery], died=True, report=report)
        else:
            self._fail(lost, death)

    def _is_called_off(self, delivery: Delivery) -> bool:
        """Say whether this is the task that was to be terminated, and not one after it."""
        stamps = Envelope.of(delivery).headers.get("stamps")
        revocations = self._settings.engine.revocations([delivery.task_id])
        return revocations.include(delivery.task_id, stamps)

    def _runs_again(self, delivery: Delivery, task: Any) -> bool:
        # Celery's default is None: nobody said that it must not run again.
        may = task.acks_late and task.reject_on_worker_lost is not False
        return may and delivery.deaths + 1 < MAX_DEATHS

    def _fail(self, lost: Lost, death: Death) -> None:
        """Have a task fail that was lost, and set its message aside: it may be run on purpose."""
        delivery, why = lost.delivery, death.of_task(lost.delivery)
        times = f" It was its death no. {delivery.deaths + 1}." if delivery.deaths else ""
        place = f"process {death.pid} of {lost.hostname}"
        memory = death.memory_in(delivery)
        error = WorkerLostError(f"Worker exited prematurely: {place}, {why}.{memory}{times}")
        einfo = failure(error)

        died = why not in STOPS
        reason = Reason.DEATHS if delivery.deaths + died >= MAX_DEATHS else Reason.LOST
        told = f"{type(error).__name__}: {error}"
        aside = set_aside(reason, told, report_of(lost, death), died=died)

        def fail(request: Any, verdict: Verdict) -> None:
            record_failure(request, error, einfo)
            verdict.set_aside(self._settings.app, delivery, aside, told)

        self._record(delivery, fail, keep_arguments=True)

    def _record(
        self,
        delivery: Delivery,
        decide: Callable[[Any, Verdict], None],
        *,
        keep_arguments: bool = False,
    ) -> None:
        """Have Celery's request decide, and record what it decides if we still may."""
        verdict = Verdict()
        engine = self._settings.engine
        collector = Collector(engine, delivery.task_id, closing=True)
        with collecting(collector), self._requests.app_context():
            try:
                request = self._requests.as_request(delivery, Envelope.of(delivery), verdict)
                decide(request, verdict)
            except EngineError:
                raise
            except Exception as exc:  # It would end this worker, and the next that takes it over.
                self._requests.refuse(delivery, exc, verdict)
                keep_arguments = False
        results = collector.results
        if keep_arguments:
            results = [self._with_arguments(each, request) for each in results]
        kept = (verdict.action, results, *collector.collected[1:], verdict.aside)
        outcome = Outcome(delivery, *kept)
        for part in engine.complete([outcome]).chords:
            self._settings.app.backend.chord_ready(part)

    def _with_arguments(self, result: Result, request: Any) -> Result:
        """Return a result that tells what was lost, as ``result_extended`` has every one tell."""
        if result.task_id != request.id:
            return result
        backend = self._settings.app.backend
        args, kwargs, _ = request._payload
        meta = backend.decode(result.meta)
        meta.update(name=request.name, args=args, kwargs=kwargs)
        return result._replace(meta=ensure_bytes(backend.encode(meta)))

    def _read_board(self, worker_id: str, slot: int) -> Death:
        path = board_path(self._folder, worker_id)
        if not Board.is_whole(path):
            # Nothing is known: it may have started all that it held.
            return Death(0, ITS_WORKER_DIED, _Everything())
        board = Board(path)
        reason = KILLED_STOPPING if board.is_stopping() else ITS_WORKER_DIED
        return Death.of(board.read(slot), reason)

    def _silent(self, worker: Worker) -> bool:
        """Say whether a worker did not say for long that it lives, by our own clock.

        The clock that its heartbeat goes by may have been set meanwhile.
        """
        said, since = self._heard.get(worker.id, (0.0, 0.0))
        if said != worker.heartbeat_at:
            since = time.monotonic()
            self._heard[worker.id] = (worker.heartbeat_at, since)
        return time.monotonic() - since > SILENCE


class Death(NamedTuple):
    """How a child ended."""

    pid: int
    #: In words for users, by which :data:`TIME_LIMIT` and :data:`TERMINATED` are told apart.
    reason: str
    #: Tags of the deliveries that it started and did not complete.
    started: Sequence[int]
    #: The tag of the one that it was running, and that the reason is about.
    current: int | None = None
    #: What the child had in memory while it ran that one.
    memory: Memory | None = None

    def of_task(self, delivery: Delivery) -> str:
        """Return the reason as far as it concerns one of the deliveries."""
        is_meant = delivery.tag == self.current or self.reason in STOPS
        return self.reason if is_meant else ITS_WORKER_DIED

    @classmethod
    def of(cls, activity: Activity, reason: str, pid: int = 0) -> Death:
        """Return the death of a child that was last seen doing this."""
        started = activity.started
        current = started[-1] if activity.running and started else None
        return cls(pid or activity.pid, reason, started, current)

    def memory_in(self, delivery: Delivery) -> str:
        """Return a sentence on the memory, if that is known and is about this delivery."""
        is_told = delivery.tag == self.current and self.reason not in STOPS
        is_known = self.memory is not None and is_told
        return f" {self.memory}" if is_known else ""


def report_of(lost: Lost, death: Death) -> dict[str, Any]:
    """Return what a dead letter tells of a death."""
    details = {}
    if death.memory is not None and lost.delivery.tag == death.current:
        details = {"memory": death.memory.last, "memory_before": death.memory.before}
    return incident(lost.hostname, death.pid, death.of_task(lost.delivery), **details)


class _Everything(tuple[int, ...]):
    """Contains every tag."""

    def __contains__(self, tag: object) -> bool:
        return True


def exit_text(code: int) -> str:
    """Say in words how a process ended; the code is that of :mod:`multiprocessing`."""
    if code >= 0:
        return f"exitcode {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:  # Most of the real-time signals have no name.
        return f"signal {-code}"


def board_path(folder: Path, worker_id: str) -> Path:
    """Return where the board of a worker is."""
    return folder / f"board-{worker_id}"
