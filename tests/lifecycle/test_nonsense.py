"""Messages that no Celery would send: they fail, and the worker and its commands go on."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import kombu
import pytest
from celery.exceptions import InvalidTaskError
from contracts import Contract
from programs import Program
from waiting import wait_until

from celeriac.engines import Engine

SOON = 10
Start = Callable[..., Program]


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.fixture
def send(tasks: Any) -> Callable[..., Any]:
    """Return a function that publishes a task with more headers, and returns its result."""

    def send(
        task: str, *args: Any, kwargs: Any = MappingProxyType({}), embed: Any = None, **headers: Any
    ) -> Any:
        task_id = str(uuid.uuid4())
        kwargs = dict(kwargs) if isinstance(kwargs, Mapping) else kwargs
        with tasks.celery.connection_for_write() as connection:
            kombu.Producer(connection.channel()).publish(
                json.dumps([args, kwargs, embed or {}]),
                routing_key="celery",
                headers={"task": f"contract_program.{task}", "id": task_id, **headers},
                content_type="application/json",
                content_encoding="utf-8",
            )
        return tasks.celery.AsyncResult(task_id)

    return send


@pytest.mark.parametrize(
    "headers",
    [
        {"timelimit": "ab"},
        {"timelimit": ["a", "b"]},
        {"timelimit": [[1], {}]},
        {"timelimit": [10**400, None]},
        {"odd": {"__type__": "decimal", "__value__": "abc"}},
        {"odd": {"__type__": "uuid", "__value__": 5}},
    ],
)
def test_task_with_unreadable_headers_fails(
    send: Any, start: Start, engine: Engine, headers: dict[str, Any]
) -> None:
    worker = start("-c", "1")

    result = send("add", 1, 2, **headers)

    wait_until(lambda: result.state == "FAILURE", SOON)
    assert send("add", 1, 2).get(timeout=SOON) == 3
    assert not engine.lost()
    assert "exited" not in worker.log


def test_task_of_a_nonsensical_message_fails_and_says_why(send: Any, start: Start) -> None:
    start("-c", "1")
    results = [
        send("add", 1, 2, kwargs=[1]),
        send("add", 1, 2, kwargs=None),
        send("add", 1, 2, group=[4], embed={"chord": 7}),
        send("add", 1, 2, odd={"__type__": "foo", "__value__": 1}),
    ]

    complaints = []
    for result in results:
        with pytest.raises(InvalidTaskError) as caught:
            result.get(timeout=SOON)
        complaints.append(str(caught.value))

    assert complaints == [
        "The message has [1] for keyword arguments, and these must be a mapping.",
        "The message has None for keyword arguments, and these must be a mapping.",
        "The message has [4] for its group, which must be a text.",
        "The message can not be read: ValueError: ('Unsupported type', <class 'type'>, "
        "{'__type__': 'foo', '__value__': 1})",
    ]
    assert send("add", 1, 2).get(timeout=SOON) == 3


def test_headers_too_deep_to_be_read_fail(send: Any, start: Start) -> None:
    start("-c", "1")

    results = []
    for depth in range(900, 1000, 5):
        try:
            results.append(send("add", 1, 2, odd=nested(depth)))
        except RecursionError:
            break

    assert send("add", 1, 2).get(timeout=SOON) == 3
    wait_until(lambda: all(result.ready() for result in results), SOON)


@pytest.mark.parametrize("headers", [{"eta": "soon"}, {"eta": [1]}, {"expires": "soon"}])
def test_task_with_a_time_that_is_none_fails(
    send: Any, start: Start, headers: dict[str, Any]
) -> None:
    start("-c", "1")

    result = send("add", 1, 2, **headers)

    wait_until(lambda: result.state == "FAILURE", SOON)


def test_lost_task_with_impossible_errbacks_fails(
    send: Any, tasks: Any, contract: Contract, start: Start
) -> None:
    worker = start("-c", "1")
    key = contract.new_key()
    result = send("waiting", key, embed={"errbacks": 3})

    os.kill(int(contract.wait_for("waiting", key)[2]), signal.SIGKILL)

    wait_until(lambda: result.state == "FAILURE", SOON)
    assert send("add", 1, 2).get(timeout=SOON) == 3
    assert worker.running


def test_inspect_leaves_out_what_it_can_not_read(send: Any, tasks: Any, start: Start) -> None:
    start("-c", "1")
    send("add", 1, 2, eta="2999-01-01T00:00:00", expires="soon")
    good = send("add", 1, 2, eta="2999-01-01T00:00:00")

    (scheduled,) = tasks.celery.control.inspect(timeout=5).scheduled().values()

    assert [each["request"]["id"] for each in scheduled] == [good.id]


def test_commands_that_are_nonsense_are_refused(send: Any, tasks: Any, start: Start) -> None:
    start("-c", "1")
    control = tasks.celery.control

    (limited,) = control.time_limit("contract_program.add", hard=[1], soft="a", reply=True)
    (consuming,) = control.add_consumer(5, reply=True)
    (grown,) = control.pool_grow(float("nan"), reply=True)
    (shrunk,) = control.pool_shrink(-1, reply=True)

    assert limited["worker@contract"]["error"] == "time limits are seconds, as numbers"
    assert consuming["worker@contract"]["error"] == "the name of a queue is a text"
    for answer in (grown, shrunk):
        assert answer["worker@contract"]["error"] == (
            "the number of children is a whole number, not below zero"
        )
    assert send("add", 1, 2).get(timeout=SOON) == 3


def test_message_that_is_no_task_is_deleted_with_a_word(
    tasks: Any, start: Start, engine: Engine
) -> None:
    worker = start("-c", "1")

    with tasks.celery.connection_for_write() as connection:
        producer = kombu.Producer(connection.channel())
        odd = {"odd": {"__type__": "foo", "__value__": 1}}
        producer.publish({}, routing_key="celery", headers=odd)
        producer.publish({"no": "task"}, routing_key="celery")

    worker.wait_for_log("Received and deleted unknown message.  Wrong destination?!?")
    wait_until(lambda: engine.list_tasks() == [], SOON)
    assert 'body: \'{"no": "task"}\'' in worker.log
