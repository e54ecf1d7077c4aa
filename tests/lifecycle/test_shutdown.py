"""How workers end when they are asked to: warm, soft and cold."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from contracts import Contract
from programs import Program
from waiting import wait_until

from celeriac.engines import Engine

SOON = 10
Start = Callable[..., Program]


def nothing_is_left_beside(engine: Engine) -> bool:
    return not engine.list_workers() and not list(engine.folder.glob("board-*"))


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_warm_shutdown_lets_the_task_finish_and_gives_back_the_rest(
    tasks: Any, contract: Contract, start: Start, engine: Engine, pool: str
) -> None:
    worker = start("-c", "1", "-P", pool)
    key = contract.new_key()
    running = tasks.waiting.delay(key)
    contract.wait_for("waiting", key)
    queued = [tasks.add.delay(i, 1) for i in range(3)]

    worker.send(signal.SIGTERM)
    worker.wait_for_log("Warm shutdown")
    contract.let_go(key)

    assert worker.wait() == 0
    assert running.get(timeout=SOON) == key
    assert [(info.task_id, info.status) for info in engine.list_tasks()] == [
        (each.id, "ready") for each in queued
    ]
    assert nothing_is_left_beside(engine)


def test_cold_shutdown_ends_tasks_and_late_ones_run_again(
    tasks: Any, contract: Contract, start: Start, engine: Engine
) -> None:
    worker = start("-c", "2")
    key, late_key = contract.new_key(), contract.new_key()
    early, late = tasks.waiting.delay(key), tasks.late_waiting.delay(late_key)
    contract.wait_for("waiting", key)
    contract.wait_for("waiting", late_key)

    worker.stop(signal.SIGQUIT)

    with pytest.raises(WorkerLostError, match="cold shutdown"):
        early.get(timeout=SOON)
    (info,) = engine.list_tasks()
    # Whoever stops a worker does not count against what it runs.
    assert (info.task_id, info.status, info.deaths) == (late.id, "ready", 0)
    assert nothing_is_left_beside(engine)


def test_interrupting_twice_is_a_cold_shutdown(
    tasks: Any, contract: Contract, start: Start, engine: Engine
) -> None:
    worker = start("-c", "1")
    key = contract.new_key()
    result = tasks.waiting.delay(key)
    contract.wait_for("waiting", key)

    worker.send(signal.SIGINT)
    worker.wait_for_log("Hitting Ctrl+C again will initiate cold shutdown")
    worker.send(signal.SIGINT)

    worker.wait()
    with pytest.raises(WorkerLostError, match="cold shutdown"):
        result.get(timeout=SOON)
    assert nothing_is_left_beside(engine)


def test_soft_shutdown_gives_time_and_starts_nothing_more(
    tasks: Any, contract: Contract, start: Start, engine: Engine
) -> None:
    worker = start("-c", "1", conf={"worker_soft_shutdown_timeout": 5.0})
    key = contract.new_key()
    running = tasks.waiting.delay(key)
    contract.wait_for("waiting", key)
    tasks.add.delay(1, 2)

    worker.send(signal.SIGQUIT)
    worker.wait_for_log("Initiating Soft Shutdown, terminating in 5.0 seconds")
    contract.let_go(key)

    worker.wait()
    assert running.get(timeout=SOON) == key
    assert [info.task for info in engine.list_tasks()] == ["contract_program.add"]


def test_worker_shut_down_by_remote_control_ends(
    tasks: Any, contract: Contract, start: Start, engine: Engine
) -> None:
    worker = start("-c", "1")

    tasks.celery.control.shutdown()

    assert worker.wait() == 0
    assert "Got shutdown from remote" in worker.log
    wait_until(lambda: nothing_is_left_beside(engine))
