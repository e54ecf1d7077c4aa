"""What the workers run: tasks that note in the journal when they start and end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any

from celery.signals import task_failure
from celery.signals import worker_process_init
from celery.utils.time import maybe_iso8601
from flask import Flask

from celeriac import make_celery
from faults.journal import Journal

FOLDER = Path(os.environ["FAULTS_FOLDER"])
#: How far a start may be from its ETA, and how long after a task expired (seconds).
TOO_EARLY, TOO_LATE = 0.005, 0.5

flask_app = Flask(__name__, instance_path=str(FOLDER))
flask_app.config["CELERY"] = {
    "broker_url": os.environ["FAULTS_URL"],
    "result_extended": True,
    # The clock jumps by a day, and results are read in the end.
    "result_expires": 10 * 86400,
    # Shorter than the longest tasks.
    "worker_grace_period": 3.0,
    **json.loads(os.environ.get("FAULTS_CONF", "{}")),
}
celery = make_celery(flask_app)
journal = Journal(FOLDER / "journal")


@contextmanager
def noted(task: Any) -> Iterator[None]:
    """Note the start and the end of a task."""
    request = task.request
    run = (request.id, request.retries)
    journal.write("start", *run, as_word(request.args))
    if wrong := _at_wrong_time(request):
        journal.write("untimely", request.id, wrong)
    try:
        yield
    except BaseException:
        journal.write("raised", *run)
        raise
    journal.write("end", *run)


def as_word(args: Any) -> str:
    """Return a task's arguments without a blank."""
    return json.dumps(list(args), separators=(",", ":"))


def _at_wrong_time(request: Any) -> str:
    now = datetime.now(timezone.utc)
    if request.eta and (maybe_iso8601(request.eta) - now).total_seconds() > TOO_EARLY:
        return "early"
    if request.expires and (now - maybe_iso8601(request.expires)).total_seconds() > TOO_LATE:
        return "late"
    return ""


@celery.task(bind=True)
def early(self: Any, seconds: float) -> str:
    """Is acknowledged before it runs: runs once, or is lost aloud."""
    with noted(self):
        time.sleep(seconds)
    return str(self.request.id)


@celery.task(bind=True, acks_late=True)
def late(self: Any, seconds: float) -> str:
    """Is acknowledged when it is done: runs until it is."""
    with noted(self):
        time.sleep(seconds)
    return str(self.request.id)


@celery.task(bind=True, acks_late=True)
def add(self: Any, x: int, y: int = 1) -> int:
    """Adds to a number: a step of a chain, a member of a chord."""
    with noted(self):
        return x + y


@celery.task(bind=True)
def total(self: Any, numbers: list[int]) -> int:
    """Ends a chord. Is acknowledged before it runs: sent twice, it would start twice."""
    with noted(self):
        return sum(numbers)


@celery.task(bind=True, max_retries=2)
def retrying(self: Any) -> str:
    """Succeeds at its third try."""
    with noted(self):
        if self.request.retries < 2:
            raise self.retry(countdown=0.05)
    return str(self.request.id)


@celery.task(bind=True)
def exiting(self: Any) -> None:
    """Ends the process that it runs in."""
    with noted(self):
        os._exit(3)


@celery.task(bind=True, acks_late=True)
def deadly(self: Any) -> None:
    """Ends each process that it runs in."""
    with noted(self):
        os._exit(4)


@celery.task(bind=True)
def failing(self: Any) -> None:
    """Raises."""
    with noted(self):
        raise ValueError("as it should")


if (FOLDER / "stop").exists():

    @celery.task(bind=True)
    def stranger(self: Any) -> None:
        """Is known to nobody until nothing disturbs any more."""
        with noted(self):
            pass


@worker_process_init.connect
def _note_child(**kwargs: Any) -> None:
    journal.write("child", os.getppid())


@task_failure.connect
def _note_failure(task_id: str, exception: Exception, **kwargs: Any) -> None:
    # Also by the worker that deals with a death: when is this, the result only tells by a clock
    # that jumps.
    journal.write("failed", task_id, type(exception).__name__)
