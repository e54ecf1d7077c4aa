"""What each pool does in its own way. What all do alike is in ``tests/contract``."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.exceptions import TimeLimitExceeded
from celery import Celery
from celery import group
from contracts import Contract
from programs import Program

from celeriac.engines import Engine
from celeriac.worker.claimant import RETRY

SOON = 15
Start = Callable[..., Program]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_limits_of_the_worker_hold_for_all_its_tasks(
    tasks: Any, contract: Contract, start: Start, pool: str
) -> None:
    worker = start("-P", pool, "-c", "1", "--time-limit", "0.8", "--soft-time-limit", "0.3")

    softened = tasks.looping.delay(10)
    with pytest.raises(SoftTimeLimitExceeded):
        softened.get(timeout=SOON)
    with pytest.raises(TimeLimitExceeded, match=r"\(0\.8"):
        tasks.outliving.delay("key", 2.0).get(timeout=SOON)
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
    name = f"{tasks.looping.name}[{softened.id}]"
    assert f"Soft time limit (0.3s) exceeded for {name}\n" in worker.log


def test_thread_that_computes_in_c_is_replaced_and_the_worker_still_stops(
    tasks: Any, contract: Contract, start: Start
) -> None:
    worker = start("-P", "threads", "-c", "1")

    with pytest.raises(TimeLimitExceeded):
        tasks.nap.apply_async((1000,), time_limit=0.2).get(timeout=SOON)

    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
    assert worker.stop() == 0
    assert "Hard time limit (0.2s) exceeded for contract_program.nap" in worker.log


@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_tasks_are_ended_at_a_cold_shutdown(
    tasks: Any, contract: Contract, start: Start, engine: Engine, pool: str
) -> None:
    worker = start("-P", pool, "-c", "1")
    key = contract.new_key()
    late = tasks.late_waiting.delay(key)
    contract.wait_for("waiting", key)

    worker.stop(signal.SIGQUIT)

    [waiting] = engine.list_tasks()
    assert (waiting.task_id, waiting.status, waiting.deaths) == (late.id, "ready", 0)
    assert "Unrecoverable" not in worker.log


def test_solo_hands_over_what_waits_behind_a_long_task(
    tasks: Any, contract: Contract, start: Start
) -> None:
    worker = start("-P", "solo", name="solo")
    assert contract.journal("worker_process_init", worker.pid)
    # It has learnt to claim many at once.
    for result in [tasks.add.delay(i, i) for i in range(300)]:
        result.get(timeout=SOON)
    key = contract.new_key()
    with contract.program.celery.producer_or_acquire() as producer:
        held = tasks.waiting.apply_async((key,), producer=producer)
        others = [tasks.add.apply_async((i, 1), producer=producer) for i in range(50)]
    contract.wait_for("waiting", key)

    start("-c", "1", name="other")

    assert [other.get(timeout=SOON) for other in others] == [i + 1 for i in range(50)]
    contract.let_go(key)
    held.get(timeout=SOON)


def test_greenlets_wait_side_by_side(tasks: Any, contract: Contract, start: Start) -> None:
    # More than a board has room for by default.
    worker = start("-P", "gevent", "-c", "300")

    results = group(tasks.nap.s(1.0) for _ in range(300)).delay()

    assert results.get(timeout=SOON) == ["slept"] * 300
    assert worker.stop() == 0


def test_pool_grows_no_further_than_its_board(tasks: Any, contract: Contract, start: Start) -> None:
    start("-P", "threads", "-c", "1")

    [answer] = tasks.celery.control.pool_grow(256, reply=True, timeout=SOON, limit=1)

    assert "This worker can have at most 256 children." in str(answer)
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3


def test_child_that_ends_goes_on_trying_to_record_its_outcomes(
    tasks: Any, contract: Contract, start: Start
) -> None:
    locked = Contract(contract.folder, f"{contract.url}&busy_timeout=0.5", "prefork")
    worker = locked.start("-c", "1")
    key = locked.new_key()
    result = tasks.waiting.delay(key)
    locked.wait_for("waiting", key)

    with closing(sqlite3.connect(contract.folder / "queue.sqlite3", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        locked.let_go(key)
        worker.wait_for_log("Trying again every 0.5 s.")
        worker.send(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown")
        time.sleep(3 * RETRY)  # It is told once a minute, and tried more often.
        db.execute("ROLLBACK")

    assert worker.wait() == 0
    assert result.get(timeout=SOON) == key


FACTORY = """
import os
import billiard
from celery import shared_task
from flask import current_app, Flask
from celeriac import make_celery

billiard.set_start_method("spawn", force=True)
if os.environ.get("ONLY_IN_PARENT") and billiard.current_process().name != "MainProcess":
    raise RuntimeError("not here")

@shared_task
def where():
    return [current_app.name, billiard.current_process().name, os.getpid()]

def create_app():
    app = Flask("made", instance_path=os.getcwd())
    app.config["CELERY_BROKER_URL"] = os.environ["QUEUE"]
    make_celery(app)
    return app
"""


@pytest.fixture
def factory(tmp_path: Path, program: Start, queue_url: str) -> Start:
    """Start a worker whose children are spawned, and whose app is made by a factory."""
    (tmp_path / "factory.py").write_text(FACTORY)
    command = "-m flask --app factory celery worker -l INFO -c 1".split()

    def start(*options: str, **env: str) -> Program:
        return program(sys.executable, *command, *options, env={"QUEUE": queue_url, **env})

    return start


def test_spawned_child_makes_its_app_by_the_factory(factory: Start, queue_url: str) -> None:
    worker = factory("--max-tasks-per-child", "1")
    worker.wait_for_log(" ready.")
    app = Celery(broker=queue_url, backend=queue_url)

    found = [app.send_task("factory.where").get(timeout=SOON) for _ in range(2)]

    assert [name for name, _, _ in found] == ["made", "made"]
    assert {child for _, child, _ in found} == {"SpawnPoolWorker-1"}
    assert len({pid for _, _, pid in found}) == 2
    assert worker.stop() == 0


def test_worker_whose_children_can_not_make_the_app_ends(factory: Start) -> None:
    worker = factory(ONLY_IN_PARENT="1")

    assert worker.wait() == os.EX_CONFIG
    assert "A child of the worker could not make its app: not here." in worker.log


def test_flask_celery_worker_runs_greenlets(factory: Start, queue_url: str) -> None:
    worker = factory("-P", "gevent")
    worker.wait_for_log(" ready.")
    app = Celery(broker=queue_url, backend=queue_url)

    assert app.send_task("factory.where").get(timeout=SOON)[:2] == ["made", "MainProcess"]
    assert worker.stop() == 0
