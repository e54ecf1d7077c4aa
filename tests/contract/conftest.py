"""One worker for all tests of the contract: on each pool of ours, and on Celery's own brokers."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from contracts import Contract
from contracts import make_contract
from leaks import LASTING

#: The brokers of Celery's own, on which its worker runs with its default pool.
STOCK = ("redis", "rabbitmq")
#: Prefork with children that are not forked, where Celery has a setting for it.
SPAWN = ("spawn",) if celery.VERSION >= (5, 7) else ()
COLUMNS = ("prefork", *SPAWN, "threads", "solo", "gevent", *STOCK)


@pytest.fixture(scope="session", params=COLUMNS)
def contract(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contract]:
    """Return the contract, with a worker that runs for all tests of one column."""
    made = _make(request, tmp_path_factory.mktemp(request.param))
    pool = "prefork" if made.pool == "spawn" else made.pool
    conf = {"worker_pool_start_method": "spawn"} if made.pool == "spawn" else {}
    worker = made.start("-P", pool, "-c", "2", conf=conf)
    LASTING.add(worker.pid)
    try:
        yield made
    finally:
        worker.stop()
        print(worker.log)
        made.close()


def _make(request: Any, folder: Path) -> Contract:
    """Return the contract of a column. Nothing but the URLs differs, nor could: see Contract."""
    queue = f"contract-{uuid.uuid4().hex[:8]}"
    if request.param not in STOCK:
        return make_contract(folder, request.param, queue=queue)
    redis = request.getfixturevalue("redis_server")
    url = request.getfixturevalue("amqp_url") if request.param == "rabbitmq" else redis
    return Contract(folder, url, "prefork", results=redis, queue=queue)


@pytest.fixture
def tasks(contract: Contract) -> Any:
    """Return the program's module: its tasks are its attributes."""
    return contract.program


@pytest.fixture
def differs(request: pytest.FixtureRequest, contract: Contract) -> bool:
    """Say whether the test's marker ``differs`` names this broker: the other outcome is due."""
    return any(contract.broker in mark.args for mark in request.node.iter_markers("differs"))


@pytest.fixture(autouse=True)
def skip_what_differs(request: pytest.FixtureRequest, contract: Contract) -> None:
    """Skip a test that says it differs here, unless it asks for ``differs`` to show how."""
    for mark in request.node.iter_markers("differs"):
        if contract.broker in mark.args and "differs" not in request.fixturenames:
            pytest.skip(f"in the table of differences: {mark.kwargs['row']}")


@pytest.fixture
def in_order(contract: Contract) -> Callable[[list[str]], list[str]]:
    """Return a function for what is compared in order, except where Celery promises none.

    A stock worker publishes a retry while the task runs, so that the next run may begin before
    this one has told of its end.
    """
    return list if contract.broker == "sqlite" else sorted
