"""Why a message is set aside, and how its runs ended: what workers report and users are told.

What becomes of it then is in :mod:`celeriac.dead`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from time import time
from typing import Any

from .engines.base import Aside
from .engines.base import TaskInfo


class Reason(enum.Enum):
    """Why a message was set aside."""

    #: It killed as many workers as a message may.
    DEATHS = "deaths"
    #: Its worker died after it was started, and it is not to be started twice.
    LOST = "lost"
    SIGNATURE = "signature"
    UNREADABLE = "unreadable"
    #: The task raised ``Reject(requeue=False)``.
    REJECTED = "rejected"


_TEXTS = {
    "deaths": "its worker died under it {deaths} times",
    # Died, or was stopped.
    "lost": "it was lost with its worker",
    "signature": "the call does not fit the task",
    "unreadable": "its message can not be read",
    "rejected": "the task rejected it",
}


def incident(worker: str, pid: int, ended: str, **details: Any) -> dict[str, Any]:
    """Return a part of a message's report: one run, and how it ended.

    :param worker: the worker's node name.
    """
    return {"at": time(), "worker": worker, "pid": pid, "ended": ended, **details}


def set_aside(reason: Reason, error: str, last: Mapping[str, Any], *, died: bool = False) -> Aside:
    """Return why a message is set aside, as an engine wants it.

    :param error: the error that is recorded, with its type.
    :param last: the :func:`incident` that ended it.
    :param died: it was the death of its worker.
    """
    return Aside(reason.value, json.dumps({**last, "error": error}), died)


def in_words(reason: str | None, deaths: int) -> str:
    """Say in words why a message was set aside."""
    return _TEXTS.get(str(reason), str(reason)).format(deaths=deaths)


def last_error(info: TaskInfo) -> str:
    """Return the error with which a message was set aside."""
    last = (json.loads(info.report or "[]") or [None])[-1] or {}
    return str(last.get("error", ""))
