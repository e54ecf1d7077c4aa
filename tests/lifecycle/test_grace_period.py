"""What holds when a worker is stopped: it begins nothing more, ends in time, and loses nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from celery import group
from celery.worker import state
from contracts import Contract
from programs import celery_command
from programs import Program
from waiting import wait_until

from celeriac.engines import Engine

SOON = 15
GRACE = 0.5
#: Two seconds after the grace period are promised; the rest is for a busy machine.
AND = 8.0
POOLS = ["prefork", "spawn", "threads", "gevent", "solo"]
Start = Callable[..., Program]


@pytest.fixture
def begin(start: Start) -> Callable[..., Program]:
    """Start a worker of any pool, with a short grace period."""

    def begin(pool: str = "prefork", *options: str, grace: float | None = GRACE) -> Program:
        conf: dict[str, Any] = {"worker_grace_period": grace}
        if pool == "spawn":
            pool = "prefork"
            conf["worker_pool_start_method"] = "spawn"
        return start("-P", pool, *options, conf=conf)

    return begin


def stop_in_time(worker: Program, number: signal.Signals = signal.SIGTERM) -> None:
    """Stop a worker whose tasks do not end."""
    told_at = time.monotonic()
    worker.send(number)
    assert worker.wait() == 0
    assert time.monotonic() - told_at < GRACE + AND


def leaves_nothing(engine: Engine) -> bool:
    return not engine.list_workers() and not list(engine.folder.glob("board-*"))


@pytest.mark.parametrize("pool", POOLS)
def test_what_runs_when_the_grace_period_is_over_is_handed_back_or_lost_aloud(
    tasks: Any, contract: Contract, begin: Start, start: Start, engine: Engine, pool: str
) -> None:
    worker = begin(pool, "-c", "2")
    key, early_key = contract.new_key(), contract.new_key()
    late = tasks.late_asking.delay(key)
    contract.wait_for("asking", key, "False", timeout=SOON)
    if pool != "solo":  # In threads it does not even return to Python.
        early = (tasks.napping if pool == "threads" else tasks.waiting).delay(early_key)
        contract.wait_for(early_key)

    stop_in_time(worker)

    contract.wait_for("asking", key, "True")
    (waiting,) = engine.list_tasks()
    assert (waiting.task_id, waiting.status, waiting.deaths) == (late.id, "ready", 0)
    assert leaves_nothing(engine)
    assert "to end, for at most 0.5 s (worker_grace_period)\n" in worker.log
    name = f"contract_program.late_asking[{late.id}]"
    assert f"Task {name} was handed back, and runs again on a worker\n" in worker.log
    if pool != "solo":
        with pytest.raises(WorkerLostError) as caught:
            early.get(timeout=SOON)
        (_, _, pid) = contract.journal(early_key)[0]
        assert str(caught.value) == (
            f"Worker exited prematurely: process {pid} of worker@contract, stopped, and its "
            "worker_grace_period was over; a task that is acks_late would run again."
        )
    if pool == "prefork":
        start("-c", "1", name="next")
        contract.let_go(key)
        assert late.get(timeout=SOON) == "redelivered"


def test_greenlet_that_computes_does_not_hold_up_the_end(
    tasks: Any, contract: Contract, begin: Start, engine: Engine
) -> None:
    worker = begin("gevent", "-c", "1")
    result = tasks.spinning.delay(30)
    wait_until(lambda: [info.status for info in engine.list_tasks()] == ["claimed"])

    stop_in_time(worker)

    assert "The worker could not end in time, and exits as it is." in worker.log
    begin("threads", "-c", "1")
    with pytest.raises(WorkerLostError, match="killed while it was being stopped"):
        result.get(timeout=SOON)


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_thread_that_a_task_left_behind_does_not_hold_up_the_end(
    tasks: Any, begin: Start, pool: str
) -> None:
    worker = begin(pool)
    tasks.leaving_a_thread.delay(60).get(timeout=SOON)

    stop_in_time(worker)


def test_no_task_begins_after_the_signal(
    tasks: Any, contract: Contract, begin: Start, engine: Engine
) -> None:
    worker = begin("prefork", "-c", "2")
    results = [tasks.now.delay() for _ in range(800)]
    wait_until(results[100].ready)

    told_at = time.time()
    worker.send(signal.SIGTERM)

    assert worker.wait() == 0
    ran = [result.result for result in results if result.ready()]
    left = engine.list_tasks(limit=2000)
    assert len(ran) + len(left) == len(results)
    assert {info.status for info in left} <= {"ready"}
    # One begins a few milliseconds later at most; the rest is for a busy machine.
    assert max(ran) - told_at < 0.1


def test_what_was_not_started_returns_while_others_still_run(
    tasks: Any, contract: Contract, begin: Start, engine: Engine
) -> None:
    worker = begin("prefork", "-c", "1", grace=None)
    # It learns to claim many.
    group(tasks.add.s(1, i) for i in range(300))().get(timeout=SOON)
    key = contract.new_key()
    running = tasks.waiting.delay(key)
    queued = [tasks.add.delay(i, 1) for i in range(5)]
    contract.wait_for("waiting", key)

    worker.send(signal.SIGTERM)

    wait_until(
        lambda: sorted(info.status for info in engine.list_tasks()) == ["claimed"] + 5 * ["ready"]
    )
    worker.wait_for_log("Waiting for 1 running task to end\n")
    for _ in range(20):  # However often it is told.
        worker.send(signal.SIGTERM)
    contract.let_go(key)
    assert worker.wait() == 0
    assert running.get(timeout=SOON) == key
    assert {info.task_id for info in engine.list_tasks()} == {result.id for result in queued}


def test_worker_that_is_stopped_while_it_starts_leaves_nothing(
    tasks: Any, contract: Contract, engine: Engine, program: Callable[..., Program]
) -> None:
    tasks.add.delay(1, 1)
    command = celery_command("-A", "contract_program", "worker", "-c", "2")
    worker = program(*command, cwd=contract.folder, env=contract.env)
    wait_until(lambda: list(engine.folder.glob("worker-*")), SOON)

    worker.send(signal.SIGTERM)

    assert worker.wait() == 0
    assert {info.status for info in engine.list_tasks()} <= {"ready"}
    assert leaves_nothing(engine)


def test_worker_stops_in_time_while_the_file_is_locked(
    tasks: Any, contract: Contract, begin: Start, engine: Engine
) -> None:
    worker = begin("prefork", "-c", "1")
    key = contract.new_key()
    late = tasks.late_waiting.delay(key)
    contract.wait_for("waiting", key)
    (path,) = engine.folder.parent.glob("*.sqlite3")

    with closing(sqlite3.connect(path, isolation_level=None)) as locking:
        locking.execute("BEGIN IMMEDIATE")
        stop_in_time(worker)
        locking.execute("ROLLBACK")

    begin("prefork", "-c", "1")
    contract.let_go(key)
    assert late.get(timeout=SOON) == "redelivered"


def test_signal_to_all_processes_counts_as_nobodys_death(
    tasks: Any, contract: Contract, begin: Start, engine: Engine
) -> None:
    worker = begin("prefork", "-c", "1")
    key = contract.new_key()
    late = tasks.late_waiting.delay(key)
    contract.wait_for("waiting", key)

    os.killpg(worker.pid, signal.SIGTERM)

    assert worker.wait() == 0
    (waiting,) = engine.list_tasks()
    assert (waiting.task_id, waiting.status, waiting.deaths) == (late.id, "ready", 0)


def test_of_a_stock_worker_is_known_what_celery_keeps(
    tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tasks.add.stopping is False  # This is no worker.

    monkeypatch.setattr(state, "should_stop", False)
    assert tasks.add.stopping is False
    monkeypatch.setattr(state, "should_stop", os.EX_OK)
    assert tasks.add.stopping is True
