"""What callers tell workers, and must hold when no worker listens."""

from __future__ import annotations

from flask import Flask

from celeriac import Celeriac
from celeriac import make_celery


def _program(queue_url: str) -> Celeriac:
    app = Flask("program")
    app.config["CELERY_BROKER_URL"] = queue_url
    return make_celery(app)


def test_task_revoked_while_no_worker_runs_is_never_run(queue_url: str) -> None:
    celery = _program(queue_url)
    engine = celery.amqp.engine
    result = celery.send_task("program.add", (1, 2))

    result.revoke()

    assert engine.revoked([result.id]) == {result.id}


def test_several_tasks_are_revoked_at_once(queue_url: str) -> None:
    celery = _program(queue_url)

    celery.control.revoke(["one", "two"])

    assert celery.amqp.engine.revoked(["one", "two", "three"]) == {"one", "two"}
