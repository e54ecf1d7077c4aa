"""One worker for all tests of the contract, on each pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from contracts import Contract
from contracts import make_contract
from contracts import REFERENCE
from leaks import LASTING


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
