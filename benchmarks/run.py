"""All that one run of the benchmark found, and the file that keeps it."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

from benchmarks.stage import Figures


@dataclass(frozen=True)
class Trial:
    """One workload of one contender in one round."""

    contender: str
    workload: str
    round: int
    figures: Figures


@dataclass
class Run:
    """What was measured, when, where, and what could not be."""

    command: str
    began: str
    machine: Mapping[str, str]
    trials: list[Trial] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    #: Contenders that were left out, and why.
    left_out: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(self.json() + "\n")

    def json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def load(cls, path: Path) -> Run:
        """Return what :meth:`save` wrote."""
        content: dict[str, Any] = json.loads(path.read_text())
        trials = [Trial(**trial) for trial in content.pop("trials")]
        return cls(trials=trials, **content)

    def values(self, contender: str, figure: str) -> list[float]:
        """Return what the rounds found, of one figure of one contender."""
        return list(self.by_round(contender, figure).values())

    def by_round(self, contender: str, figure: str) -> dict[int, float]:
        """Return what each round found."""
        return {
            trial.round: trial.figures[figure]
            for trial in self.trials
            if trial.contender == contender and figure in trial.figures
        }

    def median(self, contender: str, figure: str) -> float | None:
        """Return the middle of what the rounds found, if they found anything."""
        values = self.values(contender, figure)
        return statistics.median(values) if values else None


def number(value: float | None) -> str:
    """Return three digits' worth, as more would be noise; all digits of what was counted."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    if value < 10:
        return f"{value:.1f}"
    return f"{round(value, 3 - len(str(int(value)))):,.0f}"


def summary(values: Sequence[float]) -> str:
    """Return the median, and the least and the greatest if there are several."""
    if not values:
        return "–"
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))}–{number(max(values))})"
