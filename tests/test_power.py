"""What was confirmed outlives a cut of the power; ``make power`` does it more often."""

from __future__ import annotations

import os
import random
import secrets
import shutil
from pathlib import Path

import pytest
from power.check import check
from power.check import Finding
from power.recording import record
from power.replay import cuts

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        shutil.which("gcc") is None and not os.environ.get("CI"),
        reason="gcc is not installed: it compiles what records the writes",
    ),
]


def findings(folder: Path, durability: str) -> list[Finding]:
    seed = secrets.randbelow(10**6)
    print(f"again: make power POWER='--seed {seed} --durability {durability}'")
    operations = record(folder, 1.5, durability)
    made = cuts(operations, 25, random.Random(seed))
    return [check(cut, folder / "after", durability) for cut in made]


def test_nothing_confirmed_is_missing_after_a_cut(tmp_path: Path) -> None:
    found = findings(tmp_path, "full")

    assert {each.integrity for each in found} == {"ok"}
    assert sum(len(each.missing) for each in found) == 0
    assert sum(each.unseen for each in found) == 0
    assert found[-1].confirmed > 50
    assert found[-1].seen > 5


def test_last_moments_may_be_missing_with_normal_durability(tmp_path: Path) -> None:
    """Also shows that the simulation takes away what no sync covered."""
    found = findings(tmp_path, "normal")

    assert {each.integrity for each in found} == {"ok"}
    assert sum(len(each.missing) for each in found) > 0
