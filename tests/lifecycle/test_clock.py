"""Somebody sets the clock while workers run: nothing is lost, run twice or taken for dead.

What is to happen at a time goes by the wall clock; what takes a time goes by one that only runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from contracts import Contract
from faults.clock import Clock
from programs import celery_command
from programs import Program
from programs import run
from waiting import wait_until

from celeriac.engines import Engine

SOON = 15
HOUR, DAY = 3600.0, 86400.0
Start = Callable[..., Program]

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None and not os.environ.get("CI"),
    reason="gcc is not installed: it compiles the clock",
)


@pytest.fixture
def clock(tmp_path: Path, contract: Contract) -> Clock:
    """Return the clock of the workers; the test keeps the machine's."""
    clock = Clock(tmp_path)
    contract.env.update(clock.env)
    return clock


def test_workers_go_on_when_the_clock_jumps(
    clock: Clock, tasks: Any, contract: Contract, start: Start, engine: Engine
) -> None:
    for name in ("one", "other"):
        start("-c", "2", name=name)

    for seconds in (HOUR, -HOUR, -DAY, 2 * DAY):
        keys = [contract.new_key() for _ in range(2)]
        early, late = tasks.waiting.delay(keys[0]), tasks.late_waiting.delay(keys[1])
        for key in keys:
            contract.wait_for("waiting", key)
        clock.jump(seconds)

        assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
        for key in keys:
            contract.let_go(key)
        assert (early.get(timeout=SOON), late.get(timeout=SOON)) == (keys[0], "first")
        assert [len(contract.journal("waiting", key)) for key in keys] == [1, 1]

    assert all(worker.alive for worker in engine.list_workers())
    # Asked by a program that goes by the same clock: messages of remote control expire.
    asked = run(celery_command("-A", "contract_program", "inspect", "ping"), env=contract.env)
    assert "2 nodes online" in asked.stdout

    # The worker whose child dies deals with it: the other one does not take it for silent.
    key = contract.new_key()
    killed = tasks.waiting.delay(key)
    pid = int(contract.wait_for("waiting", key)[2])
    clock.jump(HOUR)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match=rf"process {pid} of \w+@contract, signal 9"):
        killed.get(timeout=SOON)


def test_time_limits_rates_and_etas_when_the_clock_jumps(
    clock: Clock, tasks: Any, contract: Contract, start: Start
) -> None:
    start("-c", "2")

    # What takes a time: neither limit nor rate is met early or late.
    nap = tasks.nap.apply_async((1,), time_limit=10, soft_time_limit=9)
    tasks.add.delay(1, 2).get(timeout=SOON)  # By now it runs.
    clock.jump(HOUR)
    assert nap.get(timeout=SOON) == "slept"
    assert tasks.limited.delay().get(timeout=SOON)
    clock.jump(-2 * HOUR)
    began = time.monotonic()
    for result in [tasks.limited.delay() for _ in range(4)]:
        result.get(timeout=SOON)
    assert 0.2 < time.monotonic() - began < 5

    # What happens at a time: by the clock as it stands.
    later = tasks.note.apply_async(("later",), countdown=HOUR / 2)
    clock.set(0)
    tasks.add.delay(1, 2).get(timeout=SOON)
    assert not contract.journal("later")
    clock.jump(HOUR)
    later.get(timeout=SOON)
    clock.jump(-HOUR)
    tasks.add.delay(1, 2).get(timeout=SOON)
    assert len(contract.journal("later")) == 1


def test_schedules_go_on_when_the_clock_jumps(
    clock: Clock, tasks: Any, contract: Contract, start: Start
) -> None:
    def entry(word: str, seconds: float) -> dict[str, Any]:
        return {"task": "contract_program.note", "schedule": seconds, "args": [word]}

    schedule = {"often": entry("often", 0.4), "seldom": entry("seldom", 1.0)}
    start("-c", "1", "-B", conf={"beat_schedule": schedule})

    for seconds in (HOUR, -DAY):
        for word in ("often", "seldom"):
            before = len(contract.journal(word))
            wait_until(lambda: len(contract.journal(word)) > before, SOON)  # noqa: B023
        clock.jump(seconds)
        now = len(contract.journal("often"))
        wait_until(lambda: len(contract.journal("often")) > now + 1, SOON)  # noqa: B023
        # What was due meanwhile is made up for once.
        assert len(contract.journal("often")) < now + 15
