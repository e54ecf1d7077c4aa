"""What becomes of workers and callers when something is wrong with the queue file.

On a file system of its own where that is possible: one that can be full, or read-only.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import TimeoutError
from contracts import Contract
from kombu.exceptions import OperationalError
from programs import Program

from celeriac.engines import EngineError
from celeriac.engines import open_engine
from celeriac.exceptions import WaitingWarning

SOON = 15
Start = Callable[..., Program]
#: How long the workers here wait for the lock of the queue file (seconds).
BUSY_TIMEOUT = 0.5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of the queue file, which holds nothing else."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    """Mount a small file system there."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "queue.sqlite3"


@pytest.fixture
def contract(tmp_path: Path, path: Path) -> Contract:
    return Contract(tmp_path, f"sqlite:///{path}?busy_timeout={BUSY_TIMEOUT}", "prefork")


def run_waiting(tasks: Any, contract: Contract, name: str = "waiting") -> tuple[Any, str, int]:
    """Have a task run that waits; return its result, what lets it go, and its process."""
    key = contract.new_key()
    result = getattr(tasks, name).delay(key)
    return result, key, int(contract.wait_for("waiting", key)[2])


def fill(disk: Path) -> None:
    with closing(sqlite3.connect(disk / "queue.sqlite3")) as db:
        # Nothing is left in the log that could be written over.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    filler = os.open(disk / "filler", os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(filler, bytes(4096))
    except OSError as exc:
        assert exc.errno == errno.ENOSPC
    finally:
        os.close(filler)


def no_room(path: Path) -> str:
    return (
        f"There is no room left for the queue file {path}. Nothing was written. Free some space "
        "on its disk; workers go on by themselves."
    )


def damaged(path: Path) -> str:
    return (
        f"The queue file {path} is damaged (database disk image is malformed). Stop the workers, "
        f"keep a copy, and try 'sqlite3 {path} .recover | sqlite3 recovered.sqlite3'; or move it "
        "away, and an empty one is made."
    )


def lines(worker: Program, text: str) -> int:
    return sum(text in line for line in worker.log.splitlines())


# Full


def test_full_disk_holds_everything_up_and_loses_nothing(
    disk: Path, path: Path, tasks: Any, contract: Contract, start: Start
) -> None:
    worker = start("-c", "2")
    ended, key, _ = run_waiting(tasks, contract)
    killed, other_key, pid = run_waiting(tasks, contract, "late_waiting")
    fill(disk)
    contract.let_go(key)
    os.kill(pid, signal.SIGKILL)

    with pytest.raises(OperationalError) as caught:
        tasks.echo.delay("x" * 20_000)

    assert str(caught.value) == no_room(path)
    worker.wait_for_log(f"The worker could not deal with a death: {no_room(path)}")
    worker.wait_for_log(f"{no_room(path)} Trying again every 0.5 s.")
    assert [ended.state, killed.state] == ["PENDING", "PENDING"]

    (disk / "filler").unlink()

    assert ended.get(timeout=SOON) == key
    contract.let_go(other_key)
    assert killed.get(timeout=SOON) == "redelivered"
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
    assert len(contract.journal("waiting", key)) == 1
    # Each process tells each once, however often it tried.
    assert lines(worker, "There is no room left") < 8
    assert lines(worker, "is run again: process") == 1
    assert worker.stop() == 0


def test_worker_that_ends_while_the_disk_is_full_leaves_the_rest_to_the_next(
    disk: Path, tasks: Any, contract: Contract, start: Start
) -> None:
    worker = start("-c", "1")
    killed, key, pid = run_waiting(tasks, contract, "late_waiting")
    fill(disk)
    os.kill(pid, signal.SIGKILL)
    worker.wait_for_log("The worker could not deal with a death")

    assert worker.stop() == 0

    (disk / "filler").unlink()
    start("-c", "1")
    contract.let_go(key)
    assert killed.get(timeout=SOON) == "redelivered"


# Locked


@pytest.mark.parametrize("patient", [True, False])
def test_foreign_lock_is_outlived(
    path: Path, tasks: Any, contract: Contract, start: Start, patient: bool
) -> None:
    seconds = 8 if patient else 1.5
    worker = start("-c", "1")
    ended, key, _ = run_waiting(tasks, contract)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(seconds, other.execute, ("ROLLBACK",))
    timer.start()
    contract.let_go(key)

    if patient:
        tasks.celery.conf.broker_url = f"sqlite:///{path}"
        with closing(tasks.celery.connection_for_write()) as connection:
            sent = tasks.add.apply_async((1, 2), connection=connection)
    else:
        with pytest.raises(OperationalError) as caught:
            tasks.add.delay(1, 2)
        assert str(caught.value) == (
            f"The queue file {path} stayed locked for 0.5 s. Another program holds a transaction "
            "open on it: only Celeriac should write to this file."
        )
        sent = None

    timer.join()
    other.close()
    assert ended.get(timeout=SOON) == key
    if sent is not None:
        assert sent.get(timeout=SOON) == 3
    assert tasks.add.delay(2, 3).get(timeout=SOON) == 5
    assert lines(worker, "stayed locked for") < 8
    assert len(open_engine(contract.url).list_tasks()) == 0


