"""Rate limits: of a task, over all workers that share the file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import Program
from programs import run
from waiting import wait_until

PROGRAM = """
import os
import time

from flask import Flask
from celeriac import make_celery

app = Flask(__name__)
app.config.from_prefixed_env()
celery = make_celery(app)


@celery.task(rate_limit="4/s")
def limited():
    now = time.time()
    with open("starts", "a") as file:
        file.write(f"{now} {os.getppid()}\\n")


@celery.task
def other():
    pass
"""
#: What may be late on a busy machine (seconds).
JITTER = 0.1

Start = Callable[..., Program]


@pytest.fixture
def start(worker: Start, tmp_path: Path) -> Start:
    """Start a worker on a broker: ``start(url, "-c", "2")``; it need not be ready."""
    (tmp_path / "shop.py").write_text(PROGRAM)

    def start(url: str, *options: str, **settings: str) -> Program:
        env = {f"FLASK_CELERY__{name}": value for name, value in settings.items()}
        env |= {"FLASK_CELERY__broker_url": url, "FLASK_CELERY__result_backend": url}
        name = f"{len(list(tmp_path.glob('program-*')))}@here"
        return worker("-A", "shop", "-n", name, *options, wait=False, cwd=tmp_path, env=env)

    return start


@pytest.fixture
def call(tmp_path: Path) -> Callable[[str, str], str]:
    """Run code in a process of its own, where the program's names are known."""

    def call(url: str, code: str) -> str:
        command = [sys.executable, "-c", f"from shop import *\n{code}"]
        env = {"FLASK_CELERY__broker_url": url, "FLASK_CELERY__result_backend": url}
        return run(command, cwd=tmp_path, env=env).stdout

    return call


def test_a_limit_holds_over_all_workers(
    start: Start, call: Callable[[str, str], str], queue_url: str, tmp_path: Path
) -> None:
    pools = [("-c", "2"), ("-c", "1"), ("-P", "threads", "-c", "2"), ("-P", "solo")]
    workers = [start(queue_url, *options) for options in pools]
    for each in workers:
        each.wait_for_log(" ready.")

    call(queue_url, "for _ in range(14): limited.delay(); other.delay()")
    wait_until(lambda: len(starts(tmp_path)) >= 2)
    # The limit does not begin anew with a worker, nor is it a dead one's.
    workers[0].kill()
    again = start(queue_url, "-c", "2")
    wait_until(lambda: len(starts(tmp_path)) == 14, 20)
    # Slower, on all that run, the new one too.
    again.wait_for_log(" ready.")
    code = "print(celery.control.rate_limit('shop.limited', '2/s', reply=True))\n"
    said = call(queue_url, f"{code}for _ in range(4): limited.delay()")
    wait_until(lambda: len(starts(tmp_path)) == 18, 20)

    assert said.count("new rate limit set successfully") == 4
    assert most_in(starts(tmp_path)[:14], 1.0) <= 4
    assert most_in(starts(tmp_path)[14:], 1.0) <= 2
    # And what is allowed is made use of.
    began, ended = starts(tmp_path)[0], starts(tmp_path)[13]
    assert ended - began < 2 * 13 / 4


def test_limits_can_be_disabled(
    start: Start, call: Callable[[str, str], str], queue_url: str, tmp_path: Path
) -> None:
    start(queue_url, "-P", "solo", worker_disable_rate_limits="true").wait_for_log(" ready.")

    call(queue_url, "for _ in range(20): limited.delay()")

    wait_until(lambda: len(starts(tmp_path)) == 20)
    assert most_in(starts(tmp_path), 1.0) > 4


@pytest.mark.differs("redis", "rabbitmq", row="Rate limit")
def test_on_redis_each_worker_has_its_own(
    start: Start, call: Callable[[str, str], str], redis_url: str, tmp_path: Path
) -> None:
    for each in [start(redis_url, "-c", "1", "--without-mingle") for _ in range(2)]:
        each.wait_for_log("a rate limit holds for each worker")

    call(redis_url, "for _ in range(8): limited.delay()")

    wait_until(lambda: len(starts(tmp_path)) == 8)
    assert all(most_in(starts(tmp_path, pid), 1.0) <= 4 for pid in parents(tmp_path))
    assert most_in(starts(tmp_path), 1.0) > 4


def starts(folder: Path, parent: str = "") -> list[float]:
    """Return when the task was started, in order: everywhere, or by one worker."""
    return sorted(float(when) for when, pid in _lines(folder) if parent in ("", pid))


def parents(folder: Path) -> set[str]:
    """Return the process ids of the workers that started the task."""
    return {pid for _, pid in _lines(folder)}


def most_in(found: list[float], seconds: float) -> int:
    """Return how many starts there were at most in so many seconds, whenever these begin."""
    return max(sum(begin <= start < begin + seconds - JITTER for start in found) for begin in found)


def _lines(folder: Path) -> list[Any]:
    path = folder / "starts"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
