"""What Redis and RabbitMQ take otherwise: translated, or said once."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from pathlib import Path
from typing import Any

import kombu.pools
import pytest
from celery import group
from flask import Flask
from kombu import Connection
from programs import Program
from waiting import wait_until

from celeriac import Celeriac
from celeriac import make_celery
from celeriac.brokers import HighestFirst
from celeriac.exceptions import ConfigurationWarning


def visit() -> None:
    pass


@pytest.fixture
def app(queue_name: str) -> Iterator[Callable[..., Celeriac]]:
    """Make apps with one task, ``visit``, whose connections are closed."""
    made = []

    def make(url: str, **settings: Any) -> Celeriac:
        flask_app = Flask("shop")
        common = {"task_default_queue": queue_name, "task_ignore_result": True}
        flask_app.config["CELERY"] = {"broker_url": url, **common, **settings}
        made.append(make_celery(flask_app))
        made[-1].task(name="visit")(visit)
        return made[-1]

    yield make
    kombu.pools.reset()
    for each in made:
        each.close()


@pytest.fixture
def rabbitmq(amqp_url: str, queue_name: str) -> Iterator[str]:
    yield amqp_url
    with Connection(amqp_url) as connection:
        connection.default_channel.queue_delete(queue_name)
        connection.default_channel.exchange_delete(queue_name)


def test_steps_are_read_from_the_highest_and_found_as_before() -> None:
    steps = HighestFirst([0, 3, 6, 9])

    assert [*steps] == [9, 6, 3, 0]
    # As kombu's Redis transport finds the list of a message.
    assert [steps[bisect(steps, priority) - 1] for priority in (0, 2, 3, 8, 9)] == [0, 0, 3, 6, 9]


@pytest.mark.differs("rabbitmq", row="Priority")
def test_priority_without_a_queue_for_it_is_warned_of_once(
    app: Callable[..., Celeriac], rabbitmq: str, queue_name: str, recwarn: Any
) -> None:
    task = app(rabbitmq).tasks["visit"]

    for _ in range(2):
        task.apply_async(priority=5)

    assert [str(each.message) for each in recwarn] == [
        f"RabbitMQ ignores priorities in the queue {queue_name!r}, which has no x-max-priority: "
        "set task_queue_max_priority = 10. A queue that exists without it must be deleted first, "
        "when it is empty."
    ]
    assert recwarn[0].category is ConfigurationWarning
    assert recwarn[0].filename == __file__


def test_priority_with_a_queue_for_it_is_not_warned_of(
    app: Callable[..., Celeriac], rabbitmq: str, recwarn: Any
) -> None:
    app(rabbitmq, task_queue_max_priority=10).tasks["visit"].apply_async(priority=5)

    assert not recwarn.list


@pytest.mark.differs("redis", row="`eta`, `countdown`")
def test_eta_beyond_the_visibility_timeout_is_warned_of_once(
    app: Callable[..., Celeriac], redis_url: str, recwarn: Any
) -> None:
    task = app(redis_url).tasks["visit"]

    task.apply_async(countdown=3500)
    task.apply_async(countdown=7200)
    task.apply_async(eta=datetime.now(timezone.utc) + timedelta(days=1))

    assert [str(each.message) for each in recwarn] == [
        "Task visit is due in 2:00:00, and Redis hands a message out again after 1:00:00, so it "
        "would run more than once: set broker_transport_options = {'visibility_timeout': seconds} "
        "to more than that, for its workers too."
    ]
    assert recwarn[0].filename == __file__


def test_eta_within_the_visibility_timeout_is_not_warned_of(
    app: Callable[..., Celeriac], redis_url: str, queue_url: str, recwarn: Any
) -> None:
    long = app(redis_url, broker_transport_options={"visibility_timeout": 90000})

    long.tasks["visit"].apply_async(countdown=86400)

    assert not recwarn.list


@pytest.mark.parametrize("other", [None, "cache+memory://"])
def test_only_with_our_backend_a_group_in_a_header_takes_its_id(
    app: Callable[..., Celeriac], queue_url: str, other: str | None
) -> None:
    celery = app(queue_url, result_backend=other or queue_url)
    step = group([celery.signature("visit")] * 2, app=celery).set(task_id="its own")
    step.freeze(group_id="the header's", chord=celery.signature("visit"))

    celery.amqp._retry_publish(step.clone)

    # That on Redis would take the size of the group for that of the chord.
    assert step.options["task_id"] == ("its own" if other else "the header's")


PROGRAM = """
from flask import Flask
from celeriac import make_celery

app = Flask(__name__)
app.config.from_prefixed_env()
celery = make_celery(app)


@celery.task(rate_limit="10/m")
def mail():
    pass


@celery.task(acks_late=True, time_limit=7200)
def export():
    pass


@celery.task(acks_late=True, time_limit=60)
def quick():
    pass
"""


@pytest.mark.differs("redis", row="Long tasks with `acks_late`")
def test_worker_on_redis_says_what_its_tasks_do_not_get(
    worker: Callable[..., Program], redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)

    started = worker("-A", "shop", "-P", "solo", env={"FLASK_CELERY__broker_url": redis_url})

    wait_until(lambda: "time limits, or" in started.log, message=lambda: started.log)
    said = [line.partition("] ")[2] for line in started.log.splitlines() if "WARNING" in line]
    assert [line for line in said if "broker" in line] == [
        "With this broker a rate limit holds for each worker by itself, not for all together: "
        "shop.mail.",
        "Redis hands a message out again after 1:00:00, and these tasks, which are acks_late, may "
        "run longer: shop.export. Set broker_transport_options = {'visibility_timeout': seconds} "
        "to more than their time limits, or they run a second time meanwhile.",
    ]


def test_worker_on_a_queue_file_has_nothing_to_say(
    worker: Callable[..., Program], queue_url: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)

    started = worker("-A", "shop", "-P", "solo", env={"FLASK_CELERY__broker_url": queue_url})

    assert "WARNING" not in started.log
