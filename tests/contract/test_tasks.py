"""What Celery promises of one task: its request, retries, states, options and hooks."""

from __future__ import annotations

import time
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

import celery
import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from waiting import wait_until

SOON = 10


def test_result_and_error_come_back(tasks: Any) -> None:
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
    failed = tasks.fail.delay("so it is")
    with pytest.raises(ValueError, match="so it is"):
        failed.get(timeout=SOON)
    assert failed.state == "FAILURE"
    assert "ValueError: so it is" in failed.traceback


def test_arguments_arrive_as_json_has_them(tasks: Any) -> None:
    sent = [1, "ü", None, {"a": [1.5]}]

    assert tasks.echo.delay(*sent, key={"b": 1}).get(timeout=SOON) == [sent, {"key": {"b": 1}}]
    moment = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
    assert tasks.echo.delay(moment).get(timeout=SOON) == [[moment], {}]


def test_wrong_arguments_fail(tasks: Any) -> None:
    result = tasks.celery.send_task("contract_program.add", (1, 2, 3))

    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        result.get(timeout=SOON)


def test_task_runs_in_the_app_context(tasks: Any) -> None:
    assert tasks.app_name.delay().get(timeout=SOON) == "contract_program"


def test_bound_task_sees_its_request(tasks: Any, contract: Any) -> None:
    result = tasks.whoami.apply_async((1,), {"a": 2}, headers={"custom": "yes"}, priority=3)

    request = result.get(timeout=SOON)

    assert request["id"] == result.id == request["correlation_id"] == request["root_id"]
    assert request["task"] == "contract_program.whoami"
    assert (request["args"], request["kwargs"]) == ([1], {"a": 2})
    assert (request["retries"], request["is_eager"], request["called_directly"]) == (
        0,
        False,
        False,
    )
    assert request["hostname"] == "worker@contract"
    assert request["custom"] == "yes"
    info = request["delivery_info"]
    assert (info["routing_key"], info["priority"]) == (contract.queue, 3)
    assert not info["redelivered"]


def test_task_that_retries_succeeds_at_last(tasks: Any) -> None:
    assert tasks.flaky.delay(2).get(timeout=SOON) == 2


def test_retries_are_limited(tasks: Any, contract: Any) -> None:
    result = tasks.stubborn.delay()

    with pytest.raises(ValueError, match="always"):
        result.get(timeout=SOON)
    assert [line[2] for line in contract.journal("stubborn", result.id)] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="again"):
        tasks.flaky.delay(9).get(timeout=SOON)


def test_task_with_a_countdown_starts_when_it_is_due(tasks: Any, contract: Any) -> None:
    key = contract.new_key()
    sent = time.time()

    tasks.note.apply_async((key,), countdown=0.5)
    contract.wait_for(key)

    assert 0.5 <= time.time() - sent < 1.2


def test_eta_may_have_any_offset(tasks: Any, contract: Any) -> None:
    key = contract.new_key()
    eta = datetime.now(timezone(timedelta(hours=5))) + timedelta(seconds=0.3)

    tasks.note.apply_async((key,), eta=eta)
    contract.wait_for(key)

    assert datetime.now(timezone.utc) >= eta


def test_expired_task_is_revoked(tasks: Any) -> None:
    result = tasks.add.apply_async((1, 2), countdown=0.3, expires=0.1)

    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=SOON)
    assert result.state == "REVOKED"


def test_ignored_result_is_not_stored(tasks: Any, contract: Any) -> None:
    key = contract.new_key()

    result = tasks.ignored.delay(key)
    contract.wait_for("ignored", key)

    assert AsyncResult(result.id, app=tasks.celery).state == "PENDING"


def test_result_may_be_ignored_for_one_call(tasks: Any, contract: Any) -> None:
    key = contract.new_key()

    result = tasks.note.apply_async((key,), ignore_result=True)
    contract.wait_for(key)

    assert AsyncResult(result.id, app=tasks.celery).state == "PENDING"


def test_ignore_leaves_the_state_as_it_is(tasks: Any) -> None:
    result = tasks.ignoring.delay()

    wait_until(lambda: result.state == "CUSTOM", SOON)
    assert result.info == {"left": "like this"}


def test_rejected_message_fails(tasks: Any, contract: Any) -> None:
    if contract.broker != "sqlite" and celery.VERSION < (5, 7):
        pytest.skip("Celery leaves it PENDING")
    result = tasks.rejecting.delay(requeue=False)

    wait_until(lambda: contract.journal("rejecting", result.id), SOON)
    wait_until(lambda: result.state == "FAILURE", SOON)


def test_requeued_message_is_run_again_as_redelivered(tasks: Any, contract: Any) -> None:
    result = tasks.rejecting.delay(requeue=True)

    assert result.get(timeout=SOON) == "redelivered"
    assert len(contract.journal("rejecting", result.id)) == 2


def test_progress_is_seen_while_the_task_runs(tasks: Any, contract: Any) -> None:
    key = contract.new_key()

    result = tasks.progressing.delay(key)
    wait_until(lambda: result.state == "PROGRESS", SOON)

    assert result.info == {"done": 1, "of": 2}
    contract.let_go(key)
    assert result.get(timeout=SOON) == "done"


