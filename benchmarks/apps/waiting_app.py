"""Tasks that wait, and tell from when to when. The URL comes from the environment."""

from __future__ import annotations

import asyncio
import os
import time

from flask import current_app
from flask import Flask

from celeriac import make_celery

flask_app = Flask("waiting")
flask_app.config["CELERY_BROKER_URL"] = os.environ["BENCHMARK_BROKER_URL"]
celery = make_celery(flask_app)


@celery.task
def nap(seconds: float) -> tuple[float, float]:
    """Wait as a plain function does."""
    began = time.time()
    time.sleep(seconds)
    assert current_app.name == "waiting"
    return began, time.time()


@celery.task
async def nap_async(seconds: float) -> tuple[float, float]:
    """Wait as an ``async def`` does."""
    began = time.time()
    await asyncio.sleep(seconds)
    assert current_app.name == "waiting"
    return began, time.time()
