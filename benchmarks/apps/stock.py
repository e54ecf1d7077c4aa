"""Stock Celery in a Flask application, by the factory that Flask's documentation printed.

The broker and the result backend come from the environment, so that Redis, RabbitMQ and kombu's
SQLAlchemy transport are measured with one program.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from flask import current_app
from flask import Flask

from benchmarks.apps.body import timed_sum
from benchmarks.servers import QUEUE


def make_celery(app: Flask) -> Celery:
    """Return a Celery app whose tasks run in the Flask app's context."""
    celery = Celery(
        app.import_name,
        broker=os.environ["BENCHMARK_BROKER_URL"],
        backend=os.environ["BENCHMARK_RESULT_BACKEND"],
    )
    celery.conf.worker_disable_rate_limits = True
    celery.conf.task_default_queue = QUEUE

    class ContextTask(celery.Task):  # type: ignore[name-defined,misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery.Task = ContextTask  # type: ignore[misc]
    return celery


flask_app = Flask("benchmark")
celery = make_celery(flask_app)


@celery.task(name="add_together")
def add_together(x: int, y: int) -> str:
    """Add two numbers inside the app context."""
    assert current_app.name == "benchmark"
    return timed_sum(x, y)