def test_started_is_tracked_where_asked_for(tasks: Any, contract: Any) -> None:
    key = contract.new_key()

    result = tasks.tracked.delay(key)
    wait_until(lambda: result.state == "STARTED", SOON)

    assert result.info["hostname"] == "worker@contract"
    contract.let_go(key)
    result.get(timeout=SOON)


def test_what_a_task_sends_does_not_wait_for_its_end(tasks: Any, contract: Any) -> None:
    if contract.pool == "solo":
        pytest.skip("one task at a time")
    key = contract.new_key()

    result = tasks.publishing.delay(key)
    contract.wait_for("published", key)

    contract.let_go(key)
    assert result.get(timeout=SOON) == "done"


def test_extended_result_tells_how_the_task_was_called(tasks: Any, contract: Any) -> None:
    result = tasks.add.delay(1, y=2)
    result.get(timeout=SOON)

    assert result.name == "contract_program.add"
    assert (result.args, result.kwargs) == ([1], {"y": 2})
    assert (result.worker, result.queue, result.retries) == ("worker@contract", contract.queue, 0)


def test_late_task_runs_once(tasks: Any) -> None:
    assert tasks.late.delay(3).get(timeout=SOON) == 3


def test_revoked_task_does_not_run(tasks: Any, contract: Any) -> None:
    key = contract.new_key()

    result = tasks.note.apply_async((key,), countdown=0.5)
    result.revoke()

    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=SOON)
    assert not contract.journal(key)


def test_routed_task_is_run_from_its_queue(tasks: Any, contract: Any) -> None:
    result = tasks.elsewhere.delay()

    assert result.get(timeout=SOON) == "elsewhere"
    assert result.queue == f"{contract.queue}-elsewhere"


def test_forgotten_result_is_gone(tasks: Any) -> None:
    result = tasks.add.delay(1, 2)
    result.get(timeout=SOON)

    result.forget()

    assert AsyncResult(result.id, app=tasks.celery).state == "PENDING"


@pytest.mark.parametrize(
    ("way", "calls"),
    [
        ("succeed", ["before_start", "on_success", "after_return"]),
        ("fail", ["before_start", "on_failure", "after_return"]),
        (
            "retry",
            "before_start on_retry before_start on_success after_return".split(),
        ),
    ],
)
def test_hooks_are_called(
    tasks: Any, contract: Any, in_order: Any, way: str, calls: list[str]
) -> None:
    result = tasks.hooked.delay(way)
    wait_until(lambda: result.ready(), SOON)

    wait_until(lambda: len(contract.journal(result.id)) == len(calls), SOON)
    assert in_order([line[0] for line in contract.journal(result.id)]) == in_order(calls)


@pytest.mark.parametrize(
    ("name", "argument", "signals"),
    [
        ("add", 1, ["received", "prerun", "success", "postrun"]),
        ("fail", "no", ["received", "prerun", "failure", "postrun"]),
        (
            "flaky",
            1,
            [*"received prerun retry postrun".split(), *"received prerun success postrun".split()],
        ),
    ],
)
def test_signals_are_sent(
    tasks: Any, contract: Any, in_order: Any, name: str, argument: object, signals: list[str]
) -> None:
    task = getattr(tasks, name)
    result = task.delay(argument, 2) if name == "add" else task.delay(argument)
    wait_until(lambda: result.ready(), SOON)

    expected = [f"task_{signal}" for signal in signals]
    wait_until(lambda: len(contract.journal(result.id)) == len(expected), SOON)
    assert in_order([line[0] for line in contract.journal(result.id)]) == in_order(expected)


def test_rate_limit_holds(tasks: Any, contract: Any) -> None:
    results = [tasks.limited.delay() for _ in range(4)]

    starts = sorted(result.get(timeout=SOON) for result in results)

    # A stock worker allows a start, and leaves it to its pool when that is.
    assert starts[-1] - starts[0] >= (0.28 if contract.broker == "sqlite" else 0.1)


def test_higher_priority_comes_first(tasks: Any, contract: Any) -> None:
    key, queue = contract.new_key(), contract.new_queue()
    # All hands of the worker but one are full: two would race each other.
    held = [] if contract.pool == "solo" else [tasks.waiting.delay(key)]
    if held:
        contract.wait_for("waiting", key)

    # The queue is not consumed yet, since what a stock worker has fetched is in order already.
    for priority in (1, 9, None, 5):
        tasks.note.apply_async((f"{key}-{priority}",), priority=priority, queue=queue)
    tasks.celery.control.add_consumer(queue)
    try:
        contract.wait_for(f"{key}-None")
    finally:
        contract.let_go(key)
        tasks.celery.control.cancel_consumer(queue)

    order = [line[0] for line in contract.journal() if line[0].startswith(f"{key}-")]
    assert order == [f"{key}-{priority}" for priority in (9, 5, 1, None)]
    assert [result.get(timeout=SOON) for result in held] == [key] * len(held)
