"""The table of differences in ``docs/moving.rst``: each row has a test that says the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.exceptions import WorkerLostError
from celery import chord
from contracts import Contract
from contracts import make_contract
from flask import Flask
from programs import Program
from waiting import wait_until

from celeriac import make_celery

TESTS = Path(__file__).parent
SOON = 10

Start = Callable[..., Program]


def test_each_row_has_its_tests_and_each_difference_its_row() -> None:
    assert set(rows()) == set(marked())


def rows() -> list[str]:
    """Return the first cells of the table."""
    text = (TESTS.parent / "docs" / "moving.rst").read_text()
    table = text.partition("What is different\n")[2].partition(".. list-table::")[2]
    return re.findall(r"^    -   - (\S.*)$", table, re.MULTILINE)


def marked() -> Iterator[str]:
    """Yield the rows that the markers of tests name."""
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "differs":
                yield from (ast.literal_eval(each.value) for each in node.keywords)


@pytest.fixture(params=["sqlite", "redis"])
def contract(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Contract]:
    """Return the contract on our broker, then on one of Celery's, with no worker yet."""
    if request.param == "sqlite":
        made = make_contract(tmp_path, "prefork")
    else:
        made = Contract(tmp_path, request.getfixturevalue("redis_url"), "prefork")
    yield made
    made.close()


@pytest.fixture
def differs(contract: Contract) -> bool:
    """Say whether the test's marker names this broker."""
    return contract.broker != "sqlite"


@pytest.fixture
def start(contract: Contract) -> Iterator[Start]:
    """Start workers that are killed when the test ends: stopping takes a stock one seconds."""
    started: list[Program] = []

    def start(*options: str, **kwargs: Any) -> Program:
        started.append(contract.start("-c", "1", "--without-mingle", *options, **kwargs))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
        print(worker.log)


@pytest.mark.differs("redis", "rabbitmq", row="Revocation")
def test_revocation_that_no_worker_heard(contract: Contract, start: Start, differs: bool) -> None:
    key, tasks = contract.new_key(), contract.program

    result = tasks.note.delay(key)
    result.revoke()
    start()

    assert tasks.add.delay(1, 1).get(timeout=SOON) == 2
    assert bool(contract.journal(key)) == differs
    assert result.state == ("SUCCESS" if differs else "REVOKED")


@pytest.mark.differs("redis", "rabbitmq", row="Not `acks_late`, whole worker killed")
def test_task_whose_worker_was_killed(contract: Contract, start: Start, differs: bool) -> None:
    key, tasks = contract.new_key(), contract.program
    worker = start()
    result = tasks.waiting.delay(key)
    contract.wait_for("waiting", key)

    worker.kill()
    start(name="next")

    assert tasks.add.delay(1, 1).get(timeout=SOON) == 2
    if differs:
        assert result.state == "PENDING"
    else:
        with pytest.raises(WorkerLostError):
            result.get(timeout=SOON)


@pytest.mark.differs("redis", row="Long tasks with `acks_late`")
def test_late_task_that_takes_longer_than_the_visibility_timeout(
    contract: Contract, start: Start, differs: bool
) -> None:
    from kombu.transport.redis import Channel

    if differs and not hasattr(Channel, "unacked_restore_throttle"):
        pytest.skip("this kombu looks for them too seldom for a test")
    key, tasks = contract.new_key(), contract.program
    often = {"unacked_restore_interval": 0.2, "unacked_restore_throttle": 1}
    start("-c", "2", conf={"broker_transport_options": {"visibility_timeout": 1, **often}})

    result = tasks.late_waiting.delay(key)

    try:
        if differs:
            wait_until(lambda: len(contract.journal("waiting", key)) == 2, SOON)
        else:
            with pytest.raises(AssertionError, match=r"waited 2\.5 s in vain"):
                wait_until(lambda: len(contract.journal("waiting", key)) == 2, 2.5)
    finally:
        contract.let_go(key)
    assert result.get(timeout=SOON) in ("first", "redelivered")


@pytest.mark.differs("redis", "rabbitmq", row="Time limits")
def test_time_limit_of_a_task_in_a_thread(contract: Contract, start: Start, differs: bool) -> None:
    tasks = contract.program
    start("-P", "threads")

    result = tasks.looping.apply_async((1.0,), soft_time_limit=0.2)

    if differs:
        assert result.get(timeout=SOON) == "through"
    else:
        with pytest.raises(SoftTimeLimitExceeded):
            result.get(timeout=SOON)


@pytest.mark.differs("rabbitmq", row="Chords")
def test_chords_need_results_that_can_be_counted() -> None:
    flask_app = Flask(__name__)
    flask_app.config["CELERY"] = {"broker_url": "amqp://", "result_backend": "rpc://"}
    app = make_celery(flask_app)
    add = app.task(name="add")(_add)

    with pytest.raises(NotImplementedError, match="does not support chords"):
        chord([add.s(1, 1), add.s(2, 2)])(add.s())


def _add(*numbers: int) -> int:
    return sum(numbers)
