"""Priorities: one program, one order, whatever the broker."""

from __future__ import annotations

import sys
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection
from programs import Program
from programs import run
from waiting import wait_until

PROGRAM = """
import os

from flask import Flask
from celeriac import make_celery

app = Flask(__name__)
app.config.from_prefixed_env()
celery = make_celery(app)


def seen(name, task):
    with open("order", "a") as file:
        print(name, task.request.delivery_info["priority"] or 0, file=file)


@celery.task(bind=True, max_retries=1)
def visit(self, name):
    seen(name, self)


@celery.task(bind=True, max_retries=1)
def again(self):
    seen(f"run-{self.request.retries}", self)
    if not self.request.retries:
        raise self.retry(countdown=0)


@celery.task(bind=True)
def parent(self):
    visit.delay("child")


if __name__ == "__main__":
    for name in os.environ["SENT"].split():
        visit.apply_async((name,), priority=int(name.partition("-")[0]))
    visit.delay("none")
    visit.delay("none-too")
"""
#: Names that begin with their priorities.
SENT = "3 9 0 5-first 1 7 5-second 8 2 6 4 9-second"
ORDER = "9 9-second 8 7 6 5-first 5-second 4 3 2 1 0 none none-too"

QUIETLY = "--without-gossip --without-mingle --without-heartbeat".split()


@pytest.fixture(params=["sqlite", "redis", "rabbitmq"])
def url(request: pytest.FixtureRequest, queue_name: str) -> Iterator[str]:
    """Return the URL of each broker; what the test declares there is deleted."""
    name = {"sqlite": "queue_url", "redis": "redis_url", "rabbitmq": "amqp_url"}[request.param]
    url = request.getfixturevalue(name)
    yield url
    if request.param == "rabbitmq":
        with Connection(url) as connection:
            connection.default_channel.queue_delete(queue_name)
            connection.default_channel.exchange_delete(queue_name)


@pytest.fixture
def settings(queue_name: str, tmp_path: Path) -> dict[str, str]:
    """Return the program's settings, but for the URL the same everywhere."""
    (tmp_path / "shop.py").write_text(PROGRAM)
    return {
        "FLASK_CELERY__task_default_queue": queue_name,
        "FLASK_CELERY__task_queue_max_priority": "10",
        "FLASK_CELERY__worker_enable_remote_control": "false",
        "FLASK_CELERY__task_ignore_result": "true",
        "FLASK_CELERY__task_inherit_parent_priority": "true",
        "FLASK_CELERY__broker_transport_options": '{"priority_steps": [0,1,2,3,4,5,6,7,8,9]}',
        "SENT": SENT,
    }


def test_one_program_has_one_order(
    url: str, settings: dict[str, str], worker: Callable[..., Program], tmp_path: Path
) -> None:
    env = {**settings, "FLASK_CELERY__broker_url": url}
    run([sys.executable, "shop.py"], cwd=tmp_path, env=env)

    started = worker("-A", "shop", "-c", "1", *QUIETLY, cwd=tmp_path, env=env)

    visits = _visits(tmp_path, len(ORDER.split()))
    started.kill()  # A stock worker on RabbitMQ takes its time to stop.
    assert [name for name, _ in visits] == ORDER.split()
    # A task sees what its caller gave.
    given = [int(name.partition("-")[0]) if name[0].isdigit() else 0 for name in ORDER.split()]
    assert [priority for _, priority in visits] == given


def test_retries_and_children_keep_the_priority(
    url: str, settings: dict[str, str], worker: Callable[..., Program], tmp_path: Path
) -> None:
    env = {**settings, "FLASK_CELERY__broker_url": url}
    code = "from shop import again, parent; again.apply_async(priority=7); parent.apply_async("
    run([sys.executable, "-c", f"{code}priority=4)"], cwd=tmp_path, env=env)

    started = worker("-A", "shop", "-c", "1", *QUIETLY, cwd=tmp_path, env=env)

    visits = _visits(tmp_path, 3)
    started.kill()
    assert sorted(visits) == [("child", 4), ("run-0", 7), ("run-1", 7)]


@pytest.mark.differs("redis", row="Priority")
def test_redis_has_four_steps_unless_told_otherwise(
    redis_url: str, settings: dict[str, str], worker: Callable[..., Program], tmp_path: Path
) -> None:
    del settings["FLASK_CELERY__broker_transport_options"]
    env = {**settings, "FLASK_CELERY__broker_url": redis_url, "SENT": "0 4 6 8 3 9 5 7"}
    run([sys.executable, "shop.py"], cwd=tmp_path, env=env)

    started = worker("-A", "shop", "-c", "1", *QUIETLY, cwd=tmp_path, env=env)

    order = [name for name, _ in _visits(tmp_path, 10)]
    started.kill()
    assert order == "9 6 8 7 4 3 5 0 none none-too".split()


def _visits(folder: Path, number: int) -> list[tuple[str, int]]:
    """Wait for so many lines of the program's journal, and return their words."""
    path = folder / "order"
    wait_until(lambda: path.exists() and len(path.read_text().splitlines()) >= number, 20)
    lines = [line.split() for line in path.read_text().splitlines()]
    return [(name, int(priority)) for name, priority in lines]
