"""What a child has before its loop starts, and how a process comes to it.

A child is set up as Celery sets up its own, by the same function (signals, logging, app,
tracers, ``worker_process_init``), so that whatever hooks into that works.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from typing import NamedTuple
from typing import NoReturn

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery.concurrency.prefork import process_destructor
from celery.concurrency.prefork import process_initializer
from celery.utils.log import get_logger

from celeriac import context
from celeriac import stopping
from celeriac.engines import Engine
from celeriac.engines.base import ChordPart
from celeriac.exceptions import EngineDamagedError

from .board import Board
from .claimant import Claimant
from .claimant import Orders
from .completion import Completer
from .door import Door
from .memory import Growth
from .request import Limits
from .request import Requests
from .trouble import DAMAGED
from .trouble import tell
from .workloop import Workloop

logger = get_logger(__name__)

#: The signal by which the parent says that a soft time limit is over, as in Celery.
SIG_SOFT_LIMIT = signal.SIGUSR1
#: The file itself: Celery may put a logger in the place of :data:`sys.stderr`.
STDERR = 2


class Settings(NamedTuple):
    """What all children of a worker share."""

    app: Celery
    engine: Engine
    hostname: str
    worker_id: str
    board: Board
    tasks: frozenset[str]
    limits: Limits
    max_tasks: int | None = None
    #: Resident memory above which a child ends after its batch (KiB).
    max_memory: int | None = None


def make_claimant(
    settings: Settings,
    slot: int,
    orders: Callable[[], Orders],
    *,
    pid: int,
    door: Door | None = None,
) -> Claimant:
    """Put one child's loop together.

    :param pid: what names the child; see :meth:`.pool.Pool.terminate_job`.
    """
    app, engine, board = settings.app, settings.engine, settings.board

    def on_recorded(count: int, chords: Sequence[ChordPart]) -> None:
        board.recorded(slot, count)
        for part in chords:
            try:
                app.backend.chord_ready(part)
            except Exception:
                # The parts are counted; a worker's sweep sends the callback a little later.
                logger.exception("The callback of chord %s could not be sent", part.group_id)

    requests = make_requests(settings)
    engine.attend(settings.worker_id, slot)
    board.enter(slot, pid)
    stopping.look_by(app, board.is_stopping)
    return Claimant(
        engine,
        requests,
        Completer(engine, on_recorded),
        board,
        (settings.worker_id, slot),
        settings.tasks,
        _following(orders, app, requests),
        door=door,
        max_tasks=settings.max_tasks,
        growth=Growth(settings.max_memory) if settings.max_memory else None,
    )


def make_requests(settings: Settings) -> Requests:
    """Return what turns deliveries into outcomes for this worker's app."""
    requests = Requests(settings.app, settings.engine, settings.hostname)
    flask_app = getattr(settings.app, "flask_app", None)
    if flask_app is not None:
        requests.app_context = lambda: context.app_context(flask_app)
    requests.limits = settings.limits
    return requests


def run_child(settings: Settings, slot: int, orders_pipe: int) -> NoReturn:
    """Be a forked child, from its first instruction to its exit."""
    if not faulthandler.is_enabled():
        # One that hangs is ended by SIGABRT, and so writes where; one that crashes does as well.
        faulthandler.enable(STDERR)
    process_initializer(settings.app, settings.hostname)
    # The child pushes the app context itself; two signals a task cost 6 µs.
    context.disconnect()
    claimant = make_claimant(settings, slot, _Pipe(orders_pipe).newest, pid=os.getpid())
    signal.signal(SIG_SOFT_LIMIT, _soft_limit_handler(claimant))
    code = 1
    try:
        Workloop(claimant.loop).run()
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except EngineDamagedError as exc:
        tell(logger, "%s", exc)
        code = DAMAGED
    except BaseException:
        # Nobody else would tell: what follows leaves without a word.
        logger.critical("The child ends after an error of its own", exc_info=True)
    finally:
        process_destructor(os.getpid(), code)
        settings.engine.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Pipe:
    """The reading end of the orders: JSON lines, of which the last one counts."""

    def __init__(self, file: int) -> None:
        os.set_blocking(file, False)
        self._file = file
        self._rest = b""
        self._orders = Orders()

    def newest(self) -> Orders:
        try:
            data = os.read(self._file, 65536)
        except BlockingIOError:
            return self._orders
        if not data:  # The parent is gone.
            return Orders(stop=True)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            self._orders = decode_orders(lines[-1])
        return self._orders


def encode_orders(orders: Orders) -> bytes:
    """Return orders as a line for :func:`run_child`'s pipe."""
    return json.dumps(asdict(orders)).encode() + b"\n"


def decode_orders(line: bytes) -> Orders:
    """Undo :func:`encode_orders`."""
    fields = json.loads(line)
    fields["queues"] = tuple(fields["queues"])
    fields["limits"] = {name: tuple(pair) for name, pair in fields["limits"].items()}
    return Orders(**fields)


def _following(
    orders: Callable[[], Orders], app: Celery, requests: Requests
) -> Callable[[], Orders]:
    """Return ``orders``, carrying out what changes in them on the way."""
    last: list[Orders] = [Orders()]

    def follow() -> Orders:
        newest = orders()
        if newest is not last[0]:
            _apply(last[0], newest, app, requests)
            last[0] = newest
        return newest

    return follow


def _apply(old: Orders, new: Orders, app: Celery, requests: Requests) -> None:
    for name, (soft, hard) in new.limits.items():
        task: Any = app.tasks[name]
        task.soft_time_limit, task.time_limit = soft, hard
    if new.events and not old.events:
        requests.eventer = _make_eventer(app, requests.hostname)
    elif old.events and not new.events:
        requests.eventer.close()
        requests.eventer.connection.release()
        requests.eventer = None


def _make_eventer(app: Celery, hostname: str) -> Any:
    return app.events.Dispatcher(
        app.connection_for_write(), hostname=hostname, enabled=True, groups=["task"]
    )


def _soft_limit_handler(claimant: Claimant) -> Callable[[int, Any], None]:
    def raise_soft_limit(signum: int, frame: Any) -> None:
        # The signal may come late, and must not hit the task after the one that it is meant for.
        if claimant.is_overdue:
            claimant.soft_deadline = 0.0
            raise SoftTimeLimitExceeded()

    return raise_soft_limit
