"""One worker for all tests of the contract, on each pool; and the program that it runs."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import _state
from leaks import LASTING
from programs import celery_command
from programs import Program
from waiting import wait_until

HERE = Path(__file__).parent
#: The same promises kept by Celery itself: ``CELERIAC_TEST_REFERENCE=redis://… pytest``.
REFERENCE = os.environ.get("CELERIAC_TEST_REFERENCE")


class Contract:
    """The program as its caller sees it, with what it wrote into its journal."""

    def __init__(self, folder: Path, url: str, pool: str) -> None:
        self.folder, self.url, self.pool = folder, url, pool
        self.env = {
            "CONTRACT_FOLDER": str(folder),
            "CONTRACT_URL": url,
            "PYTHONPATH": os.pathsep.join(
                [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        }
        self.program: Any = self._load()

    def start(self, *options: str, name: str = "worker") -> Program:
        """Start a worker and wait until it is ready."""
        command = celery_command(
            "-A", "contract_program", "worker", "-n", f"{name}@contract", "-l", "INFO", *options
        )
        started = Program(
            command, log_path=self.folder / f"{name}.log", cwd=self.folder, env=self.env
        )
        started.wait_for_log(" ready.")
        return started

    def journal(self, *words: object) -> list[list[str]]:
        """Return the words of each line of the journal that has all of ``words``."""
        path = self.folder / "journal"
        lines = path.read_text().splitlines() if path.exists() else []
        wanted = set(map(str, words))
        return [line.split() for line in lines if wanted <= set(line.split())]

    def new_key(self) -> str:
        """Return the name of something that no other test waits for or writes."""
        return uuid.uuid4().hex[:8]

    def let_go(self, key: str) -> None:
        """Let the tasks that wait for ``key`` end."""
        (self.folder / key).touch()

    def wait_for(self, *words: object, timeout: float = 5.0) -> list[str]:
        """Wait for a line with all of ``words`` in the journal, and return its words."""
        return wait_until(
            lambda: self.journal(*words), timeout, message=lambda: f"{words} in the journal"
        )[0]

    def _load(self) -> ModuleType:
        shared = set(_state._on_app_finalizers)
        os.environ.update({name: self.env[name] for name in ("CONTRACT_FOLDER", "CONTRACT_URL")})
        try:
            path = HERE / "contract_program.py"
            spec = importlib.util.spec_from_file_location("contract_program", path)
            assert spec is not None and spec.loader is not None
            program = importlib.util.module_from_spec(spec)
            sys.modules["contract_program"] = program
            spec.loader.exec_module(program)
            program.celery.finalize()
            return program
        finally:
            # Or the next app of this process would have the tasks of this one.
            _state._on_app_finalizers.intersection_update(shared)
            del os.environ["CONTRACT_FOLDER"], os.environ["CONTRACT_URL"]


def make_contract(folder: Path, pool: str) -> Contract:
    """Return a contract over a queue of its own."""
    if pool == "reference":
        assert REFERENCE is not None
        return Contract(folder, REFERENCE, pool)
    return Contract(folder, f"sqlite:///{folder}/queue.sqlite3?durability=normal", pool)


@pytest.fixture(
    scope="session", params=["prefork", "threads", "solo", *(["reference"] if REFERENCE else [])]
)
def contract(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contract]:
    """Return the contract, with a worker that runs for all tests of one pool."""
    made = make_contract(tmp_path_factory.mktemp(request.param), request.param)
    pool = "prefork" if made.pool == "reference" else made.pool
    worker = made.start("-P", pool, "-c", "2", "-Q", "celery,elsewhere")
    LASTING.add(worker.pid)
    try:
        yield made
    finally:
        worker.stop()
        print(worker.log)


@pytest.fixture
def tasks(contract: Contract) -> Any:
    """Return the program's module: its tasks are its attributes."""
    return contract.program


def soon() -> float:
    """Return when "at once" is over (Unix time)."""
    return time.time() + 5.0
