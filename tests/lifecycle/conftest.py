"""Workers that tests start, stop and kill: a queue of its own for each test."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts import Contract
from contracts import make_contract
from programs import Program

from celeriac.engines import Engine
from celeriac.engines import open_engine


@pytest.fixture
def contract(tmp_path: Path) -> Contract:
    return make_contract(tmp_path, "prefork")


@pytest.fixture
def tasks(contract: Contract) -> Any:
    """Return the program's module: its tasks are its attributes."""
    return contract.program


@pytest.fixture
def engine(contract: Contract) -> Engine:
    return open_engine(contract.url)


@pytest.fixture
def start(contract: Contract) -> Iterator[Callable[..., Program]]:
    """Start workers that are killed when the test ends: ``start("-c", "1", name="a")``."""
    started: list[Program] = []

    def start(*options: str, **kwargs: Any) -> Program:
        started.append(contract.start(*options, **kwargs))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
        print(worker.log)
