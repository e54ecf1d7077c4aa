"""What Celery's guides of calling and routing promise: options, queues, exchanges, classes."""

from __future__ import annotations

from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

import pytest
from celery import signals
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

SOON = 10


def called(tasks: Any, *args: Any, **options: Any) -> dict[str, Any]:
    """Call the task that tells of its request, and return what it tells."""
    result: dict[str, Any] = tasks.whoami.apply_async(args, **options).get(timeout=SOON)
    return result


# Options of a call


def test_id_is_the_callers(tasks: Any, contract: Any) -> None:
    task_id = f"mine-{contract.new_key()}"

    request = called(tasks, task_id=task_id)

    assert request["id"] == request["correlation_id"] == task_id


def test_names_and_headers_travel(tasks: Any) -> None:
    request = called(tasks, shadow="somebody-else", headers={"custom": "yes", "tenant": {"id": 7}})

    assert request["custom"] == "yes"
    assert request["headers"]["tenant"] == {"id": 7}


def test_times_and_limits_are_seen_by_the_task(tasks: Any) -> None:
    now = datetime.now(timezone.utc)

    request = called(
        tasks,
        eta=now + timedelta(seconds=0.1),
        expires=now + timedelta(minutes=1),
        soft_time_limit=20,
        time_limit=30,
    )

    assert datetime.fromisoformat(request["eta"]) == now + timedelta(seconds=0.1)
    assert datetime.fromisoformat(request["expires"]) == now + timedelta(minutes=1)
    assert request["timelimit"] == [30, 20]


@pytest.mark.parametrize("compression", ["gzip", "bzip2"])
def test_message_may_be_compressed(tasks: Any, compression: str) -> None:
    sent = ["long" * 50_000]

    assert tasks.echo.apply_async(sent, compression=compression).get(timeout=SOON) == [sent, {}]


def test_message_may_be_pickled_where_that_is_accepted(tasks: Any) -> None:
    assert tasks.kind.apply_async(((1, 2),)).get(timeout=SOON) == "list"
    assert tasks.kind.apply_async(((1, 2),), serializer="pickle").get(timeout=SOON) == "tuple"


def test_task_may_be_sent_by_its_name(tasks: Any) -> None:
    assert tasks.celery.send_task("contract_program.add", (1,), {"y": 2}).get(timeout=SOON) == 3
    signature = tasks.celery.signature("contract_program.add", args=(1, 2))
    assert signature.apply_async().get(timeout=SOON) == 3


def test_call_may_be_eager_or_plain(tasks: Any) -> None:
    assert tasks.add(1, 2) == 3
    assert tasks.add.apply((1, 2)).get() == 3
    assert tasks.calling.delay(5).get(timeout=SOON) == [6, 7, "contract_program"]


def test_task_that_expired_long_ago_does_not_run(tasks: Any, contract: Any) -> None:
    key = contract.new_key()
    gone = datetime.now(timezone.utc) - timedelta(minutes=1)

    result = tasks.note.apply_async((key,), expires=gone)

    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=SOON)
    assert not contract.journal(key)


def test_signals_around_publishing(tasks: Any) -> None:
    heard = []

    def before(sender: str, headers: Any, properties: Any, **kwargs: Any) -> None:
        heard.append(("before", sender, headers["id"]))
        headers["custom"] = "from the signal"

    def after(sender: str, headers: Any, **kwargs: Any) -> None:
        heard.append(("after", sender, headers["id"]))

    # Not weakly: before 5.7 Celery forgets all receivers with one that died.
    signals.before_task_publish.connect(before, weak=False)
    signals.after_task_publish.connect(after, weak=False)
    try:
        result = tasks.whoami.delay()
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)

    name = "contract_program.whoami"
    assert heard == [("before", name, result.id), ("after", name, result.id)]
    assert result.get(timeout=SOON)["custom"] == "from the signal"


# Queues and exchanges


