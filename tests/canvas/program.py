"""What the worker of the random canvases runs: one task that does what its plan says.

With a queue file as ``CANVAS_URL`` the app is one of ours, with any other broker Celery's own.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from canvas.plans import build
from canvas.plans import digest_of
from celery import Celery
from celery.exceptions import Ignore
from celery.exceptions import Reject
from flask import Flask

from celeriac import make_celery

FOLDER = Path(os.environ["CANVAS_FOLDER"])
URL = os.environ["CANVAS_URL"]
SETTINGS = {
    "broker_url": URL,
    "result_backend": URL,
    "task_default_queue": os.environ.get("CANVAS_QUEUE", "celery"),
    "broker_connection_retry_on_startup": True,
}


def _make_app() -> Any:
    if not URL.startswith("sqlite"):
        return Celery("canvas.program", set_as_current=False, config_source=SETTINGS)
    flask_app = Flask("canvas.program", instance_path=str(FOLDER / "instance"))
    flask_app.config["CELERY"] = SETTINGS
    return make_celery(flask_app)


celery = _make_app()


def journal(*words: object) -> None:
    """Write a line with the time; one write, so that processes do not mix theirs."""
    with (FOLDER / "journal").open("a") as file:
        file.write(" ".join(map(str, [*words, time.time()])) + "\n")


@celery.task(bind=True, name="step", max_retries=1)
def step(self: Any, *args: Any, key: int, do: str, plan: Any = None) -> Any:
    """Do what the plan of a canvas has for one of its tasks."""
    journal("ran", key, self.request.id)
    try:
        return _do(self, do, plan, digest_of(key % 1000, args))
    finally:
        journal("ended", key, self.request.id)


def _do(task: Any, do: str, plan: Any, value: str) -> Any:
    if do == "fail":
        raise ValueError(value)
    if do == "ignore":
        raise Ignore()
    if do == "reject":
        raise Reject("no", requeue=False)
    if do == "odd":
        return object()
    if do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "hang":
        time.sleep(60)
    if do == "replace":
        return task.replace(build(plan, celery))
    if do == "give up" or (do == "retry" and not task.request.retries):
        raise task.retry(exc=ValueError(value), countdown=0)
    return value


@celery.task(name="digest")
def digest(*numbers: int) -> str:
    if -1 in numbers:
        raise ValueError("no")
    return digest_of(0, numbers)


@celery.task(name="note")
def note(*args: Any, key: int) -> None:
    journal("link", key, "-")


@celery.task(name="on_error")
def on_error(request: Any, exc: Any, traceback: Any, key: int = 0) -> None:
    journal("errback", key, request.id)


@celery.task(bind=True, name="on_old_error")
def on_old_error(self: Any, task_id: str, key: int = 0) -> None:
    journal("errback", key, task_id)


@celery.task(name="on_bad_error")
def on_bad_error(request: Any, exc: Any, traceback: Any, key: int = 0) -> None:
    journal("errback", key, request.id)
    raise KeyError("an error callback that fails itself")
