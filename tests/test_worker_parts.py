"""Parts of the worker whose mistakes need too much luck to show in a whole one."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from waiting import wait_until

from celeriac.engines import open_engine
from celeriac.engines.base import Worker
from celeriac.worker.board import Activity
from celeriac.worker.board import Board
from celeriac.worker.child import _Pipe
from celeriac.worker.child import _soft_limit_handler
from celeriac.worker.child import encode_orders
from celeriac.worker.child import make_requests
from celeriac.worker.child import Settings
from celeriac.worker.claimant import Claimant
from celeriac.worker.claimant import Orders
from celeriac.worker.claimant import Stopwatch
from celeriac.worker.door import Door
from celeriac.worker.fence import Abandoned
from celeriac.worker.fence import Fence
from celeriac.worker.fence import interrupt
from celeriac.worker.fence import is_at_a_lock
from celeriac.worker.fence import is_safe
from celeriac.worker.pool import Job
from celeriac.worker.pool import LOOK
from celeriac.worker.pool import LOOK_IDLE
from celeriac.worker.pool import LOOK_REST
from celeriac.worker.pool import Pool
from celeriac.worker.redelivery import Redelivery
from celeriac.worker.request import Limits
from celeriac.worker.shutdown import Shutdown
from celeriac.worker.stuck import Patience
from celeriac.worker.thread import ThreadPool


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board(tmp_path / "board", ["add", "mul"])
    board.enter(0, 1234)
    yield board
    board.close()


def begin(board: Board, tag: int) -> bool:
    return board.begin(0, tag, time.monotonic(), 0.0, 0.0)


def test_halted_batch_goes_no_further(board: Board) -> None:
    board.hold(0, 3)
    assert begin(board, 7)

    board.halt(0, board.read(0).batch)

    assert not begin(board, 8)
    assert board.read(0).started == (7,)


def test_halt_of_a_batch_does_not_meet_the_next(board: Board) -> None:
    board.hold(0, 3)
    seen = board.read(0).batch
    board.hold(0, 0)
    board.hold(0, 2)

    board.halt(0, seen)

    assert begin(board, 9)
    assert not board.read(0).halted


def test_board_forgets_what_is_recorded_in_order(board: Board) -> None:
    board.hold(0, 3)
    for tag in (1, 2, 3):
        begin(board, tag)
        board.end(0, "add")

    board.recorded(0, 2)

    assert board.read(0).started == (3,)
    assert board.totals() == {"add": 3}


def test_next_child_of_a_slot_goes_on_counting(board: Board) -> None:
    board.hold(0, 1)
    begin(board, 1)
    board.end(0, "mul")

    board.enter(0, 1235)

    assert (board.read(0).pid, board.read(0).started) == (1235, ())
    assert board.totals() == {"mul": 1}


def test_board_tells_where_a_task_runs(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", ["add"], slots=1000)
    for slot in (0, 3, 999):
        board.enter(slot, slot)
        board.hold(slot, 1)
        board.begin(slot, 7, time.monotonic(), 0.0, 0.0)
    board.end(3, "add")

    assert board.running() == [0, 999]
    board.close()


def test_who_came_to_the_door_last_is_the_next() -> None:
    door, came = Door(), list[str]()
    assert door.enter(10)

    def wait(name: str) -> None:
        if door.enter(10):
            came.append(name)
            door.leave()

    threads = [threading.Thread(target=wait, args=(name,)) for name in "abc"]
    for number, thread in enumerate(threads, 1):
        thread.start()
        wait_until(lambda number=number: len(door) == number, 10)
    door.leave()
    for thread in threads:
        thread.join()

    assert came == ["c", "b", "a"]
    assert door.enter(0)


def test_those_at_the_door_are_called_and_do_not_wait_for_ever() -> None:
    door, came = Door(), list[bool]()
    assert door.enter(10)
    threads = [threading.Thread(target=lambda: came.append(door.enter(10))) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(door) == 3, 10)

    door.call()
    for thread in threads:
        thread.join()

    assert came == [False] * 3
    assert not door.enter(0.01)
    door.leave()
    assert door.enter(0.01)


def test_orders_larger_than_a_pipe_arrive_piece_by_piece() -> None:
    reading, writing = os.pipe()
    pipe = _Pipe(reading)
    orders = Orders(("celery",), limits={f"task-{i}": (1.0, None) for i in range(5000)})
    line = encode_orders(orders)

    for start in range(0, len(line), 50_000):
        assert pipe.newest() == Orders()
        os.write(writing, line[start : start + 50_000])
        pipe.newest()

    assert pipe.newest() == orders
    os.close(writing)
    assert pipe.newest().stop
    os.close(reading)


@pytest.mark.parametrize(("ends_in", "raises"), [(-1.0, True), (60.0, False), (None, False)])
def test_late_soft_limit_spares_the_next_task(
    board: Board, ends_in: float | None, raises: bool
) -> None:
    claimant = Claimant.__new__(Claimant)
    claimant._board, claimant._slot = board, 0
    claimant.soft_deadline = 0.0 if ends_in is None else time.monotonic() + ends_in
    handle = _soft_limit_handler(claimant)

    if raises:
        with pytest.raises(SoftTimeLimitExceeded):
            handle(0, None)
    # Once is enough, and not at all for a task whose time is not over.
    handle(0, None)


def test_soft_limit_on_request_is_raised_in_one_task(board: Board) -> None:
    board.hold(0, 2)
    begin(board, 7)
    board.soften(0, 7)

    assert board.is_softened(0)
    board.end(0, "add")
    assert not board.is_softened(0)
    begin(board, 8)
    assert not board.is_softened(0)


def test_only_a_task_that_was_revoked_ends_as_terminated(board: Board, queue_url: str) -> None:
    # Another may have begun between the parent's look and its signal.
    celery = Celery("app", broker=queue_url, backend=queue_url, set_as_current=False)

    @celery.task(name="add")
    def add(x: int) -> int:
        return x

    engine = open_engine(queue_url)
    limits = Limits(None, None)
    settings = Settings(celery, engine, "w@host", "w", board, frozenset(["add"]), limits)
    redelivery = Redelivery(settings, make_requests(settings), engine.folder)
    engine.register(Worker("w", "w@host", 1, ["celery"], ["add"]))
    revoked, other = add.delay(1), add.delay(2)
    for slot in (0, 1):
        board.enter(slot, 1234)
        (delivery,) = engine.claim(["celery"], 1, worker="w", slot=slot)
        board.begin(slot, delivery.tag, time.monotonic(), 0.0, 0.0)

    engine.revoke([revoked.id])
    for slot in (0, 1):
        redelivery.child_died(slot, 1234, "terminated 15")

    assert engine.list_tasks() == []
    # Celery's request, which had the signal sent, said so of the first.
    assert (revoked.state, other.state) == ("PENDING", "FAILURE")
    engine.deregister("w")
    celery.close()


def test_task_that_was_taken_away_can_not_be_ended_by_its_thread() -> None:
    fence = Fence()
    fence.enter(1)

    assert fence.take(1)

    with pytest.raises(Abandoned):
        fence.leave(1)


def test_task_that_is_through_can_not_be_taken_away() -> None:
    fence = Fence()
    fence.enter(1)
    fence.leave(1)
    fence.enter(2)

    assert not fence.take(1)
    assert fence.holds(2)
    fence.leave(2)


def test_soft_limit_that_no_task_heard_is_held_back() -> None:
    fence = Fence()
    told = []

    def late(exc: type[BaseException]) -> None:
        told.append(exc)
        interrupt(threading.get_ident(), exc)

    # In the thread's own hands, the exception is raised with the next call: within this block.
    fence.enter(1)
    with pytest.raises(SoftTimeLimitExceeded):
        fence.soften(1, late)
    fence._running[1] = True

    fence.leave(1)

    assert told == [SoftTimeLimitExceeded]
    assert not fence.soften(1, late)


def test_thread_is_not_interrupted_outside_of_tasks() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()

    assert not is_safe(thread.ident or 0)

    done.set()
    thread.join()
    assert not is_safe(thread.ident or 0)


def test_thread_is_not_interrupted_while_it_takes_a_lock_of_logging() -> None:
    handler = logging.StreamHandler(io.StringIO())
    assert handler.lock is not None
    handler.lock.acquire()
    record = logging.makeLogRecord({"msg": "from a task"})
    thread = threading.Thread(target=handler.handle, args=(record,))
    thread.start()
    try:
        # An exception would be raised when it has the lock, and before it is sure to give it up.
        wait_until(lambda: is_at_a_lock(thread.ident or 0), 5)
    finally:
        handler.lock.release()
        thread.join()
    assert not is_at_a_lock(thread.ident or 0)


def test_signal_for_a_task_that_ended_meanwhile_spares_the_next(board: Board) -> None:
    pool = ThreadPool(1)
    ended: list[tuple[int, int]] = []

    class Child:
        def end(self, tag: int, signum: int, reason: str) -> None:
            ended.append((tag, signum))

    pool.settings = cast("Settings", SimpleNamespace(board=board))
    pool._children = {0: Child()}
    begin(board, 7)
    seen = Job.of(board.read(0))
    board.end(0, "add")
    board.recorded(0, 1)
    begin(board, 8)

    pool.terminate_job(seen, signal.SIGTERM)
    assert ended == []

    pool.terminate_job(Job.of(board.read(0)), signal.SIGTERM)
    assert ended == [(8, signal.SIGTERM)]


# How often the parent looks


def test_parent_rests_when_nothing_ran_for_a_while(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pool = Pool(1)
    pool.settings = cast("Settings", SimpleNamespace(board=board))
    pool.shutdown = cast("Shutdown", SimpleNamespace(is_halted=True))
    pool._children = {0: SimpleNamespace(why_dead=lambda: None)}

    assert pool.tick() == LOOK_IDLE
    assert not board.is_to_wake(1)
    assert board.is_to_wake(2)

    now += 6
    assert pool.tick() == LOOK_REST
    assert board.is_to_wake(1)

    assert begin(board, 7)
    assert pool.tick() == pytest.approx(LOOK, abs=0.01)
    assert not board.is_to_wake(2)

    # One that was too quick to be seen running counts as well.
    board.end(0, "add")
    now += 6
    assert pool.tick() == LOOK_IDLE
    assert begin(board, 8)
    board.end(0, "add")
    now += 6
    assert pool.tick() == LOOK_IDLE
    assert not board.is_to_wake(1)


# The pace of a child


def test_waiting_counts_as_time_of_a_task() -> None:
    stopwatch = Stopwatch()
    began = stopwatch.read()

    time.sleep(0.1)

    assert 0.05 < stopwatch.read() - began < 5


SPIN = "import time\nprint(flush=True)\nwhile True: time.time()"
SLEEP = "import time\nprint(flush=True)\ntime.sleep(60)"
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells for how long")


@contextmanager
def program(code: str, niceness: int = 0) -> Iterator[int]:
    """Run a program that says when it has begun; yield its process id."""
    command = ["nice", "-n", str(niceness), sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


@contextmanager
def busy_processor() -> Iterator[set[int]]:
    """Share one processor with three programs that never rest; yield those allowed before."""
    allowed = os.sched_getaffinity(0)
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, allowed)
        os.sched_setaffinity(0, {min(allowed)})
        for _ in range(3):
            stack.enter_context(program(SPIN))
        yield allowed


@only_linux
def test_waiting_for_a_processor_does_not() -> None:
    with busy_processor():
        stopwatch = Stopwatch()
        began, began_at = stopwatch.read(), time.monotonic()
        while time.monotonic() - began_at < 0.5:
            pass
        took = stopwatch.read() - began

    assert took < 0.4


# Who is stuck


def is_over_after(seconds: float, pid: int, patience: Patience) -> bool:
    """Say whether a process takes long that begins a task now, so much later."""
    began = time.monotonic()
    activity = Activity(pid, True, False, 2, 1, began, 0.0, 0.0, 0, (7,))
    assert not patience.is_over(0, activity, began)
    time.sleep(seconds)
    return patience.is_over(0, activity, time.monotonic())


@pytest.mark.parametrize("code", [SPIN, SLEEP])
def test_a_task_that_computes_or_waits_is_stuck(code: str) -> None:
    with program(code) as pid:
        patience = Patience()

        assert not is_over_after(0.001, pid, patience)
        wait_until(lambda: is_over_after(0.05, pid, patience))


@only_linux
def test_a_task_that_lacks_a_processor_is_not() -> None:
    with busy_processor() as allowed, program(SPIN, niceness=19) as pid:
        os.sched_setaffinity(0, allowed)  # The one who looks is not to wait.
        patience = Patience()

        assert not any(is_over_after(0.05, pid, patience) for _ in range(5))


def test_where_nothing_is_told_the_clock_decides(tmp_path: Path) -> None:
    assert is_over_after(0.03, os.getpid(), Patience(tmp_path))
    assert not is_over_after(0.001, os.getpid(), Patience(tmp_path))