def test_queue_of_a_call_wins(tasks: Any, contract: Any) -> None:
    there = f"{contract.queue}-elsewhere"

    assert called(tasks)["delivery_info"]["routing_key"] == contract.queue
    assert called(tasks, queue=there)["delivery_info"]["routing_key"] == there
    result = tasks.elsewhere.apply_async(queue=contract.queue)
    assert result.get(timeout=SOON) == "elsewhere"
    assert result.queue == contract.queue


def test_routes_by_glob_and_by_function(tasks: Any, contract: Any) -> None:
    there = f"{contract.queue}-elsewhere"

    assert tasks.routed_by_glob.delay().get(timeout=SOON) == ["", there, 7]
    request = tasks.whoami.delay(far=True).get(timeout=SOON)
    assert request["delivery_info"]["routing_key"] == there


def test_direct_exchange_routes_by_key(tasks: Any, contract: Any) -> None:
    exchange = f"{contract.queue}-by-key"

    info = called(tasks, exchange=exchange, routing_key="red")["delivery_info"]

    assert (info["exchange"], info["routing_key"]) == (exchange, "red")


def test_topic_exchange_routes_by_pattern(tasks: Any, contract: Any) -> None:
    name = f"{contract.queue}-topic"

    info = called(tasks, queue=name, routing_key="news.sport.chess")["delivery_info"]

    assert (info["exchange"], info["routing_key"]) == (name, "news.sport.chess")


@pytest.mark.differs("redis", row="`Broadcast`")
def test_broadcast_reaches_the_worker(tasks: Any, contract: Any, differs: bool) -> None:
    key, name = contract.new_key(), f"{contract.queue}-all"

    with tasks.celery.connection_for_write() as connection:
        if differs:
            exchange = tasks.celery.amqp.queues[name].exchange
            exchange(connection.default_channel).declare()
        options = {"connection": connection} if differs else {}
        tasks.note.apply_async((key,), queue=name, ignore_result=True, **options)

    assert contract.wait_for(key) == [key]


# Kinds of tasks


def test_task_object_lives_as_long_as_its_process(tasks: Any) -> None:
    results = [tasks.counting.delay().get(timeout=SOON) for _ in range(4)]

    by_process: dict[int, list[int]] = {}
    for pid, calls in results:
        by_process.setdefault(pid, []).append(calls)
    for calls in by_process.values():
        assert calls == list(range(calls[0], calls[0] + len(calls)))


def test_task_may_be_a_class(tasks: Any) -> None:
    assert tasks.classy.delay(1).get(timeout=SOON) == 2


def test_annotations_change_a_task(tasks: Any) -> None:
    assert tasks.annotated.delay().get(timeout=SOON) == [7, 5]


def test_retry_may_change_arguments_and_queue(tasks: Any, contract: Any) -> None:
    there = f"{contract.queue}-elsewhere"

    assert tasks.counting_down.delay(2).get(timeout=SOON) == [2, there]


def test_waiting_for_another_task_is_refused(tasks: Any, contract: Any) -> None:
    other = tasks.add.delay(1, 2)

    if contract.pool == "gevent":  # Celery allows it where other tasks go on meanwhile.
        assert tasks.asking.delay(other.id).get(timeout=SOON) == 3
        return
    with pytest.raises(RuntimeError, match=r"Never call result\.get\(\) within a task!"):
        tasks.asking.delay(other.id).get(timeout=SOON)
    assert AsyncResult(other.id, app=tasks.celery).get(timeout=SOON) == 3


def test_logger_of_a_task_names_it(tasks: Any, contract: Any) -> None:
    key = contract.new_key()

    result = tasks.logging.delay(key)
    result.get(timeout=SOON)

    line = next(line for line in contract.worker.log.splitlines() if f"said {key}" in line)
    assert f"contract_program.logging[{result.id}]: said {key}" in line
    assert "WARNING" in line
