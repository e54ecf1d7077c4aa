"""What Celery promises of results: their values, errors, states and methods."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from datetime import timezone
from typing import Any

import pytest
from celery import group
from celery.exceptions import MaxRetriesExceededError
from celery.exceptions import TimeoutError as WaitedInVain
from celery.result import AsyncResult
from celery.result import GroupResult
from kombu.exceptions import EncodeError
from waiting import wait_until

SOON = 10


def test_result_answers_all_questions(tasks: Any) -> None:
    before = datetime.now(timezone.utc)
    result = tasks.add.delay(1, 2)

    assert result.get(timeout=SOON) == result.wait(timeout=SOON) == result.result == 3
    assert (result.state, result.status) == ("SUCCESS", "SUCCESS")
    assert (result.ready(), result.successful(), result.failed()) == (True, True, False)
    assert result.maybe_throw() == result.info == 3
    assert before <= result.date_done.replace(tzinfo=timezone.utc) <= datetime.now(timezone.utc)
    assert result.traceback is None
    assert AsyncResult(result.id, app=tasks.celery) == result
    assert AsyncResult(result.id, app=tasks.celery).result == 3


def test_failure_answers_all_questions(tasks: Any) -> None:
    result = tasks.fail.delay("no good")

    error = result.get(timeout=SOON, propagate=False)

    assert (type(error), error.args) == (ValueError, ("no good",))
    assert (result.ready(), result.successful(), result.failed()) == (True, False, True)
    assert isinstance(result.result, ValueError)
    with pytest.raises(ValueError, match="no good"):
        result.maybe_throw()
    assert result.traceback.rstrip().endswith("ValueError: no good")
    assert (result.name, result.args, result.retries) == ("contract_program.fail", ["no good"], 0)


def test_callbacks_of_a_result_are_called(tasks: Any) -> None:
    seen: list[Any] = []
    result = tasks.add.delay(2, 3)

    result.get(timeout=SOON, callback=lambda task_id, value: seen.append((task_id, value)))

    assert seen == [(result.id, 5)]


def test_waiting_has_an_end(tasks: Any, contract: Any) -> None:
    key = contract.new_key()
    result = tasks.waiting.delay(key)
    began = time.monotonic()

    with pytest.raises(WaitedInVain, match="The operation timed out"):
        result.get(timeout=0.3)

    assert time.monotonic() - began >= 0.3
    contract.let_go(key)
    assert result.get(timeout=SOON) == key


def test_unknown_id_is_pending(tasks: Any) -> None:
    result = AsyncResult("of-nobody", app=tasks.celery)

    assert (result.state, result.result, result.ready()) == ("PENDING", None, False)


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("own", "Trouble", r"\(7, 'seven'\)"),
        ("key", "KeyError", "missing"),
        ("unknown", "Unheard", "of it"),
        ("not json", "ValueError", r"\{1, 2\}"),
    ],
)
def test_error_comes_back_by_its_name(tasks: Any, kind: str, name: str, text: str) -> None:
    with pytest.raises(Exception, match=text) as caught:
        tasks.raising.delay(kind).get(timeout=SOON)

    assert type(caught.value).__name__ == name
    if kind == "own":
        assert isinstance(caught.value, tasks.Trouble)
        assert caught.value.args == (7, "seven")
    if kind == "unknown":
        assert "of_the_worker" not in sys.modules


def test_task_out_of_retries_says_so(tasks: Any) -> None:
    with pytest.raises(MaxRetriesExceededError, match=r"Can't retry contract_program.exhausted"):
        tasks.exhausted.delay().get(timeout=SOON)


def test_retry_is_a_state_with_its_reason(tasks: Any) -> None:
    result = tasks.flaky.apply_async((1,))
    waiting = tasks.hooked.delay("retry")

    wait_until(lambda: waiting.state == "RETRY", SOON)
    assert result.get(timeout=SOON) == 1
    wait_until(waiting.successful, SOON)


def test_result_that_can_not_be_stored_fails_the_task(tasks: Any) -> None:
    with pytest.raises(EncodeError, match="set is not JSON serializable"):
        tasks.unstorable.delay().get(timeout=SOON)


def test_large_results_and_arguments_arrive(tasks: Any) -> None:
    sent = "ä" * 500_000

    assert tasks.echo.delay(sent).get(timeout=SOON) == [[sent], {}]


def test_results_of_a_group_count_and_join(tasks: Any) -> None:
    result = group(tasks.add.s(i, 0) for i in range(4)).delay()

    assert result.join(timeout=SOON) == [0, 1, 2, 3]
    assert (result.completed_count(), result.ready(), result.successful()) == (4, True, True)
    assert sorted(value["result"] for _, value in result.iter_native()) == [0, 1, 2, 3]
    assert [each.get(timeout=SOON) for each in result] == [0, 1, 2, 3]


def test_failure_in_a_group_is_raised(tasks: Any) -> None:
    result: GroupResult = group(tasks.add.s(1, 1), tasks.fail.s("in a group")).delay()

    with pytest.raises(ValueError, match="in a group"):
        result.get(timeout=SOON)
    wait_until(result.ready, SOON)
    assert result.failed()
    values = result.get(timeout=SOON, propagate=False)
    assert values[0] == 2
    assert isinstance(values[1], ValueError)


def test_result_may_be_rebuilt_from_a_tuple(tasks: Any) -> None:
    from celery.result import result_from_tuple

    result = (tasks.add.s(1, 2) | tasks.add.s(3)).delay()

    rebuilt = result_from_tuple(result.as_tuple(), app=tasks.celery)

    assert rebuilt.get(timeout=SOON) == 6
    assert rebuilt.parent.get(timeout=SOON) == 3
