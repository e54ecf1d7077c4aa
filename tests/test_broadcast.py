"""A queue for broadcasts: every worker has its own, for as long as it lives."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from contracts import make_contract
from waiting import wait_until

from celeriac.engines import open_engine


def test_broadcast_is_run_by_each_worker_and_ends_with_it(tmp_path: Path) -> None:
    contract = make_contract(tmp_path, "threads", queue="shared")
    key, tasks = contract.new_key(), contract.program
    workers = [contract.start("-P", "threads", "-c", "1", name=name) for name in ("one", "two")]
    try:
        tasks.note.apply_async((key,), queue="shared-all", ignore_result=True)

        wait_until(lambda: len(contract.journal(key)) == 2)
        assert len(broadcast_queues(contract)) == 2
    finally:
        for worker in workers:
            worker.stop()
    open_engine(contract.url).maintain(time.time() + 3600)
    assert broadcast_queues(contract) == []


def broadcast_queues(contract: Any) -> list[str]:
    sizes = open_engine(contract.url).queue_sizes()
    return [name for name in sizes if name.startswith("bcast.")]
