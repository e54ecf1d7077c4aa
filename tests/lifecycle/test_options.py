"""The worker's options, one test each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from celery.utils import sysinfo
from contracts import Contract
from programs import celery_command
from programs import Program
from programs import run
from waiting import wait_until

from celeriac.engines import Engine

SOON = 10
Start = Callable[..., Program]


def children_of(contract: Contract) -> list[str]:
    return [line[1] for line in contract.journal("worker_process_init")]


def test_max_tasks_per_child(tasks: Any, contract: Contract, start: Start) -> None:
    start("-c", "1", "--max-tasks-per-child", "2")

    for i in range(5):
        assert tasks.add.delay(i, 1).get(timeout=SOON) == i + 1

    wait_until(lambda: len(children_of(contract)) == 3, SOON)
    assert len(contract.journal("worker_process_shutdown")) == 2
    assert [line[2] for line in contract.journal("worker_process_shutdown")] == ["0", "0"]


def test_max_memory_per_child(tasks: Any, contract: Contract, start: Start) -> None:
    worker = start("-c", "1", "--max-memory-per-child", "150000")
    assert tasks.add.delay(1, 1).get(timeout=SOON) == 2

    large = tasks.growing.delay(200)
    large.get(timeout=SOON)

    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
    wait_until(lambda: len(children_of(contract)) == 2, SOON)
    assert re.search(
        r"The child ends, and a new one takes its place: it used \d+ MB, and "
        r"worker_max_memory_per_child is 146 MB\. Most of it came with "
        rf"contract_program\.growing\[{large.id}\]: \d+ MB\.",
        worker.log,
    )


def test_autoscale(tasks: Any, contract: Contract, start: Start) -> None:
    worker = start("--autoscale", "4,1", conf={"worker_autoscaler_keepalive": 1})
    key = contract.new_key()
    assert len(worker.children()) == 1

    results = [tasks.waiting.delay(key) for _ in range(4)]
    wait_until(lambda: len(contract.journal("waiting", key)) == 4, SOON)

    assert len(worker.children()) == 4
    contract.let_go(key)
    for result in results:
        assert result.get(timeout=SOON) == key


@pytest.mark.skipif(not hasattr(sysinfo, "cpu_budget"), reason="comes with Celery 5.7")
def test_concurrency_by_the_processors_that_there_are(start: Start) -> None:
    worker = start("-c", "auto")

    count = sysinfo.cpu_budget().count
    assert f"worker_concurrency='auto' resolved to {count} (pool=prefork" in worker.log
    assert len(worker.children()) == count


def test_queues_and_excluded_queues(tasks: Any, contract: Contract, start: Start) -> None:
    worker = start("-c", "1", "-Q", "celery,celery-elsewhere,third", "-X", "third")

    assert tasks.elsewhere.delay().get(timeout=SOON) == "elsewhere"
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
    left = tasks.add.apply_async((1, 2), queue="third")
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
    assert left.state == "PENDING"
    assert "third" not in worker.log


def test_purge(tasks: Any, contract: Contract, start: Start, engine: Engine) -> None:
    for i in range(3):
        tasks.add.delay(i, i)

    worker = start("-c", "1", "--purge")

    assert "Erased 3 messages" in worker.log
    assert not engine.list_tasks()


def test_pidfile_and_logfile(tasks: Any, contract: Contract, start: Start, tmp_path: Path) -> None:
    pidfile, logfile = tmp_path / "worker.pid", tmp_path / "%n%I.log"
    worker = start(
        "-c", "1", "--pidfile", str(pidfile), "-f", str(logfile), ready=tmp_path / "worker.log"
    )

    assert int(pidfile.read_text()) == worker.pid
    result = tasks.add.delay(1, 2)
    assert result.get(timeout=SOON) == 3
    logs = "".join(path.read_text() for path in tmp_path.glob("worker*.log"))
    assert f"Task contract_program.add[{result.id}] succeeded" in logs
    worker.stop()
    assert not pidfile.exists()


def test_embedded_beat_runs_the_schedule(tasks: Any, contract: Contract, start: Start) -> None:
    key = contract.new_key()
    entry = {"task": "contract_program.note", "schedule": 0.2, "args": [key]}

    start("-c", "1", "-B", conf={"beat_schedule": {"often": entry}})

    wait_until(lambda: len(contract.journal(key)) >= 3, SOON)


def test_two_workers_of_one_name_share_the_work(
    tasks: Any, contract: Contract, start: Start
) -> None:
    first = start("-c", "1", name="same")
    start("-c", "1", name="same")
    key = contract.new_key()

    results = [tasks.waiting.delay(key) for _ in range(2)]
    wait_until(lambda: len(contract.journal("waiting", key)) == 2, SOON)
    contract.let_go(key)

    assert [result.get(timeout=SOON) for result in results] == [key, key]
    first.stop()
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3


def test_worker_in_a_folder_without_instance_folder(
    tasks: Any, contract: Contract, start: Start, tmp_path: Path
) -> None:
    assert not (tmp_path / "instance").exists()

    start("-c", "1")

    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
    assert not os.listdir(tmp_path).count("celerybeat-schedule")


def test_task_revoked_while_no_worker_runs_never_starts(
    tasks: Any, contract: Contract, start: Start
) -> None:
    key = contract.new_key()
    result = tasks.note.delay(key)

    result.revoke()
    start("-c", "1")

    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=SOON)
    assert not contract.journal(key)


def test_worker_with_a_grace_period_that_is_none_says_so_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "from celery import Celery\n"
        f"app = Celery('program', broker='sqlite:///{tmp_path}/queue.sqlite3')\n"
        "app.conf.worker_grace_period = 'long'\n"
    )

    done = run(celery_command("-A", "program", "worker"), cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "The worker can not start. worker_grace_period is 'long', and a number of seconds is "
        "needed."
    )
    assert "Traceback" not in done.stderr


def test_worker_that_can_not_write_says_so_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "queue.sqlite3").write_bytes(b"This is no database, but long enough for one." * 99)
    (tmp_path / "program.py").write_text(
        "from celery import Celery\n"
        f"app = Celery('program', broker='sqlite:///{tmp_path}/queue.sqlite3')\n"
    )

    done = run(celery_command("-A", "program", "worker"), cwd=tmp_path, check=False)

    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"The worker can not start. The queue file {tmp_path}/queue.sqlite3 is")
    assert "Traceback" not in done.stderr
