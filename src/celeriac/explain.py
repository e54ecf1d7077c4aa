"""Why a task has not finished, in one sentence, and the command that mends it.

:func:`explain` reads an engine and judges; :class:`Watch` does so for somebody who waits, and
warns once when the wait is in vain. The result backend and ``AsyncResult.explain()`` are the
callers.
"""

from __future__ import annotations

import enum
import logging
import sys
import warnings
from collections.abc import Callable
from collections.abc import Sequence
from datetime import datetime
from datetime import timezone
from difflib import get_close_matches
from pathlib import Path
from time import monotonic
from time import time
from typing import Any
from typing import NamedTuple

from .aside import in_words
from .aside import last_error
from .engines import Engine
from .engines.base import FINISHED
from .engines.base import Result
from .engines.base import TaskInfo
from .engines.base import Worker
from .envelope import Envelope
from .exceptions import WaitingWarning

#: When to look whether a wait is in vain (seconds after its start). It takes two looks that say
#: so: a worker may be just about to start.
LOOKS = (1.0, 2.5)
#: Afterwards, how often (seconds).
LOOK_INTERVAL = 5.0

#: How many messages are searched for a task that comes after them, and how many are named.
SEARCHED = 1000
NAMED = 3

#: Consumers of these belong to remote control and events: they run no tasks.
_NO_TASKS = (".pidbox", "celeryev.")

logger = logging.getLogger("celery.celeriac")


class Cause(enum.Enum):
    """Why a task has not finished, or that it has."""

    NO_WORKER = "no worker runs"
    QUEUE_NOT_CONSUMED = "no worker consumes its queue"
    NOT_REGISTERED = "no worker knows the task"
    RESULT_IGNORED = "its result is not kept"
    REVOKED = "revoked"
    EXPIRED = "expired"
    NOT_DUE = "not due yet"
    WAITING = "waiting for its turn"
    RUNNING = "running"
    WORKER_LOST = "its worker died"
    SET_ASIDE = "set aside"
    FINISHED = "finished"
    UNKNOWN = "unknown"


#: With these a wait does not end by itself.
IN_VAIN = frozenset(
    {
        Cause.NO_WORKER,
        Cause.QUEUE_NOT_CONSUMED,
        Cause.NOT_REGISTERED,
        Cause.RESULT_IGNORED,
        Cause.SET_ASIDE,
        Cause.UNKNOWN,
        # A worker records these within milliseconds; seen twice, there is none that could.
        Cause.REVOKED,
        Cause.EXPIRED,
    }
)


class Explanation(NamedTuple):
    """Why a task has not finished."""

    cause: Cause
    text: str
    #: What to type to mend it; empty where there is nothing to mend.
    command: str = ""

    def __str__(self) -> str:
        return f"{self.text}: {self.command}" if self.command else self.text

    @property
    def in_vain(self) -> bool:
        """Whether waiting for the result is of no use as things are."""
        return self.cause in IN_VAIN


class Program(NamedTuple):
    """How the commands in an explanation begin."""

    command: str = "celery -A your_application.celery"
    #: The queue that workers consume without ``-Q``.
    default_queue: str = "celery"

    @classmethod
    def of(cls, app: Any) -> Program:
        """Return how the Celery program of a Celery app is called."""
        queue = app.conf.task_default_queue
        # Celery's command line without -A makes one of the name "default".
        main = app.main if app.main not in (None, "", "default") else "your_application"
        if main == "__main__":
            script = getattr(sys.modules["__main__"], "__file__", None)
            main = Path(script or "your_application").stem
        module = sys.modules.get(app.main or "")
        names = [name for name, value in vars(module).items() if value is app] if module else []
        flask_app = getattr(app, "flask_app", None)
        # One that no variable holds comes from a factory, which `-A` does not call.
        by_import = names and any(value is flask_app for value in vars(module).values())
        if flask_app is not None and not by_import:
            return cls(f"flask --app {main} celery", queue)
        return cls(f"celery -A {main}.{names[0] if names else 'celery'}", queue)

    def worker(self, *, queue: str, include: str = "") -> str:
        """Return the command that starts a worker for the queue."""
        options = f" -Q {queue}" if queue != self.default_queue else ""
        options += f" -I {include}" if include else ""
        return f"{self.command} worker{options}"


