"""Tasks for later: they stay in the store until they are due."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any
from zoneinfo import ZoneInfo

import psutil
import pytest
from contracts import Contract
from programs import Program

from celeriac.engines import Engine
from celeriac.engines.base import Message

SOON = 10
DAY = 86400.0


def due_at(engine: Engine, result: Any) -> float | None:
    (info,) = engine.list_tasks(task_ids=[result.id])
    return info.due_at


# When


def test_eta_means_the_same_instant_in_every_zone(tasks: Any, engine: Engine) -> None:
    instant = datetime(2100, 7, 1, 12, tzinfo=timezone.utc)
    zones = [timezone.utc, timezone(timedelta(hours=-7)), ZoneInfo("Asia/Kolkata")]

    due = [
        due_at(engine, tasks.add.apply_async((1, 2), eta=instant.astimezone(zone)))
        for zone in zones
    ]

    assert due == [instant.timestamp()] * 3


@pytest.mark.parametrize("enable_utc", [True, False])
def test_eta_without_a_zone_is_in_utc_as_in_celery(
    tasks: Any, engine: Engine, enable_utc: bool
) -> None:
    tasks.celery.conf.update(enable_utc=enable_utc, timezone="Asia/Kolkata")
    eta = datetime(2100, 7, 1, 12)

    result = tasks.add.apply_async((1, 2), eta=eta, expires=eta)

    (info,) = engine.list_tasks(task_ids=[result.id])
    instant = eta.replace(tzinfo=timezone.utc).timestamp()
    # Its expiry is sent in milliseconds from now, too.
    assert (info.due_at, info.expires_at) == (instant, pytest.approx(instant, abs=0.01))


@pytest.mark.parametrize(
    "when",
    [{"countdown": 0}, {"countdown": -5}, {"eta": datetime(2020, 1, 1, tzinfo=timezone.utc)}],
    ids=str,
)
def test_what_is_due_already_waits_with_the_others(
    tasks: Any, engine: Engine, when: dict[str, Any]
) -> None:
    result = tasks.add.apply_async((1, 2), **when)

    (info,) = engine.list_tasks(task_ids=[result.id])
    assert info.status == "ready"


# In a worker


def test_killed_workers_neither_lose_nor_repeat_what_is_due_later(
    tasks: Any, contract: Contract, start: Callable[..., Program]
) -> None:
    key = contract.new_key()
    doomed = start("-c", "1", name="doomed")
    due = datetime.now(timezone.utc) + timedelta(seconds=1)
    results = [tasks.note.apply_async((key, f"n{i}"), eta=due) for i in range(50)]
    tasks.add.delay(1, 2).get(timeout=SOON)
    doomed.kill()

    start("-c", "2", name="heir")
    for result in results:
        result.get(timeout=2 * SOON)
    words = [line[1] for line in contract.journal(key)]
    assert sorted(words) == sorted(f"n{i}" for i in range(50))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_hundred_thousand_future_tasks_take_no_memory(
    tasks: Any, engine: Engine, start: Callable[..., Program]
) -> None:
    worker = start("-c", "1")
    for result in [tasks.add.delay(i, i) for i in range(300)]:
        result.get(timeout=SOON)
    before = memory(worker)

    schedule(tasks, engine, 100_000)
    for result in [tasks.add.delay(i, i) for i in range(300)]:
        result.get(timeout=SOON)
    # The parent's looks at the store, of which there is one every two seconds.
    time.sleep(2.5)

    grown = memory(worker) - before
    print(f"100,000 future tasks take {grown:.1f} MB of the worker's memory")
    assert grown < 20
    assert len(engine.list_tasks(status="scheduled", limit=100_001)) == 100_000


def schedule(tasks: Any, engine: Engine, count: int) -> None:
    """Enqueue many tasks for tomorrow."""
    result = tasks.add.apply_async((1, 2), countdown=DAY)
    (info,) = engine.list_tasks(task_ids=[result.id])
    ids = [result.id, *(str(uuid.uuid4()) for _ in range(count - 1))]
    messages = [
        Message(
            info.queue,
            info.envelope.replace(result.id, task_id),
            info.body,
            info.task,
            task_id,
            due_at=info.due_at,
        )
        for task_id in ids[1:]
    ]
    for begin in range(0, len(messages), 5000):
        engine.publish(messages[begin : begin + 5000])


def memory(worker: Program) -> float:
    """Return the memory of a worker and its children, what they share counted once (MB)."""
    processes = [worker.pid, *(child.pid for child in worker.children())]
    return sum(psutil.Process(pid).memory_full_info().pss for pid in processes) / 1e6
