"""The fixtures that start servers and workers do so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from programs import Program
from waiting import wait_until

STOCK = """
from celery import Celery

celery = Celery("stock", broker={url!r}, backend={url!r})
"""


def test_worker_is_ready_when_it_is_handed_over(
    worker: Callable[..., Program], redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "stock.py").write_text(STOCK.format(url=redis_url))

    started = worker("-A", "stock", "-c", "1", cwd=tmp_path)

    assert len(started.children()) == 1
    assert started.stop() == 0


def test_a_program_that_ends_early_shows_its_log(program: Callable[..., Program]) -> None:
    started = program("sh", "-c", "echo no luck; exit 3")

    with pytest.raises(AssertionError, match="ended with 3 before it wrote 'ready':\nno luck"):
        started.wait_for_log("ready")


def test_waiting_in_vain_says_for_what() -> None:
    with pytest.raises(AssertionError, match=r"waited 0\.01 s in vain for a miracle"):
        wait_until(lambda: False, 0.01, message="a miracle")
