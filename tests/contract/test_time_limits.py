"""Time limits: the same on each pool."""

from __future__ import annotations

from typing import Any

import celery
import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.exceptions import TimeLimitExceeded
from celery.exceptions import TaskRevokedError
from waiting import wait_until

SOON = 10
#: Where a task can not be killed, and may go on after it was given up.
UNKILLABLE = ("threads", "solo", "gevent")


def told(tasks: Any, command: str, **arguments: Any) -> Any:
    """Return what the worker answers."""
    [answer] = tasks.celery.control.broadcast(
        command, arguments=arguments, reply=True, timeout=SOON, limit=1
    )
    return next(iter(answer.values()))


def test_soft_limit_may_be_caught(tasks: Any) -> None:
    assert tasks.soft_caught.delay().get(timeout=SOON) == "caught"


def test_soft_limit_fails_the_task(tasks: Any) -> None:
    with pytest.raises(SoftTimeLimitExceeded):
        tasks.soft.delay().get(timeout=SOON)


def test_limits_are_those_of_the_call(tasks: Any) -> None:
    with pytest.raises(SoftTimeLimitExceeded):
        tasks.looping.apply_async((10,), soft_time_limit=0.2).get(timeout=SOON)
    with pytest.raises(TimeLimitExceeded, match=r"0\.2"):
        tasks.looping.apply_async((10,), time_limit=0.2).get(timeout=SOON)


def test_limit_is_for_one_task(tasks: Any) -> None:
    results = [tasks.looping.apply_async((0.3,), soft_time_limit=0.3) for _ in range(3)]
    others = [tasks.looping.delay(0.05) for _ in range(20)]

    assert [other.get(timeout=SOON) for other in others] == ["through"] * 20
    for result in results:
        wait_until(result.ready, SOON)


def test_hard_limit_fails_the_task_at_once(tasks: Any) -> None:
    with pytest.raises(TimeLimitExceeded, match=r"0\.3"):
        tasks.hard.delay().get(timeout=5)

    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3


def test_what_comes_after_the_hard_limit_is_left_out(tasks: Any, contract: Any) -> None:
    can_go_on = contract.pool in UNKILLABLE and contract.broker == "sqlite"
    if can_go_on and celery.VERSION < (5, 7):
        pytest.skip("before 5.7 a callback is published on its own, before the task ends")
    key = contract.new_key()

    result = tasks.outliving.apply_async((key, 1.0), time_limit=0.3, link=tasks.note.si(f"{key}+"))
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=SOON)

    if can_go_on:
        contract.wait_for("raised", key, "Abandoned")
        contract.wait_for("outlived", key)
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
    assert result.state == "FAILURE"
    assert not contract.journal(f"{key}+")


@pytest.mark.differs("redis", "rabbitmq", row="Time limits")
def test_limits_are_changed_by_remote_control(tasks: Any, differs: bool) -> None:
    name = "contract_program.looping"
    assert "ok" in told(tasks, "time_limit", task_name=name, soft=0.2, hard=None)
    try:
        result = tasks.looping.delay(1.0)
        if differs:
            assert result.get(timeout=SOON) == "through"
        else:
            with pytest.raises(SoftTimeLimitExceeded):
                result.get(timeout=SOON)
    finally:
        told(tasks, "time_limit", task_name=name, soft=None, hard=None)
    assert tasks.looping.delay(0.3).get(timeout=SOON) == "through"


def test_running_task_is_terminated(tasks: Any, contract: Any) -> None:
    if contract.pool == "solo":
        pytest.skip("hears of it when the task is through")
    key = contract.new_key()
    result = tasks.waiting.delay(key)
    contract.wait_for("waiting", key)

    result.revoke(terminate=True)

    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=SOON)
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
