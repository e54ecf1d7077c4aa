"""Every death of a worker: nothing is lost, nothing runs twice unasked, nothing stays running."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from billiard.exceptions import WorkerLostError
from contracts import Contract
from programs import Program
from waiting import wait_until

from celeriac.engines import Engine

SOON = 10
Start = Callable[..., Program]


def running_pid(contract: Contract, key: str) -> int:
    """Return the process that runs the task waiting for ``key``."""
    return int(contract.wait_for("waiting", key)[2])


def test_task_of_a_killed_child_fails_with_its_arguments(
    tasks: Any, contract: Contract, start: Start
) -> None:
    start("-c", "1")
    key = contract.new_key()
    result = tasks.waiting.delay(key)
    pid = running_pid(contract, key)

    os.kill(pid, signal.SIGKILL)

    with pytest.raises(WorkerLostError, match=rf"process {pid} of worker@contract, signal 9"):
        result.get(timeout=SOON)
    assert (result.args, result.kwargs) == ([key], {})
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="needs real-time signals")
def test_child_that_a_signal_without_a_name_killed_is_replaced(
    tasks: Any, contract: Contract, start: Start
) -> None:
    start("-c", "1")
    key = contract.new_key()
    result = tasks.waiting.delay(key)
    pid = running_pid(contract, key)

    os.kill(pid, signal.SIGRTMIN + 1)

    nameless = f"signal {signal.SIGRTMIN + 1}\\."
    with pytest.raises(WorkerLostError, match=rf"of worker@contract, {nameless}"):
        result.get(timeout=SOON)
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3


def test_late_task_of_a_killed_child_runs_again(
    tasks: Any, contract: Contract, start: Start
) -> None:
    start("-c", "1")
    key = contract.new_key()
    result = tasks.late_waiting.delay(key)
    pid = running_pid(contract, key)

    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(contract.journal("waiting", key)) == 2, SOON)
    contract.let_go(key)

    assert result.get(timeout=SOON) == "redelivered"


def test_message_that_kills_three_workers_is_set_aside(
    tasks: Any, contract: Contract, start: Start
) -> None:
    start("-c", "1")

    result = tasks.late_killing.delay()

    with pytest.raises(WorkerLostError, match=r"It was its death no\. 3"):
        result.get(timeout=SOON)
    assert len(contract.journal("killing", result.id)) == 3


def test_late_task_is_not_run_again_where_that_is_refused(
    tasks: Any, contract: Contract, start: Start
) -> None:
    start("-c", "1", conf={"task_reject_on_worker_lost": False})

    result = tasks.late_killing.delay()

    with pytest.raises(WorkerLostError, match="signal 9"):
        result.get(timeout=SOON)
    assert len(contract.journal("killing", result.id)) == 1


def test_unstarted_tasks_of_a_killed_child_return(
    tasks: Any, contract: Contract, start: Start
) -> None:
    start("-c", "1")
    key = contract.new_key()
    # The child has learnt that tasks are quick, and claims many at once.
    for result in [tasks.add.delay(i, i) for i in range(300)]:
        result.get(timeout=SOON)
    first = tasks.waiting.delay(key)
    others = [tasks.add.delay(i, 1) for i in range(20)]

    os.kill(running_pid(contract, key), signal.SIGKILL)

    with pytest.raises(WorkerLostError):
        first.get(timeout=SOON)
    assert [other.get(timeout=SOON) for other in others] == [i + 1 for i in range(20)]


def test_other_worker_takes_over_from_one_that_died_whole(
    tasks: Any, contract: Contract, start: Start, engine: Engine
) -> None:
    doomed = start("-c", "2", name="doomed")
    key, late_key = contract.new_key(), contract.new_key()
    early = tasks.waiting.delay(key)
    late = tasks.late_waiting.delay(late_key)
    running_pid(contract, key), running_pid(contract, late_key)
    queued = tasks.add.delay(1, 2)
    start("-c", "2", name="heir")

    doomed.kill()
    killed_at = time.monotonic()

    with pytest.raises(WorkerLostError, match="of doomed@contract, its worker died"):
        early.get(timeout=SOON)
    wait_until(lambda: len(contract.journal("waiting", late_key)) == 2, SOON)
    assert time.monotonic() - killed_at < 5
    contract.let_go(late_key)
    assert late.get(timeout=SOON) == "redelivered"
    assert queued.get(timeout=SOON) == 3


def test_next_worker_takes_over_from_one_that_died_whole(
    tasks: Any, contract: Contract, start: Start, engine: Engine
) -> None:
    doomed = start("-c", "1", name="same")
    key = contract.new_key()
    early = tasks.waiting.delay(key)
    running_pid(contract, key)
    doomed.kill()

    start("-c", "1", name="same")

    with pytest.raises(WorkerLostError):
        early.get(timeout=SOON)
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3


def test_what_a_board_that_was_cut_off_may_have_known_counts_as_started(
    tasks: Any, contract: Contract, start: Start, engine: Engine
) -> None:
    doomed = start("-c", "1", name="doomed")
    key = contract.new_key()
    early = tasks.waiting.delay(key)
    running_pid(contract, key)
    doomed.kill()
    (board,) = engine.folder.glob("board-*")
    os.truncate(board, 0)

    start("-c", "1", name="heir")

    with pytest.raises(WorkerLostError):
        early.get(timeout=SOON)
    assert len(contract.journal("waiting", key)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they finish what they run")
def test_children_die_with_their_parent(
    tasks: Any, contract: Contract, start: Start, engine: Engine
) -> None:
    orphaned = start("-c", "2", name="orphaned")
    key = contract.new_key()
    result = tasks.late_waiting.delay(key)
    running_pid(contract, key)
    children = [child.pid for child in orphaned.children()]

    os.kill(orphaned.pid, signal.SIGKILL)
    orphaned.process.wait()

    wait_until(lambda: not any(map(psutil.pid_exists, children)), SOON)
    start("-c", "1", name="heir")
    contract.let_go(key)
    assert result.get(timeout=SOON) == "redelivered"


def test_task_that_exits_fails_and_the_next_one_runs(
    tasks: Any, contract: Contract, start: Start
) -> None:
    start("-c", "1")

    result = tasks.leaving.delay(3)

    with pytest.raises(WorkerLostError, match="exitcode 3"):
        result.get(timeout=SOON)
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_task_that_exits_in_a_thread_fails_and_the_thread_is_replaced(
    tasks: Any, contract: Contract, start: Start, pool: str
) -> None:
    start("-c", "1", "-P", pool)

    result = tasks.leaving.delay(3)

    with pytest.raises(WorkerLostError, match="thread celeriac-0 ended"):
        result.get(timeout=SOON)
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3


def test_chord_and_errback_hear_of_a_lost_worker(
    tasks: Any, contract: Contract, start: Start
) -> None:
    from celery import chord

    start("-c", "1")
    key = contract.new_key()
    body = tasks.total.s().on_error(tasks.on_error.s())
    result = chord([tasks.add.s(1, 1), tasks.waiting.s(key)])(body)

    os.kill(running_pid(contract, key), signal.SIGKILL)

    contract.wait_for("on_error", result.id, timeout=SOON)
    with pytest.raises(WorkerLostError):
        result.get(timeout=SOON)


def test_hard_time_limit_ends_the_task(tasks: Any, contract: Contract, start: Start) -> None:
    from billiard.exceptions import TimeLimitExceeded

    worker = start("-c", "1")
    result = tasks.hard.delay()

    with pytest.raises(TimeLimitExceeded, match=r"0\.3"):
        result.get(timeout=SOON)
    assert "Hard time limit (0.3s) exceeded for contract_program.hard" in worker.log
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3


def test_soft_time_limit_is_raised_in_the_task(
    tasks: Any, contract: Contract, start: Start
) -> None:
    from billiard.exceptions import SoftTimeLimitExceeded

    start("-c", "1")

    assert tasks.soft_caught.delay().get(timeout=SOON) == "caught"
    with pytest.raises(SoftTimeLimitExceeded):
        tasks.soft.delay().get(timeout=SOON)


def test_limits_of_call_and_worker_hold(tasks: Any, contract: Contract, start: Start) -> None:
    from billiard.exceptions import SoftTimeLimitExceeded
    from billiard.exceptions import TimeLimitExceeded

    start("-c", "1", "--time-limit", "1", "--soft-time-limit", "0.3")

    with pytest.raises(SoftTimeLimitExceeded):
        tasks.nap.delay(5).get(timeout=SOON)
    with pytest.raises(TimeLimitExceeded, match=r"0\.2"):
        tasks.nap.apply_async((5,), time_limit=0.2).get(timeout=SOON)
    with pytest.raises(TimeLimitExceeded, match=r"\(1"):
        tasks.deaf.delay().get(timeout=SOON)


def test_no_slot_idles_behind_a_slow_task(tasks: Any, contract: Contract, start: Start) -> None:
    start("-c", "2")
    key = contract.new_key()
    # Both children have learnt to claim many at once.
    for result in [tasks.add.delay(i, i) for i in range(1000)]:
        result.get(timeout=SOON)

    held = tasks.waiting.delay(key)
    others = [tasks.add.delay(i, 1) for i in range(50)]
    sent_at = time.monotonic()

    assert [other.get(timeout=SOON) for other in others] == [i + 1 for i in range(50)]
    assert time.monotonic() - sent_at < 1
    contract.let_go(key)
    held.get(timeout=SOON)
