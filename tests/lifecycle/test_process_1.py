"""A worker as process 1 of a container, in a namespace of its own as containers have it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from contracts import Contract
from namespaces import ALONE
from namespaces import process_1
from namespaces import why_not
from programs import celery_command
from programs import Program
from waiting import wait_until

from celeriac.engines import Engine

GRACE = 0.5
#: Two seconds after the grace period are promised; the rest is for a busy machine.
AND = 8.0


@pytest.fixture
def container(contract: Contract) -> Iterator[Callable[..., psutil.Process]]:
    """Start a worker as process 1."""
    started: list[Program] = []

    def start(*options: str) -> psutil.Process:
        reason = why_not()
        if reason:
            pytest.skip(reason)
        command = celery_command("-A", "contract_program", "worker", "-l", "INFO", *options)
        env = {**contract.env, "CONTRACT_CONF": f'{{"worker_grace_period": {GRACE}}}'}
        log_path = contract.folder / "container.out"
        started.append(Program([*ALONE, *command], log_path=log_path, cwd=contract.folder, env=env))
        started[-1].wait_for_log(" ready.")
        return process_1(started[-1])

    yield start
    for program in started:
        program.kill()
        print(program.log)


def zombies(worker: psutil.Process) -> list[int]:
    return [each.pid for each in worker.children() if each.status() == psutil.STATUS_ZOMBIE]


def test_worker_as_process_1_stops_in_time_and_reaps_orphans(
    tasks: Any, contract: Contract, container: Callable[..., psutil.Process], engine: Engine
) -> None:
    worker = container("-c", "2")
    pool = {child.pid for child in worker.children()}
    tasks.orphaning.delay(contract.new_key()).get(timeout=15)
    wait_until(lambda: zombies(worker))
    wait_until(lambda: not zombies(worker), 15)
    assert {child.pid for child in worker.children()} == pool
    key = contract.new_key()
    late = tasks.late_waiting.delay(key)
    contract.wait_for("waiting", key)

    told_at = time.monotonic()
    worker.send_signal(signal.SIGTERM)

    wait_until(lambda: not worker.is_running())
    assert time.monotonic() - told_at < GRACE + AND
    (waiting,) = engine.list_tasks()
    assert (waiting.task_id, waiting.status, waiting.deaths) == (late.id, "ready", 0)
    assert not engine.list_workers() and not list(engine.folder.glob("board-*"))
