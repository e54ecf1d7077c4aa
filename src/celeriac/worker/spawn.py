"""Spawned children: fresh interpreters, where a fork is not wanted or not safe.

Asked for as in Celery: by the setting ``worker_pool_start_method = "spawn"`` (Celery 5.7), or by
``billiard.set_start_method("spawn")``, which is billiard's default on macOS. A child imports the
app as its parent did, by the name under which it was found or by ``FLASK_APP``, and is told the
rest through billiard's pipe. From there on it is what a forked one is (:mod:`.child`).
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import NoReturn

from billiard import context
from celery.utils.imports import cwd_in_path

from celeriac.engines import open_engine

from .board import Board
from .child import run_child
from .child import Settings
from .request import Limits

#: The exit code of a child that has no app to work for. Another one would have none, either.
NO_APP = os.EX_CONFIG

_ADVICE = (
    "A spawned child imports the app anew, as 'celery -A' or 'flask --app' does: it must be an "
    "attribute of a module, or FLASK_APP must lead to it, and importing that must not start a "
    "worker. Or let children be forked: worker_pool_start_method = 'fork'."
)


class Luggage(NamedTuple):
    """What a child is told of :class:`~.child.Settings`, and makes them anew of."""

    app: bytes
    url: str
    board: tuple[str, Sequence[str], int]
    hostname: str
    worker_id: str
    limits: Limits
    max_tasks: int | None
    max_memory: int | None

    @classmethod
    def of(cls, settings: Settings) -> Luggage:
        """Pack the settings."""
        if not hasattr(settings.app, "flask_app"):
            # A copy of the app travels then, and its tasks are found by this, as in Celery.
            os.environ["FORKED_BY_MULTIPROCESSING"] = "1"
        try:
            app = pickle.dumps(settings.app)
        except Exception as exc:
            raise SystemExit(f"The app can not be told to children ({exc}). {_ADVICE}") from exc
        board = settings.board
        return cls(
            app,
            settings.app.conf.broker_read_url,
            (os.fspath(board.path), board.names, board.slots),
            settings.hostname,
            settings.worker_id,
            settings.limits,
            settings.max_tasks,
            settings.max_memory,
        )

    def unpack(self) -> Settings:
        """Make the settings anew, in the child."""
        with cwd_in_path():  # As `celery -A` does.
            app = pickle.loads(self.app)
            app.loader.import_default_modules()
            app.finalize()
        if app.conf.broker_read_url != self.url:
            raise ValueError(f"its broker is {app.conf.broker_read_url}, its parent's {self.url}")
        path, names, slots = self.board
        missing = sorted(set(names) - set(app.tasks))
        if missing:
            raise ValueError(f"it does not know the tasks {', '.join(missing)}")
        return Settings(
            app=app,
            engine=open_engine(self.url),
            hostname=self.hostname,
            worker_id=self.worker_id,
            board=Board(path, names, slots),
            tasks=frozenset(names),
            limits=self.limits,
            max_tasks=self.max_tasks,
            max_memory=self.max_memory,
        )


class Inherited:
    """A file that a spawned child inherits under its number."""

    def __init__(self, file: int) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        context.get_spawning_popen().duplicate_for_child(self.file)
        return Inherited, (self.file,)


def run_spawned(luggage: Luggage, slot: int, orders_pipe: Inherited) -> NoReturn:
    """Be a spawned child, from its first instruction to its exit."""
    try:
        settings = luggage.unpack()
    except Exception as exc:
        # The log is set up by what comes next, which needs the app.
        traceback.print_exc()
        sys.stderr.write(f"A child of the worker could not make its app: {exc}. {_ADVICE}\n")
        sys.stderr.flush()
        os._exit(NO_APP)
    run_child(settings, slot, orders_pipe.file)
