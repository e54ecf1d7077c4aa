"""What is known of the memory of children, and of the kernel that ends them for lack of it."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from contracts import Contract
from contracts import make_contract
from programs import Program

from celeriac.engines.base import Delivery
from celeriac.worker.memory import Footprint
from celeriac.worker.memory import Growth
from celeriac.worker.memory import killed_by_kernel
from celeriac.worker.memory import MB
from celeriac.worker.memory import Memory
from celeriac.worker.memory import resident

SOON = 15
EVENTS = "low 0\nhigh 0\nmax 118\noom 4\noom_kill 3\noom_group_kill 0\n"
VMSTAT = "nr_free_pages 123\noom_kill 17\nnuma_hit 5\n"
linux = pytest.mark.skipif(sys.platform != "linux", reason="nobody else tells")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    return tmp_path / "proc"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_kills_of_the_own_group_are_counted(proc: Path, tmp_path: Path) -> None:
    write(proc / "self" / "cgroup", "1:name=systemd:/x\n0::/system.slice/shop.service\n")
    write(tmp_path / "groups" / "system.slice" / "shop.service" / "memory.events", EVENTS)
    write(proc / "vmstat", VMSTAT)

    assert killed_by_kernel(proc, tmp_path / "groups") == 3


def test_kills_in_a_container_are_counted(proc: Path, tmp_path: Path) -> None:
    write(proc / "self" / "cgroup", "0::/\n")
    write(tmp_path / "groups" / "memory.events", EVENTS)

    assert killed_by_kernel(proc, tmp_path / "groups") == 3


def test_kills_of_the_machine_are_counted_where_groups_tell_nothing(
    proc: Path, tmp_path: Path
) -> None:
    write(proc / "self" / "cgroup", "4:memory:/shop\n0::/shop\n")
    write(proc / "vmstat", VMSTAT)

    assert killed_by_kernel(proc, tmp_path / "groups") == 17


def test_nothing_is_known_where_nothing_is_told(proc: Path, tmp_path: Path) -> None:
    assert killed_by_kernel(tmp_path / "missing", tmp_path) is None
    assert resident(os.getpid(), tmp_path) == 0


@linux
def test_memory_of_a_process_is_what_it_holds() -> None:
    before = resident(os.getpid())
    held = bytearray(os.urandom(1) * (64 * MB))

    assert 48 < (resident(os.getpid()) - before) / MB < 80
    assert len(held) == 64 * MB


def test_memory_is_told_in_a_sentence() -> None:
    assert str(Memory(22 * MB, 312 * MB)) == (
        "Its memory was 312 MB, 290 MB more than before the task."
    )
    assert str(Memory(22 * MB, 22 * MB + 5)) == "Its memory was 22 MB, as before the task."


def test_a_child_that_was_not_seen_in_its_task_says_nothing() -> None:
    footprint = Footprint(os.getpid())
    footprint.look(None)

    assert footprint.during(7) is None


@linux
def test_task_with_which_a_child_grew_most_is_named() -> None:
    growth = Growth(limit=1)
    hoard = bytearray(1)
    for name, size in (("small", 1), ("large", 150), ("last", 1)):
        hoard += bytes([size]) * (size * MB)
        growth.saw(Delivery(1, 0, "q", "{}", "", name, f"id-{name}", 0, 0, False, None))

    assert growth.is_too_much
    assert re.fullmatch(
        r"it used \d+ MB, and worker_max_memory_per_child is 0 MB\. Most of it came with "
        r"large\[id-large\]: \d+ MB\.",
        str(growth),
    )


# With a worker


@pytest.fixture
def contract(tmp_path: Path) -> Contract:
    return make_contract(tmp_path, "prefork")


@pytest.fixture
def start(contract: Contract) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(*options: str) -> Program:
        started.append(contract.start(*options))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
        print(worker.log)


@linux
def test_memory_of_a_killed_child_is_told(contract: Contract, start: Any) -> None:
    worker = start("-c", "1")
    tasks = contract.program
    tasks.add.delay(1, 2).get(timeout=SOON)
    key = contract.new_key()
    result = tasks.hoarding.delay(100, key)
    pid = int(contract.wait_for("hoarding", key)[2])
    contract.wait_for("seen", key)

    os.kill(pid, signal.SIGKILL)

    with pytest.raises(WorkerLostError) as caught:
        result.get(timeout=SOON)
    told = re.fullmatch(
        rf"Worker exited prematurely: process {pid} of worker@contract, signal 9 \(SIGKILL\)\. "
        r"Its memory was (\d+) MB, (\d+) MB more than before the task\.",
        str(caught.value),
    )
    assert told, str(caught.value)
    assert 90 < int(told[2]) < 130 < int(told[1])
    assert str(caught.value).removesuffix(".") in worker.log


@pytest.fixture
def group() -> Iterator[Path]:
    """Return a control group of little memory."""
    root = Path("/sys/fs/cgroup")
    old = root / "memory"
    path = (old if old.is_dir() else root) / f"celeriac-test-{os.getpid()}"
    limit = path / ("memory.limit_in_bytes" if old.is_dir() else "memory.max")
    try:
        path.mkdir()
        limit.write_text(str(400 * MB))
    except OSError as exc:
        path.rmdir() if path.is_dir() else None
        pytest.skip(f"a control group can not be made here: {exc}")
    yield path
    path.rmdir()


@linux
def test_child_killed_by_the_kernel_for_lack_of_memory_is_told(
    contract: Contract, start: Any, group: Path
) -> None:
    worker = start("-c", "1")
    for process in (worker.pid, *(child.pid for child in worker.children())):
        (group / "cgroup.procs").write_text(str(process))
    tasks = contract.program

    result = tasks.hoarding.delay(2000, contract.new_key())

    try:
        with pytest.raises(WorkerLostError) as caught:
            result.get(timeout=SOON)
    finally:
        worker.stop()
    assert re.search(r"signal 9 \(SIGKILL\), by the kernel for lack of memory\.", str(caught.value))