# Read-only


def test_file_system_that_can_only_be_read_is_told_and_used_again(
    disk: Path, path: Path, tasks: Any, contract: Contract, start: Start
) -> None:
    start("-c", "1").stop()
    open_engine(contract.url).close()
    remount(disk, "ro")

    with pytest.raises(OperationalError) as caught:
        tasks.add.delay(1, 2)

    assert str(caught.value) == (
        f"The queue file {path} can not be written: Read-only file system. Give the user that "
        f"runs the application and its workers write access to {disk} and the files in it, or "
        "name another file in broker_url."
    )
    remount(disk, "rw")
    start("-c", "1")
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3


def remount(disk: Path, how: str) -> None:
    command = ["mount", "-o", f"remount,{how}", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Damaged


def damage(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(b"x" * (size - 4096))


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_worker_with_a_damaged_file_ends_and_says_so(
    path: Path, tasks: Any, contract: Contract, start: Start, pool: str
) -> None:
    worker = start("-c", "2", "-P", pool)
    tasks.add.delay(1, 2).get(timeout=SOON)
    damage(path)

    with pytest.raises(OperationalError) as caught:
        tasks.add.delay(1, 2)

    assert str(caught.value) == damaged(path)
    assert worker.wait() == os.EX_DATAERR
    text = f"The worker ends, so as not to damage more. {damaged(path)}"
    assert 1 <= lines(worker, text) <= 3
    assert "Traceback" not in worker.log


def test_worker_with_a_damaged_file_lets_its_tasks_end(
    path: Path, tasks: Any, contract: Contract, start: Start
) -> None:
    worker = start("-c", "2")
    ended, key, _ = run_waiting(tasks, contract)
    _, _, pid = run_waiting(tasks, contract)
    damage(path)
    os.kill(pid, signal.SIGKILL)
    worker.wait_for_log("The worker ends, so as not to damage more.")
    contract.let_go(key)

    assert worker.wait() == os.EX_DATAERR
    assert lines(worker, f"These tasks ended, and count as lost with the child: {ended.id}") == 1
    with pytest.raises(EngineError) as caught:
        ended.get(timeout=SOON)
    assert str(caught.value) == damaged(path)


# Deleted and replaced


def remove(path: Path) -> None:
    for each in path.parent.glob(f"{path.name}*"):
        if each.is_file():
            each.unlink()


def test_everyone_follows_to_the_file_that_takes_the_place_of_a_deleted_one(
    path: Path, tasks: Any, contract: Contract, start: Start
) -> None:
    worker = start("-c", "2")
    lost, key, _ = run_waiting(tasks, contract)
    remove(path)

    with warnings.catch_warnings():
        # A worker makes itself known in the new file with its next heartbeat.
        warnings.simplefilter("ignore", WaitingWarning)
        assert tasks.add.delay(1, 2).get(timeout=SOON) == 3

    contract.let_go(key)
    worker.wait_for_log(f"contract_program.waiting[{lost.id}] succeeded")
    with pytest.warns(WaitingWarning) as told, pytest.raises(TimeoutError):
        lost.get(timeout=4)
    assert str(told[0].message) == (
        f"No task {lost.id} is known here: it was never sent to this broker, comes later in a "
        "chain or chord, or its result has expired, was forgotten or is not kept."
    )
    assert worker.stop() == 0


def test_everyone_follows_to_a_copy_that_was_put_back(
    path: Path, tasks: Any, contract: Contract, start: Start
) -> None:
    worker = start("-c", "1")
    later = tasks.add.apply_async((20, 1), countdown=3600)
    backup = path.with_name("backup")
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(backup)) as copy:
        db.backup(copy)
    done = tasks.add.delay(1, 2)
    assert done.get(timeout=SOON) == 3

    remove(path)
    backup.rename(path)

    assert tasks.add.delay(2, 3).get(timeout=SOON) == 5
    assert [each.task_id for each in open_engine(contract.url).list_tasks()] == [later.id]
    assert worker.stop() == 0


def test_workers_go_on_when_the_log_is_removed(
    path: Path, tasks: Any, contract: Contract, start: Start
) -> None:
    worker = start("-c", "1")
    tasks.add.delay(1, 2).get(timeout=SOON)

    for each in path.parent.glob(f"{path.name}-*"):
        each.unlink()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WaitingWarning)
        assert tasks.add.delay(2, 3).get(timeout=SOON) == 5
    assert worker.stop() == 0


def test_folder_beside_the_file_removed_under_workers_holds_nothing_up(
    path: Path, tasks: Any, contract: Contract, start: Start
) -> None:
    worker = start("-c", "2")
    waiting, _, pid = run_waiting(tasks, contract)

    shutil.rmtree(f"{path}.d")

    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match=rf"process {pid} of worker@contract, signal 9"):
        waiting.get(timeout=SOON)
    assert worker.stop() == 0
