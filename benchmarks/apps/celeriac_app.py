"""Celeriac in a Flask application, by its own factory. The URL comes from the environment."""

from __future__ import annotations

import os

from flask import current_app
from flask import Flask

from benchmarks.apps.body import timed_sum
from celeriac import make_celery

flask_app = Flask("benchmark")
flask_app.config["CELERY_BROKER_URL"] = os.environ["BENCHMARK_BROKER_URL"]
flask_app.config["CELERY_RESULT_BACKEND"] = os.environ["BENCHMARK_RESULT_BACKEND"]
flask_app.config["CELERY_RESULT_EXPIRES"] = float(os.environ.get("BENCHMARK_EXPIRES", 86400))
celery = make_celery(flask_app)


@celery.task(name="add_together")
def add_together(x: int, y: int) -> str:
    """Add two numbers inside the app context."""
    assert current_app.name == "benchmark"
    return timed_sum(x, y)
