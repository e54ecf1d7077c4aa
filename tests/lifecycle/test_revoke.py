"""Calling off what waits and what runs, with workers there to hear it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from contracts import Contract
from contracts import make_contract
from leaks import LASTING
from waiting import wait_until

from celeriac.engines import Engine
from celeriac.engines import open_engine

SOON = 10


@pytest.fixture(scope="module", params=["prefork", "threads"])
def contract(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contract]:
    made = make_contract(tmp_path_factory.mktemp("revoke"), request.param)
    worker = made.start("-P", made.pool, "-c", "2", "-E")
    LASTING.add(worker.pid)
    try:
        yield made
    finally:
        worker.stop()
        print(worker.log)


@pytest.fixture
def inspect(tasks: Any) -> Callable[[str], Any]:
    """Ask the worker, and return what it answered."""

    def inspect(method: str) -> Any:
        asked = tasks.celery.control.inspect(timeout=5, limit=1)
        return getattr(asked, method)()["worker@contract"]

    return inspect


@pytest.fixture
def running(inspect: Callable[[str], Any]) -> Callable[[Any], None]:
    """Wait until a worker runs a task."""

    def running(result: Any) -> None:
        wait_until(lambda: result.id in [each["id"] for each in inspect("active")], SOON)

    return running


# What runs


def test_running_loop_is_ended(tasks: Any, running: Callable[[Any], None]) -> None:
    results = [tasks.looping.delay(60) for _ in range(2)]
    for result in results:
        running(result)

    tasks.celery.control.revoke([result.id for result in results], terminate=True)

    for result in results:
        with pytest.raises(TaskRevokedError, match="terminated"):
            result.get(timeout=SOON)
    # Both hands of the worker are free again.
    again = [tasks.looping.delay(0) for _ in range(2)]
    assert [result.get(timeout=SOON) for result in again] == ["through"] * 2
    assert [result.state for result in results] == ["REVOKED"] * 2


def test_running_task_is_ended_by_its_stamp(tasks: Any, running: Callable[[Any], None]) -> None:
    signature = tasks.looping.si(60)
    signature.stamp(customer="running")
    result, other = signature.apply_async(), tasks.looping.delay(0.5)
    running(result)

    tasks.celery.control.revoke_by_stamped_headers({"customer": ["running"]}, terminate=True)

    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=SOON)
    assert other.get(timeout=SOON) == "through"


def test_running_task_goes_on_when_it_is_revoked_without_terminate(
    tasks: Any, contract: Contract
) -> None:
    key = contract.new_key()
    result = tasks.waiting.delay(key)
    contract.wait_for("waiting", key)

    tasks.celery.control.revoke(result.id, reply=True, timeout=5, limit=1)

    assert result.state == "PENDING"
    contract.let_go(key)
    assert result.get(timeout=SOON) == key


@pytest.mark.parametrize("signal", ["SIGKILL", "TERM"])
def test_signal_of_terminate_is_chosen(
    tasks: Any, contract: Contract, running: Callable[[Any], None], signal: str
) -> None:
    result = tasks.looping.delay(60)
    running(result)

    result.revoke(terminate=True, signal=signal)

    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=SOON)
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3


def test_signal_of_the_soft_limit_lets_the_task_clean_up(
    tasks: Any, contract: Contract, running: Callable[[Any], None]
) -> None:
    key = contract.new_key()
    result = tasks.outliving.delay(key, 1)
    running(result)

    result.revoke(terminate=True, signal="SIGUSR1")

    contract.wait_for("raised", key, "SoftTimeLimitExceeded")
    contract.wait_for("outlived", key)
    assert len(contract.journal("raised", key)) == 1


def test_late_task_that_is_terminated_does_not_run_again(tasks: Any, contract: Contract) -> None:
    key = contract.new_key()
    result = tasks.late_waiting.delay(key)
    contract.wait_for("waiting", key)

    result.revoke(terminate=True, signal="KILL")

    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=SOON)
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
    assert len(contract.journal("waiting", key)) == 1
    contract.let_go(key)


def test_task_that_outlives_a_signal_is_ended_by_the_next(tasks: Any, contract: Contract) -> None:
    if contract.pool != "prefork":
        pytest.skip("Only processes hear signals.")
    key = contract.new_key()
    result = tasks.ignoring_term.delay(key, 60)
    contract.wait_for("ignoring_term", key)
    result.revoke(terminate=True)
    inspect = tasks.celery.control.inspect(timeout=5, limit=1)
    wait_until(lambda: result.id in str(inspect.revoked()), SOON)

    result.revoke(terminate=True, signal="KILL")

    wait_until(lambda: result.id not in str(inspect.active()), SOON)
    assert result.state == "REVOKED"


def test_abortable_task_hears_that_it_is_aborted(tasks: Any, contract: Contract) -> None:
    key = contract.new_key()
    result = tasks.abortable.delay(key)
    contract.wait_for("abortable", key)

    assert tasks.abortable.AsyncResult(result.id).abort() is None
    assert tasks.abortable.AsyncResult(result.id).is_aborted()

    assert result.get(timeout=SOON) == "aborted"


# What waits


def test_waiting_task_is_revoked_at_once_and_its_event_is_sent(tasks: Any, engine: Engine) -> None:
    seen: list[dict[str, Any]] = []
    with tasks.celery.connection_for_read() as own:
        receiver = tasks.celery.events.Receiver(own, handlers={"task-revoked": seen.append})
        with receiver.consumer_context() as (connection, _, _):
            result = tasks.add.apply_async((1, 2), countdown=3600)

            result.revoke()

            assert result.state == "REVOKED"

            def told() -> list[dict[str, Any]]:
                try:
                    connection.drain_events(timeout=0.1)
                except TimeoutError:
                    pass
                return [event for event in seen if event["uuid"] == result.id]

            event = wait_until(told, SOON)[0]
    assert (event["hostname"], event["terminated"], event["expired"]) == (
        "worker@contract",
        False,
        False,
    )
    assert engine.list_tasks(task_ids=[result.id]) == []


def test_chain_and_chord_end_with_a_waiting_part(tasks: Any) -> None:
    from celery import chain
    from celery import chord

    waiting = tasks.add.si(1, 1).set(countdown=3600)
    chained = chain(waiting, tasks.add.s(2)).apply_async()
    joined = chord([waiting, tasks.add.si(1, 2)])(tasks.total.s())

    tasks.celery.control.revoke([chained.parent.id, joined.parent[0].id])

    with pytest.raises(TaskRevokedError):
        chained.get(timeout=SOON)
    wait_until(lambda: joined.state == "FAILURE", SOON)


def test_worker_that_starts_later_knows_what_was_revoked(
    tasks: Any, contract: Contract, inspect: Callable[[str], Any]
) -> None:
    queue, key = contract.new_queue(), contract.new_key()
    signature = tasks.note.si("stamped", key)
    signature.stamp(customer=key)
    tasks.celery.control.revoke_by_stamped_headers({"customer": [key]})
    revoked = tasks.note.apply_async(("revoked", key), queue=queue)
    revoked.revoke()
    stamped = signature.apply_async(queue=queue)
    allowed = tasks.note.apply_async(("allowed", key), queue=queue)

    second = contract.start("-P", contract.pool, "-c", "1", "-Q", queue, name="second")
    try:
        allowed.get(timeout=SOON)
        with pytest.raises(TaskRevokedError, match="revoked"):
            stamped.get(timeout=SOON)
        asked = tasks.celery.control.inspect(["second@contract"], timeout=5)
        assert revoked.id in asked.revoked()["second@contract"]
    finally:
        second.stop()
    assert [line[0] for line in contract.journal(key)] == ["allowed"]
    assert revoked.id in inspect("revoked")


# What expires


def test_what_expires_where_no_worker_takes_it_ends(tasks: Any, contract: Contract) -> None:
    unheard = tasks.add.apply_async((1, 2), queue=contract.new_queue(), expires=0.3)
    unknown = tasks.celery.send_task("strange.task", expires=0.3)
    future = tasks.add.apply_async((1, 2), countdown=3600, expires=0.3)

    for result in (unheard, unknown, future):
        with pytest.raises(TaskRevokedError, match="expired"):
            result.get(timeout=SOON)


def test_expired_message_that_is_no_task_is_deleted(tasks: Any, contract: Contract) -> None:
    queue = contract.new_queue()
    with tasks.celery.connection_for_write() as connection:
        producer = connection.Producer()
        producer.publish({"no": "task"}, routing_key=queue, expiration=0.1)
        simple = connection.default_channel
        wait_until(
            lambda: simple.queue_declare(queue, passive=True).message_count == 0,
            SOON,
        )


# A worker that does nothing else while it runs a task


def test_solo_worker_ends_what_it_runs(tmp_path: Path) -> None:
    contract = make_contract(tmp_path, "solo")
    tasks = contract.program
    worker = contract.start("-P", "solo")
    try:
        result, late = tasks.looping.delay(60), tasks.add.delay(1, 2)
        wait_until(
            lambda: (
                [info.status for info in open_engine(contract.url).list_tasks()][:1] == ["claimed"]
            ),
            SOON,
        )
        result.revoke(terminate=True)

        with pytest.raises(TaskRevokedError, match="terminated"):
            result.get(timeout=SOON)
        assert late.get(timeout=SOON) == 3
        assert result.state == "REVOKED"
    finally:
        worker.stop()
        print(worker.log)