def explain(
    engine: Engine,
    task_id: str,
    *,
    ignored: bool = False,
    program: Program | None = None,
    search: bool = False,
) -> Explanation:
    """Say why the task has not finished, or that it has.

    :param ignored: the caller knows that the task's result is not kept.
    :param program: how to call Celery's program, for the command.
    :param search: look through the messages for those that the task comes after.
    """
    result = engine.get_results([task_id]).get(task_id)
    stored = engine.list_tasks(task_ids=[task_id])
    if stored and (result is None or result.state != "SUCCESS"):
        # It may have been sent once more under its id; then that is what is asked for.
        stored.sort(key=lambda info: info.status == "dead")
        if stored[0].status == "dead":
            return _set_aside(stored[-1], program or Program())
    if ignored:
        return _ignored(task_id)
    if result is not None and result.state in FINISHED:
        return Explanation(Cause.FINISHED, f"Task {task_id} has finished: {result.state}.")
    if not stored:
        later = _comes_after(engine, task_id, program) if search and result is None else None
        return later or _not_stored(task_id, result)
    info = stored[0]
    if Envelope.of(info).headers.get("ignore_result"):
        return _ignored(task_id)
    if info.status == "claimed":
        return _claimed(info, engine.list_workers())
    return (
        _called_off(engine, info)
        or _unserved(info, engine.list_workers(), program or Program())
        or _waiting(engine, info)
    )


def _set_aside(info: TaskInfo, program: Program) -> Explanation:
    error = last_error(info).rstrip(".")
    return Explanation(
        Cause.SET_ASIDE,
        f"{_sentence(info)} was set aside at {_clock(info.died_at or 0)}, because "
        f"{in_words(info.reason, info.deaths)}{f' ({error})' if error else ''}. Run it again with",
        f"{program.command} dead retry {info.task_id}",
    )


def _ignored(task_id: str) -> Explanation:
    return Explanation(
        Cause.RESULT_IGNORED,
        f"The result of task {task_id} is not kept (ignore_result or task_ignore_result is "
        "set), so there is nothing to wait for. Keep it with",
        "@celery.task(ignore_result=False)",
    )


def _comes_after(engine: Engine, task_id: str, program: Program | None) -> Explanation | None:
    """Name the tasks that are to send this one: the members of a header, the step before."""
    name = task_id.encode()
    before = [info for info in engine.list_tasks(limit=SEARCHED) if name in _as_bytes(info.body)]
    if not before:
        return None
    first = explain(engine, before[0].task_id, program=program)
    named = ", ".join(f"{info.task}[{info.task_id}]" for info in before[:NAMED])
    more = f" and {len(before) - NAMED} more" if len(before) > NAMED else ""
    text = f"Task {task_id} comes after {named}{more}, not finished yet. {first.text}"
    return first._replace(text=text)


def _as_bytes(body: str | bytes) -> bytes:
    return body.encode() if isinstance(body, str) else body


def _not_stored(task_id: str, result: Result | None) -> Explanation:
    if result is not None:
        return Explanation(Cause.RUNNING, f"Task {task_id} was started: {result.state}.")
    return Explanation(
        Cause.UNKNOWN,
        f"No task {task_id} is known here: it was never sent to this broker, comes later in a "
        "chain or chord, or its result has expired, was forgotten or is not kept.",
    )


def _claimed(info: TaskInfo, workers: Sequence[Worker]) -> Explanation:
    worker = next((each for each in workers if each.id == info.worker), None)
    since = "" if info.claimed_at is None else f" since {_clock(info.claimed_at)}"
    if worker is None or not worker.alive:
        return Explanation(
            Cause.WORKER_LOST,
            f"The worker that had {_name(info)}{since} died. The next one that runs or starts "
            "sees to it.",
        )
    host = worker.hostname or f"process {worker.pid}"
    return Explanation(Cause.RUNNING, f"Worker {host} has {_name(info)}{since}.")


def _unserved(info: TaskInfo, workers: Sequence[Worker], program: Program) -> Explanation | None:
    live = [each for each in workers if each.alive and _runs_tasks(each)]
    if not live:
        return Explanation(
            Cause.NO_WORKER,
            f"No worker is running, so {_name(info)} waits in queue `{info.queue}`. Start one with",
            program.worker(queue=info.queue),
        )
    consuming = [each for each in live if info.queue in each.queues]
    if not consuming:
        return Explanation(
            Cause.QUEUE_NOT_CONSUMED,
            f"0 of {_count(live)} consume queue `{info.queue}`, where {_name(info)} waits. "
            "Start one with",
            program.worker(queue=info.queue),
        )
    # A consumer that names no tasks is a stock worker: what it knows is not known here.
    if all(each.tasks and info.task not in each.tasks for each in consuming):
        return _not_registered(info, consuming, program)
    return None


