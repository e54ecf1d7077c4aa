"""The table of a run, and what makes one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
from itertools import islice

from faults.check import LATE
from faults.check import PROMISES
from faults.check import recoveries
from faults.check import Run

#: Of each broken promise so many cases are printed.
SHOWN = 10


def report(run: Run, options: argparse.Namespace) -> int:
    """Print what happened; return how many promises were broken."""
    again = sum(story.kind in LATE and len(story.starts) > 1 for story in run.stories.values())
    lost = [story for story in run.stories.values() if story.was_lost]
    took = recoveries(run)
    rows = {
        "seed": options.seed,
        "durability": options.durability,
        "tasks confirmed": f"{run.tasks:,}",
        "processes killed": f"{run.events['killed']:,}",
        "workers told to end": run.events["signalled"],
        "calls refused": run.events["refused"],
        "acks_late tasks that ran again": f"{again:,}",
        "tasks recorded as lost with their worker": f"{len(lost):,}",
        "… that had just ended": sum(bool(story.ends) for story in lost),
        "recovery, s, p50 / p99": f"{quantile(took, 0.5):.2f} / {quantile(took, 0.99):.2f}",
    }
    show(rows)
    return sum(verdict(promise.__name__, [*promise(run)]) for promise in PROMISES)


def show(rows: Mapping[str, object]) -> None:
    """Print the rows of a table."""
    for name, value in rows.items():
        print(f"{name:42} {value}")
    print()


def verdict(name: str, broken: Sequence[str]) -> int:
    """Print whether a promise held; return how often it was broken."""
    print(f"{name.replace('_', ' '):42} {'broken: ' + str(len(broken)) if broken else 'held'}")
    for case in islice(broken, SHOWN):
        print(f"    {case}")
    return len(broken)


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which this part of the sorted values lies."""
    return values[min(len(values) - 1, int(part * len(values)))] if values else 0.0
