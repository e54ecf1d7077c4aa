"""Whether the worker that runs this was told to end: what :attr:`.Task.stopping` reads.

A worker over an engine says how to look that up, for its app, in the process that runs the tasks.
Of a stock worker only what Celery keeps in the parent is known, which is where solo and threads
run their tasks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from celery import Celery

_looks: WeakKeyDictionary[Celery, Callable[[], bool]] = WeakKeyDictionary()


def look_by(app: Celery, look: Callable[[], bool]) -> None:
    """Have ``look`` say whether the worker of this app, in this process, was told to end."""
    _looks[app] = look


def look_no_more(app: Celery) -> None:
    """Forget the worker of this app: it has left."""
    _looks.pop(app, None)


def is_stopping(app: Celery) -> bool:
    """Say whether the worker of this app, in this process, was told to end."""
    look = _looks.get(app)
    return is_program_stopping() if look is None else look()


def is_program_stopping() -> bool:
    """Say whether Celery's worker in this process was told to end, as Celery keeps it."""
    # Not imported for this: in a program that is no worker it is not there.
    state: Any = sys.modules.get("celery.worker.state")
    return state is not None and (_is_set(state.should_stop) or _is_set(state.should_terminate))


def _is_set(exit_code: int | None) -> bool:
    # Zero is one. Celery's own code takes False for none.
    return exit_code is not None and exit_code is not False