def _not_registered(info: TaskInfo, workers: Sequence[Worker], program: Program) -> Explanation:
    known = {name for each in workers for name in each.tasks}
    near = get_close_matches(info.task, known, n=3)
    hint = f" They know {', '.join(f'`{name}`' for name in near)}." if near else ""
    module = info.task.rpartition(".")[0]
    if module == "__main__":
        return Explanation(
            Cause.NOT_REGISTERED,
            f"0 of {_count(workers)} on queue `{info.queue}` know task `{info.task}`, so "
            f"{info.task_id} waits.{hint} It was sent by a script, where a task is named after "
            "`__main__`: send it from a program that imports the script, or name it with",
            f"@celery.task(name={info.task.rpartition('.')[2]!r})",
        )
    return Explanation(
        Cause.NOT_REGISTERED,
        f"0 of {_count(workers)} on queue `{info.queue}` know task `{info.task}`, so "
        f"{info.task_id} waits.{hint} Start one that imports it with",
        program.worker(queue=info.queue, include=module),
    )


def _called_off(engine: Engine, info: TaskInfo) -> Explanation | None:
    stamps = Envelope.of(info).headers.get("stamps")
    if engine.revocations([info.task_id]).include(info.task_id, stamps):
        return Explanation(Cause.REVOKED, f"{_sentence(info)} was revoked and will not run.")
    if info.expires_at is not None and info.expires_at <= time():
        expired = _clock(info.expires_at)
        return Explanation(Cause.EXPIRED, f"{_sentence(info)} expired at {expired}.")
    return None


def _waiting(engine: Engine, info: TaskInfo) -> Explanation:
    retries = Envelope.of(info).headers.get("retries")
    if info.due_at is not None and info.due_at > time():
        due = _clock(info.due_at)
        if retries:
            text = f"{_sentence(info)} failed, and will run again at {due} (retry {retries})."
            return Explanation(Cause.NOT_DUE, text)
        return Explanation(Cause.NOT_DUE, f"{_sentence(info)} is not due before {due}.")
    others = max(0, engine.queue_sizes([info.queue]).get(info.queue, 0) - 1)
    behind = f" with {others} other{'s' if others != 1 else ''}" if others else ""
    return Explanation(Cause.WAITING, f"{_sentence(info)} waits in queue `{info.queue}`{behind}.")


def _runs_tasks(worker: Worker) -> bool:
    """Say whether this is a worker, and not a connection for remote control or for events."""
    # One that names tasks is ours, also while it is told to consume nothing.
    return bool(worker.tasks) or any(
        not queue.endswith(_NO_TASKS[0]) and not queue.startswith(_NO_TASKS[1])
        for queue in worker.queues
    )


def is_stock_consumer(worker: Worker) -> bool:
    """Say whether this is a stock worker's connection: alive, consuming, and naming no tasks."""
    return worker.alive and not worker.tasks and _runs_tasks(worker)


def _name(info: TaskInfo) -> str:
    return f"task {info.task}[{info.task_id}]"


def _sentence(info: TaskInfo) -> str:
    return f"T{_name(info)[1:]}"


def _count(workers: Sequence[Worker]) -> str:
    return f"{len(workers)} live workers"


def _clock(instant: float) -> str:
    return datetime.fromtimestamp(instant, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


class Watch:
    """One wait for results: looks now and then whether it is in vain, and warns once.

    :param look: return an explanation of what is waited for, or ``None`` if there is none.
    """

    def __init__(self, look: Callable[[], Explanation | None]) -> None:
        self._look = look
        self._started = monotonic()
        self._times = [self._started + each for each in LOOKS]
        self._suspected: Cause | None = None
        self._warned = False

    @property
    def next_look(self) -> float:
        """When to look next, by the monotonic clock."""
        return self._times[0]

    def look(self) -> None:
        """Look if it is time to, and warn if this is the second look that says "in vain".

        It goes on to look afterwards: what is waited for may be called off, or expire.
        """
        if monotonic() < self._times[0]:
            return
        last = self._times.pop(0)
        self._times = self._times or [last + LOOK_INTERVAL]
        explanation = self._look()
        if explanation is None or not explanation.in_vain:
            self._suspected = None
        elif explanation.cause is self._suspected:
            if not self._warned:
                self._warned = True
                warn(explanation)
        else:
            self._suspected = explanation.cause


def warn(explanation: Explanation) -> None:
    """Tell the user that waiting is in vain: a warning, and a line in Celery's log."""
    text = str(explanation)
    # Without a handler logging would print the line to stderr, where the warning stands already.
    if logger.hasHandlers():
        logger.warning("Waiting in vain: %s", text)
    warnings.warn(text, WaitingWarning, stacklevel=_user_level())


def _user_level() -> int:
    """Return the stack level, seen from :func:`warn`, of the code that called ``get()``."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(("celeriac", "celery.")):
        frame = frame.f_back
        level += 1
    return level
