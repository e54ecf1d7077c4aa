"""The table of a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterator

from faults.check import LATE
from faults.check import OF_TASKS
from faults.report import quantile
from faults.report import show
from faults.report import verdict

from stops.run import Stops


def each_stop_is_clean(done: Stops) -> Iterator[str]:
    """A worker exits in time, alone, and leaves neither claims nor files; nothing counts as a
    death."""
    for stop in done.stops:
        yield from stop.broken


def late_tasks_succeed(done: Stops) -> Iterator[str]:
    """A task that is ``acks_late`` succeeds, however often its worker was stopped."""
    for task_id, story in done.run.stories.items():
        if story.confirmed and story.kind in LATE and story.state != "SUCCESS":
            yield f"{story.kind} {task_id} is {story.state}: {story.failure}"


def early_tasks_are_lost_by_stops_alone(done: Stops) -> Iterator[str]:
    """A task that was lost says that its worker was stopped, and that it would run again."""
    for task_id, story in done.run.stories.items():
        if story.was_lost and "acks_late" not in story.failure:
            yield f"{story.kind} {task_id}: {story.failure}"


STOPPING: tuple[Callable[[Stops], Iterator[str]], ...] = (
    each_stop_is_clean,
    late_tasks_succeed,
    early_tasks_are_lost_by_stops_alone,
)


def broken(done: Stops) -> dict[str, list[str]]:
    """Return, by the name of each promise, how it was broken."""
    found = {promise.__name__: [*promise(done)] for promise in STOPPING}
    return {**found, **{promise.__name__: [*promise(done.run)] for promise in OF_TASKS}}


def report(done: Stops, options: argparse.Namespace) -> int:
    """Print what happened; return how many promises were broken."""
    stories = done.run.stories.values()
    took = sorted(stop.seconds for stop in done.stops)
    late = [story for story in stories if story.kind in LATE]
    figures = (quantile(took, 0.5), quantile(took, 0.99), max(took, default=0.0))
    verdicts = broken(done)
    show(
        {
            "seed": options.seed,
            "grace period, s": f"{options.grace:g}",
            "stops": len(done.stops),
            "tasks confirmed": f"{done.run.tasks:,}",
            "signal to exit, s, p50 / p99 / max": " / ".join(f"{each:.2f}" for each in figures),
            "acks_late tasks handed back": sum(max(0, len(each.starts) - 1) for each in late),
            "… that ended twice": sum(len(each.ends) > 1 for each in late),
            "other tasks lost aloud": sum(story.was_lost for story in stories),
            "broken promises": sum(map(len, verdicts.values())),
        }
    )
    return sum(verdict(name, cases) for name, cases in verdicts.items())
