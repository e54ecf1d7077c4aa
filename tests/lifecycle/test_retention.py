"""A queue file under a real worker: nothing of it grows for ever, and no beat runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from celery import Celery
from celery import group
from programs import Program
from waiting import wait_until

from celeriac.engines.base import Result
from celeriac.engines.sqlite import SQLiteEngine

#: A worker for which half a minute and a minute are half a second.
PROGRAM = """
import os
from celery import Celery
from celeriac.engines import space
from celeriac.worker import consumer

space.YOUNG = consumer.MAINTENANCE = 0.5
app = Celery("quick", broker=os.environ["URL"], backend=os.environ["URL"])

@app.task
def large(n):
    return "x" * 4000
"""

SOON = 30


@pytest.fixture
def start(worker: Callable[..., Program], tmp_path: Path) -> Callable[[str], Program]:
    """Start the worker on a queue file."""
    (tmp_path / "quick.py").write_text(PROGRAM)

    def start(url: str) -> Program:
        return worker(
            "-A", "quick", "-c", "1", "-l", "WARNING", wait=False, cwd=tmp_path, env={"URL": url}
        )

    return start


def megabytes(path: Path) -> float:
    return path.stat().st_size / 1e6


def size(engine: SQLiteEngine) -> int:
    used, free, page_size, _ = engine._rows("pages")[0]
    return int((used + free) * page_size)


def test_file_shrinks_when_its_results_have_expired(
    start: Callable[[str], Program], queue_url: str, queue_path: Path
) -> None:
    expired = time.time() - 1
    with closing(SQLiteEngine(queue_url)) as engine:
        rows = [Result(str(n), "SUCCESS", bytes(39_000), expired) for n in range(1000)]
        engine.store_results(rows)
    assert megabytes(queue_path) > 40

    start(queue_url)

    wait_until(lambda: megabytes(queue_path) < 17, SOON)


def test_file_stays_below_its_size_though_no_result_expires(
    start: Callable[[str], Program], queue_url: str
) -> None:
    url = f"{queue_url}&max_size=2MB"
    app = Celery("quick", broker=url, backend=url, set_as_current=False)
    calls = (app.signature("quick.large", args=(n,)) for n in range(700))
    result = group(calls).apply_async()
    with closing(SQLiteEngine(url)) as engine:
        program = start(url)

        wait_until(lambda: engine.queue_sizes()["celery"] == 0, SOON)
        wait_until(lambda: "reached its max_size of 2 MB" in program.log, SOON)
        # What is not cut off the file yet, and still in its log, counts as well.
        wait_until(lambda: size(engine) <= 2e6, SOON)
        last = engine.get_results([result.results[-1].id])
        assert [each.state for each in last.values()] == ["SUCCESS"]
    assert program.log.count("reached its max_size of 2 MB") == 1
