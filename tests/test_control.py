"""What callers tell workers, and must hold when no worker listens."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

import pytest
from celery import Celery
from celery import chain
from celery import chord
from celery import group
from celery import signals
from celery.exceptions import TaskRevokedError
from flask import Flask
from kombu import Queue

from celeriac import Celeriac
from celeriac import make_celery
from celeriac.engines import Engine
from celeriac.engines.base import Worker
from celeriac.exceptions import WaitingWarning

SOON = 10


@pytest.fixture
def celery(queue_url: str) -> Celeriac:
    app = Flask("program")
    app.config["CELERY_BROKER_URL"] = queue_url
    return make_celery(app)


@pytest.fixture
def add(celery: Celeriac) -> Any:
    @celery.task(name="program.add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


@pytest.fixture
def engine(celery: Celeriac) -> Engine:
    engine: Engine = celery.amqp.engine
    return engine


@pytest.fixture
def claim(engine: Engine) -> Iterator[Callable[[], str]]:
    """Claim one task as a worker that hears nothing, and return its id."""
    engine.register(Worker("w", "deaf@host", 1, ["celery"], ["program.add"]))

    def claim() -> str:
        (delivery,) = engine.claim(["celery"], 1, worker="w")
        return delivery.task_id

    yield claim
    engine.deregister("w")


def test_task_revoked_while_no_worker_runs_is_never_run(add: Any, engine: Engine) -> None:
    result = add.delay(1, 2)

    result.revoke()

    assert set(engine.revocations([result.id]).task_ids) == {result.id}
    assert result.state == "REVOKED"
    assert engine.list_tasks() == []


def test_revoked_future_task_is_terminal_at_once(add: Any, engine: Engine) -> None:
    result = add.apply_async((1, 2), countdown=86400)

    result.revoke(terminate=True)

    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=SOON)
    assert engine.list_tasks() == []


def test_several_tasks_are_revoked_at_once(celery: Celeriac, add: Any) -> None:
    results = group(add.s(i) for i in range(5)).apply_async()
    other = add.delay(1)

    results.revoke()
    celery.control.revoke(["one", "two"])

    assert [result.state for result in results] == ["REVOKED"] * 5
    assert other.state == "PENDING"
    assert set(celery.amqp.engine.revocations(["one", "two", "three"]).task_ids) == {"one", "two"}


def test_what_follows_a_revoked_task_is_terminal_with_it(add: Any) -> None:
    chained = chain(add.s(1), add.s(2), add.s(3)).apply_async()
    joined = chord([add.s(1), add.s(2)])(add.si(3))

    chained.parent.parent.revoke()
    joined.parent[0].revoke()

    assert (chained.state, chained.parent.state) == ("REVOKED", "REVOKED")
    assert joined.state == "FAILURE"


def test_finished_task_keeps_its_result(celery: Celeriac, add: Any) -> None:
    failed, succeeded = add.AsyncResult("failed"), add.AsyncResult("succeeded")
    celery.backend.mark_as_failure("failed", ValueError("no"))
    celery.backend.mark_as_done("succeeded", 3)

    failed.revoke()
    succeeded.revoke()

    assert (failed.state, succeeded.get()) == ("FAILURE", 3)


def test_task_that_somebody_runs_is_not_said_to_be_revoked(
    add: Any, engine: Engine, claim: Callable[[], str]
) -> None:
    result = add.delay(1, 2)
    assert claim() == result.id

    result.revoke()

    assert result.state == "PENDING"
    assert set(engine.revocations([result.id]).task_ids) == {result.id}


def test_revocation_is_signalled(add: Any) -> None:
    seen = []

    def receive(sender: Any, request: Any, terminated: bool, expired: bool, **kwargs: Any) -> None:
        seen.append((sender.name, request.id, request.args, terminated, expired))

    result = add.delay(1, 2)
    signals.task_revoked.connect(receive)
    try:
        result.revoke()
    finally:
        signals.task_revoked.disconnect(receive)

    assert seen == [("program.add", result.id, [1, 2], False, False)]


def test_ignored_result_stays_ignored(celery: Celeriac, engine: Engine) -> None:
    @celery.task(ignore_result=True)
    def quiet() -> None: ...

    result = quiet.delay()
    result.revoke()

    assert engine.list_tasks() == []
    assert engine.get_results([result.id]) == {}


def test_revoked_message_that_nobody_can_read_goes_as_well(
    celery: Celeriac, add: Any, engine: Engine
) -> None:
    with celery.connection_for_write() as connection:
        connection.default_channel.basic_publish(
            {
                "body": "no JSON",
                "content-type": "application/json",
                "content-encoding": "utf-8",
                "headers": {"task": "program.add", "id": "nonsense"},
                "properties": {},
            },
            exchange="",
            routing_key="celery",
        )

    celery.control.revoke("nonsense")

    assert celery.AsyncResult("nonsense").state == "REVOKED"
    assert engine.list_tasks() == []


# Stamps


def test_stamped_tasks_are_called_off_while_no_worker_runs(
    celery: Celeriac, add: Any, engine: Engine
) -> None:
    celery.control.revoke_by_stamped_headers({"customer": ["a", "b"], "run": "r"})

    stamped = add.s(1)
    stamped.stamp(customer="b")
    result, other = stamped.apply_async(), add.delay(1)

    assert engine.revocations([]).stamps == {"customer": ["a", "b"], "run": ["r"]}
    assert result.explain() == f"Task program.add[{result.id}] was revoked and will not run."
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=SOON)
    assert [info.task_id for info in engine.list_tasks()] == [other.id]


# Apps of Celery's own


def test_revocation_by_a_stock_app_is_durable(queue_url: str, add: Any, engine: Engine) -> None:
    stock = Celery("stock", broker=queue_url, backend=queue_url)
    result = add.delay(1, 2)

    stock.control.revoke(result.id)
    stock.control.terminate("other")
    stock.control.revoke_by_stamped_headers({"customer": "a"})

    assert engine.revocations() == ([result.id, "other"], {"customer": ["a"]}, {"other": 15})
    with pytest.raises(TaskRevokedError, match="revoked"):
        stock.AsyncResult(result.id).get(timeout=SOON)
    stock.close()


# Expiry


@pytest.mark.parametrize(
    "expires",
    [0, 0.2, -5, datetime.now(timezone(timedelta(hours=5, minutes=30)))],
    ids=["now", "soon", "past", "date"],
)
def test_expired_task_ends_the_wait_though_no_worker_runs(
    add: Any, engine: Engine, expires: Any
) -> None:
    result = add.apply_async((1, 2), expires=expires)

    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=SOON)

    assert engine.list_tasks() == []


def test_task_that_expires_before_it_is_due_does_so_unheard_of(add: Any) -> None:
    result = add.apply_async((1, 2), countdown=3600, expires=0.1)

    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=SOON)


def test_expiry_ends_a_wait_that_was_warned_of(add: Any) -> None:
    result = add.apply_async((1, 2), expires=4)

    with (
        pytest.warns(WaitingWarning, match="No worker is running"),
        pytest.raises(TaskRevokedError, match="expired"),
    ):
        result.get(timeout=2 * SOON)


def test_message_ttl_of_the_queue_lets_tasks_expire(celery: Celeriac, add: Any) -> None:
    celery.conf.task_queues = [Queue("short", message_ttl=0.1)]
    with celery.connection_for_write() as connection:
        celery.amqp.queues["short"](connection.default_channel).declare()

    result = add.apply_async((1, 2), queue="short")

    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=SOON)


# Retries


@pytest.mark.usefixtures("claim")
def test_retry_tells_when_it_will_run_again(add: Any) -> None:
    due = datetime(2100, 1, 1, 12, tzinfo=timezone.utc)
    result = add.apply_async((1, 2), eta=due, retries=2)

    assert result.explain() == (
        f"Task program.add[{result.id}] failed, and will run again at 2100-01-01 12:00:00 UTC "
        "(retry 2)."
    )
