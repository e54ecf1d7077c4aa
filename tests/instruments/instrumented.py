"""A program that Sentry or OpenTelemetry watches, as their guides say, and one call of each kind.

What they would send to a server they write into the file ``records``, a line each.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from celery.schedules import schedule
from flask import Flask

from celeriac import make_celery

FOLDER = Path(os.environ["PROGRAM_FOLDER"])
URL = os.environ["PROGRAM_URL"]


def record(kind: str, fields: Any) -> None:
    """Write a line; one write, so that processes do not mix theirs."""
    with (FOLDER / "records").open("a") as file:
        file.write(json.dumps([kind, fields], default=str) + "\n")


# Before the Celery app, as their guides say.
instrument = importlib.import_module(os.environ["PROGRAM_INSTRUMENT"])
instrument.set_up(record)


class Once(schedule):
    """A task a minute, as far as anybody can see; beat sends it once, at its start."""

    began: datetime | None = None

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        Once.began = Once.began or last_run_at
        return last_run_at == Once.began, 60.0


flask_app = Flask(__name__)
flask_app.config["CELERY"] = {
    "broker_url": URL,
    "result_backend": URL,
    "beat_schedule": {"ticking": {"task": "instrumented.tick", "schedule": Once(60)}},
}
celery = make_celery(flask_app)
logger = logging.getLogger("shop")


@celery.task
def add(x: int, y: int) -> int:
    logger.info("adding %s to %s", y, x)
    return x + y


@celery.task
def fail() -> None:
    logger.info("about to fail")
    raise ValueError("no")


@celery.task(throws=(KeyError,))
def expected() -> None:
    raise KeyError("nothing new")


@celery.task(bind=True, max_retries=1)
def flaky(self: Any) -> int:
    if not self.request.retries:
        raise self.retry(exc=ValueError("again"), countdown=0.01)
    return 1


@celery.task
def outer() -> str:
    """Send another task, whose id is the result."""
    return str(add.delay(1, 1).id)


@celery.task
def tick() -> None:
    """What beat sends."""


@flask_app.get("/order")
def order() -> str:
    return str(add.delay(2, 3).id)


@flask_app.get("/steps")
def steps() -> str:
    return str((add.s(1, 2) | add.s(3)).apply_async().id)


def call() -> None:
    """Have each kind of task run once, and wait for all of them."""
    instrument.start()
    client = flask_app.test_client()
    for path in ("/order", "/steps"):
        celery.AsyncResult(client.get(path).text).get(timeout=30)
    for task in (fail, expected, flaky):
        task.delay().get(timeout=30, propagate=False)
    celery.AsyncResult(outer.delay().get(timeout=30)).get(timeout=30)
    instrument.flush()
