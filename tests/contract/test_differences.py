"""What means something else with a worker of Celery's own: both outcomes, side by side."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import NotRegistered
from celery.exceptions import TimeoutError as WaitedInVain
from waiting import wait_until

from celeriac.exceptions import WaitingWarning

SOON = 10
NAME = "worker@contract"


@pytest.mark.differs("redis", "rabbitmq", row="A task that no worker knows")
def test_unknown_task_waits_for_a_worker_that_knows_it(tasks: Any, differs: bool) -> None:
    result = tasks.celery.send_task("contract_program.of_tomorrow")

    assert tasks.add.delay(1, 1).get(timeout=SOON) == 2
    if differs:
        with pytest.raises(NotRegistered):
            result.get(timeout=SOON)
    else:
        assert result.state == "PENDING"
        assert result.exists()


@pytest.mark.differs("redis", "rabbitmq", row="Prefetch")
def test_worker_takes_no_more_than_it_runs(tasks: Any, contract: Any, differs: bool) -> None:
    key = contract.new_key()
    results = [tasks.waiting.delay(key) for _ in range(4)]
    try:
        contract.wait_for("waiting", key)
        if contract.pool != "solo":  # It answers when the task is through.
            inspect = tasks.celery.control.inspect([NAME], timeout=SOON, limit=1)
            wait_until(lambda: len(inspect.active()[NAME]) == 2, SOON)
            # What a child claimed beside its task is handed back after some milliseconds.
            reserved = 2 if differs else 0
            wait_until(lambda: len(inspect.reserved()[NAME]) == reserved, SOON)
    finally:
        contract.let_go(key)
    assert [result.get(timeout=SOON) for result in results] == [key] * 4


@pytest.mark.differs("redis", "rabbitmq", row="`eta`, `countdown`")
def test_task_that_is_not_due_waits_in_its_queue(tasks: Any, contract: Any, differs: bool) -> None:
    inspect = tasks.celery.control.inspect([NAME], timeout=SOON, limit=1)

    with tasks.celery.connection_for_write() as connection:
        connection.default_channel.queue_purge(contract.queue)
        result = tasks.note.apply_async(("never",), countdown=3600)
        wait_until(lambda: inspect.scheduled()[NAME], SOON)
        # A stock worker has it in its memory, so there is nothing in the queue to be purged.
        purged = connection.default_channel.queue_purge(contract.queue)
    result.revoke()
    assert purged == int(not differs)


@pytest.mark.differs("redis", "rabbitmq", row="Waiting for results")
def test_waiting_in_vain_is_warned_of(tasks: Any, contract: Any, differs: bool) -> None:
    result = tasks.add.apply_async((1, 1), queue=contract.new_queue())

    with warnings.catch_warnings(record=True) as caught, pytest.raises(WaitedInVain):
        warnings.simplefilter("always", WaitingWarning)
        result.get(timeout=1.2)
    if differs:  # Celery keeps it, and would ask Redis for it at the end of the program.
        tasks.celery.backend.remove_pending_result(result)

    assert [each.category for each in caught] == [] if differs else [WaitingWarning]


@pytest.mark.differs("redis", "rabbitmq", row="`acks_late`, child killed")
def test_late_task_whose_child_is_killed_runs_again(
    tasks: Any, contract: Any, differs: bool
) -> None:
    if contract.pool not in ("prefork", "spawn"):
        pytest.skip("its child is the worker itself, or has its own test")

    result = tasks.late_killing.delay()

    with pytest.raises(WorkerLostError):
        result.get(timeout=30)
    assert len(contract.journal("killing", result.id)) == (1 if differs else 3)
