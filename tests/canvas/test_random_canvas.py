"""Random canvases with random failures: nothing waits for what can not come.

A thousand of them: ``python -m tests.canvas --count 1000 --seed 1``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from canvas.checking import Ground
from canvas.checking import repro
from canvas.plans import DEATHS
from canvas.plans import Generator
from canvas.plans import WAYS
from leaks import LASTING


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Return a queue with a worker."""
    made = Ground(tmp_path_factory.mktemp("canvas"))
    worker = made.start()
    LASTING.add(worker.pid)
    try:
        yield made
    finally:
        worker.stop()
        LASTING.discard(worker.pid)
        made.close()


@pytest.mark.parametrize(
    ("seed", "count", "ways"),
    [
        ("1", 60, WAYS),
        ("2", 20, WAYS | DEATHS),
        ("3", 60, WAYS),
    ],
    ids=["some", "with deaths", "others"],
)
def test_everything_ends(ground: Ground, seed: str, count: int, ways: dict[str, int]) -> None:
    ground.with_deaths = ways is not WAYS
    plans = [(f"{seed}:{n}", Generator(f"{seed}:{n}", ways).plan()) for n in range(count)]

    reports = ground.run(plans)

    wrong = [repro(report) for report in reports if report.complaints]
    assert not wrong, "\n".join(wrong)
    assert ground.leftovers() == []
