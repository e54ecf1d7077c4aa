"""A program whose worker can be made to hang, and that is quick to notice it."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from celery import signals
from celery.worker.control import control_command
from flask import Flask

from celeriac import make_celery
from celeriac.worker import claimant
from celeriac.worker import restart
from celeriac.worker import watchdog
from celeriac.worker.native import original

# Tests have no twenty seconds. It takes more than the one after which children look again.
watchdog.TICK = 0.1
watchdog.LIMIT = 22
watchdog.SLOW = 0.5
claimant.TURN = 1.0
restart.MOST = 1

FOLDER = Path(os.environ["HANGING_FOLDER"])

flask_app = Flask(__name__, instance_path=str(FOLDER))
flask_app.config["CELERY"] = {
    "broker_url": os.environ["HANGING_URL"],
    **json.loads(os.environ.get("HANGING_CONF", "{}")),
}
celery = make_celery(flask_app)


@celery.task
def add(x: int, y: int) -> int:
    return x + y


@celery.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@celery.task
def waiting(key: str) -> str:
    (FOLDER / f"{key}-began").touch()
    while not (FOLDER / key).exists():
        time.sleep(0.01)
    return key


@celery.task
def computing(key: str) -> str:
    """Let no other greenlet run."""
    (FOLDER / f"{key}-began").touch()
    while not (FOLDER / key).exists():
        pass
    return key


@control_command(args=[("seconds", float)])
def hang(state: Any, seconds: float) -> None:
    # Through no wait that gevent knows of: the loop's thread itself hangs.
    original("time", "sleep")(seconds)


@signals.before_task_publish.connect
def hang_once(sender: str, **kwargs: Any) -> None:
    """Deadlock in whoever sends the body of a chord for the first time."""
    marker = FOLDER / "deadlocked"
    if sender == "hanging.total" and not marker.exists():
        marker.touch()
        lock = threading.Lock()
        with lock:
            lock.acquire()
