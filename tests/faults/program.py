"""What the workers run: tasks that note in the journal when they start and end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery.signals import worker_process_init
from flask import Flask

from celeriac import make_celery
from faults.journal import Journal

FOLDER = Path(os.environ["FAULTS_FOLDER"])

flask_app = Flask(__name__, instance_path=str(FOLDER))
flask_app.config["CELERY"] = {
    "broker_url": os.environ["FAULTS_URL"],
    "result_extended": True,
    **json.loads(os.environ.get("FAULTS_CONF", "{}")),
}
celery = make_celery(flask_app)
journal = Journal(FOLDER / "journal")


@contextmanager
def noted(task: Any) -> Iterator[None]:
    """Note the start and the end of a task."""
    journal.write("start", task.request.id, task.request.retries)
    yield
    journal.write("end", task.request.id, task.request.retries)


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
def add(self: Any, x: Any, y: int = 1) -> int:
    """Adds to a number, or to the sum of several: a step of a chain, the end of a chord."""
    with noted(self):
        return (sum(x) if isinstance(x, list) else x) + y


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


@worker_process_init.connect
def _note_child(**kwargs: Any) -> None:
    journal.write("child", os.getppid())
