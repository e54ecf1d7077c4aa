"""The table of a run, and what makes one."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from itertools import islice

from faults.arena import Plan
from faults.check import nothing_is_lost
from faults.check import PROMISES
from faults.check import recoveries
from faults.check import repeated
from faults.story import ITSELF
from faults.story import Run

#: Of each broken promise so many cases are printed.
SHOWN = 10
#: Who died, for those who read the table, and by which faults.
DEATHS = {
    "a child killed": ("kill_child", "kill_children", "kill_starting_child"),
    "a child ended by its own task": (ITSELF,),
    "a parent killed": ("kill_parent", "kill_while_ending"),
    "a worker killed whole": ("kill_worker",),
    "all workers killed at once": ("kill_all_workers",),
}

OBSTRUCTED = "a death while file, disk or a process stood still"


def report(run: Run, plan: Plan, *, markdown: bool) -> int:
    """Print what happened; return how many promises were broken."""
    broken = {promise.__name__: [*promise(run)] for promise in PROMISES}
    count = sum(map(len, broken.values()))
    show(_what_happened(run, plan, count), markdown=markdown)
    for name, cases in broken.items():
        verdict(name, cases)
    return count


def show(rows: Mapping[str, object], *, markdown: bool = False) -> None:
    """Print the rows of a table."""
    if markdown:
        print("| | |\n| --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value} |" if markdown else f"{name:48} {value}")
    print()


def verdict(name: str, broken: Sequence[str]) -> int:
    """Print whether a promise held; return how often it was broken."""
    print(f"{name.replace('_', ' '):48} {'broken: ' + str(len(broken)) if broken else 'held'}")
    for case in islice(broken, SHOWN):
        print(f"    {case}")
    return len(broken)


def _what_happened(run: Run, plan: Plan, broken: int) -> dict[str, object]:
    lost = [story for story in run.stories.values() if story.was_lost]
    again = repeated(run)
    return {
        "seed, minutes, durability": f"{plan.seed}, {plan.seconds / 60:g}, {plan.durability}",
        "faults": f"{run.faults.total():,}, of {len(run.faults)} kinds",
        **({"left out here": "; ".join(run.impossible)} if run.impossible else {}),
        "processes killed": _kills(run),
        "workers told to end": f"{run.events['signalled']:,}",
        "tasks confirmed": f"{run.tasks:,}",
        "tasks lost": len([*nothing_is_lost(run)]),
        "promises broken": broken,
        "calls refused": f"{run.events['refused']:,}",
        "acks_late tasks that ran again": f"{again:,} ({again / max(1, run.tasks):.2%})",
        "tasks recorded as lost with their worker": f"{len(lost):,}",
        "… that had just ended": f"{sum(bool(story.ends) for story in lost):,}",
        **_recovery(run),
    }


def _kills(run: Run) -> str:
    each = ", ".join(f"{count:,} {what}" for what, count in run.killed.most_common())
    return f"{run.killed.total():,}: {each}"


def _recovery(run: Run) -> dict[str, object]:
    found = [*recoveries(run)]
    times = {
        name: sorted(each.took for each in found if each.cause in causes and not each.obstructed)
        for name, causes in DEATHS.items()
    }
    times[OBSTRUCTED] = sorted(each.took for each in found if each.obstructed)
    return {f"recovery after {name}": _spread(each) for name, each in times.items() if each}


def _spread(times: Sequence[float]) -> str:
    p50, p99 = quantile(times, 0.5), quantile(times, 0.99)
    return f"p50 {p50:.2f} s, p99 {p99:.2f} s, max {times[-1]:.2f} s ({len(times):,} tasks)"


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which this part of all lies; they are sorted."""
    return values[min(len(values) - 1, int(part * len(values)))] if values else 0.0
