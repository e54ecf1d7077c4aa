"""Nobody is locked out of the queue file; ``make contention`` does it for long."""

from __future__ import annotations

from pathlib import Path

import pytest
from contention.run import run


@pytest.mark.timeout(240)
def test_no_lock_error_with_many_producers_and_workers(tmp_path: Path) -> None:
    found = run(tmp_path, producers=3, workers=3, seconds=2)

    assert found.trouble == []
    assert found.unfinished == 0
    assert len(found.delays) > 100
