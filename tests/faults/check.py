"""The story of a run, held against what was promised.

The promises are those of ``docs/guarantees.rst``. Each function here is one of them and yields a
sentence for each time that it was broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from celeriac.engines.base import FINISHED
from faults.story import Run
from faults.story import Start
from faults.story import Story

#: Kinds whose tasks are all ``acks_late``.
LATE = frozenset(
    {"quick_late", "slow_late", "long_late", "later", "steps", "counted", "revoked", "kills"}
)
#: Kinds that fail, with the error that tells why; the sum of a chord with a member of it.
FAILING = {
    "fails": "ValueError",
    "exits": "WorkerLostError",
    "kills": "WorkerLostError",
    "soft": "SoftTimeLimitExceeded",
    "hard": "TimeLimitExceeded",
    "summed": "ChordError",
}
#: Kinds that may be called off, or expire.
CALLED_OFF = frozenset({"revoked", "terminated", "expiring"})
#: Kinds that fail with another task.
DEPENDENT = frozenset({"steps", "summed"})
#: After so many deaths a message is set aside.
DEATHS = 3
#: How long after a revocation a task may start that was being claimed meanwhile (seconds).
CLAIMED = 0.1
#: How long before a start the clock may have jumped, if it started at the wrong time (seconds):
#: what became due by a jump waits for its turn like all others.
JUMPED = 30.0


def nothing_is_lost(run: Run) -> Iterator[str]:
    """A confirmed task ends in a final state."""
    for task_id, story in run.stories.items():
        if story.confirmed and story.state not in FINISHED:
            yield f"{story.kind} {task_id} is {story.state}, started {len(story.starts)} times"


def early_tasks_start_once(run: Run) -> Iterator[str]:
    """A task that is not ``acks_late`` starts at most once, its retries apart."""
    for task_id, story in run.stories.items():
        tries = [start.retries for start in story.starts]
        if story.kind not in LATE and len(set(tries)) < len(tries):
            yield f"{story.kind} {task_id} started {len(tries)} times: {tries}"


def tasks_run_again_only_after_a_death(run: Run) -> Iterator[str]:
    """No task starts again while its process lives, or after its end was recorded."""
    for task_id, story in run.stories.items():
        for start, again in pairwise(sorted(story.starts)):
            if start.retries == again.retries and not run.may_have_died(start, again.at):
                yield (
                    f"{story.kind} {task_id} started in {start.pid} at {start.at:.3f}, and again "
                    f"in {again.pid} at {again.at:.3f}"
                )


def what_was_not_started_is_not_lost(run: Run) -> Iterator[str]:
    """Of a dead process's tasks only those count as lost that it started."""
    # One may be on its way into its function: it is started, and the journal knows nothing yet.
    unstarted = Counter(
        story.process
        for story in run.stories.values()
        if story.was_lost and not story.starts and story.kind not in LATE
    )
    for process, count in unstarted.items():
        if count > 1:
            yield f"{count} tasks are recorded as lost with process {process}, and never started"


def deaths_are_true(run: Run) -> Iterator[str]:
    """What is recorded as lost had its process die."""
    for task_id, story in run.stories.items():
        if story.was_lost and story.kind not in DEPENDENT:
            start = story.starts[-1] if story.starts else Start(0.0, story.process, 0)
            if not run.may_have_died(start, float("inf")):
                yield f"{story.kind} {task_id} is lost, and {start.pid} lived: {story.failure}"


def third_death_is_the_last(run: Run) -> Iterator[str]:
    """A message that killed its process three times is not run again."""
    for task_id, story in run.stories.items():
        if story.kind == "kills" and len(story.starts) > DEATHS:
            yield f"{story.kind} {task_id} killed {len(story.starts)} processes"


def success_is_true(run: Run) -> Iterator[str]:
    """What is recorded as a success was run to its end."""
    for task_id, story in run.stories.items():
        if story.state == "SUCCESS" and not story.ends:
            yield f"{story.kind} {task_id} is a SUCCESS and never ended"


def success_is_final(run: Run) -> Iterator[str]:
    """A result that callers saw does not change."""
    for task_id in run.changed:
        yield f"{run.stories[task_id].kind} {task_id} was a SUCCESS, and is another one now"


def late_tasks_end(run: Run) -> Iterator[str]:
    """A task that is ``acks_late`` fails only by its own error or by its third death."""
    for task_id, story in run.stories.items():
        if story.confirmed and story.kind in LATE and story.state == "FAILURE":
            if f"death no. {DEATHS}" not in story.failure:
                yield f"{story.kind} {task_id} is {story.state}: {story.failure}"


def failures_are_explained(run: Run) -> Iterator[str]:
    """A task fails with its own error, or with that of its worker, or of what it depends on."""
    for task_id, story in run.stories.items():
        expected = FAILING.get(story.kind, "WorkerLostError")
        allowed = (
            "WorkerLostError",
            "ChordError" if story.kind == "summed" else expected,
            expected,
        )
        if story.state == "FAILURE" and not story.failure.startswith(allowed):
            yield f"{story.kind} {task_id}: {story.failure}"
        if story.state == "REVOKED" and story.kind not in CALLED_OFF:
            yield f"{story.kind} {task_id} is REVOKED, and nobody called it off"


def limits_hold(run: Run) -> Iterator[str]:
    """A task that exceeds its time limit is ended."""
    for task_id, story in run.stories.items():
        if story.kind in ("soft", "hard") and story.ends:
            yield f"{story.kind} {task_id} came to its end"


def arguments_are_kept(run: Run) -> Iterator[str]:
    """The result of a task that was lost tells its arguments."""
    for task_id, story in run.stories.items():
        expected = story.starts[0].args if story.starts else story.args or "some"
        if story.was_lost and story.kind not in DEPENDENT and story.args != expected:
            yield f"{story.kind} {task_id} has the arguments {story.args or 'none'}: not {expected}"


def tasks_start_at_their_time(run: Run) -> Iterator[str]:
    """No task starts before it is due, or after it expired."""
    for task_id, story in run.stories.items():
        for at, how in story.untimely:
            if not any(0 <= at - jump < JUMPED for jump in run.jumps):
                yield f"{story.kind} {task_id} started too {how}"


def what_is_called_off_does_not_start(run: Run) -> Iterator[str]:
    """No task starts after it was revoked, and one that did not is ``REVOKED``."""
    for task_id, story in run.stories.items():
        if story.revoked is None:
            continue
        if any(start.at > story.revoked + CLAIMED for start in story.starts):
            yield f"{story.kind} {task_id} started after it was revoked"
        if not story.starts and not _is_gone(story):
            yield f"{story.kind} {task_id} was revoked, and is {story.state}"


def refused_means_refused(run: Run) -> Iterator[str]:
    """A call that raised enqueued nothing."""
    for task_id, story in run.stories.items():
        if story.refused and story.starts:
            yield f"{story.kind} {task_id} was refused, and ran"


def nothing_is_left(run: Run) -> Iterator[str]:
    """When all is done the queues are empty, and the file is whole."""
    if run.left:
        yield f"{len(run.left)} messages are left, the first is {run.left[0]}"
    if run.integrity != "ok":
        yield run.integrity


def _is_gone(story: Story) -> bool:
    # It may have died on its way into its function, with its process.
    return story.state == "REVOKED" or story.was_lost


Promise = Callable[[Run], Iterator[str]]

#: What needs no knowledge of who died when.
OF_TASKS: tuple[Promise, ...] = (
    nothing_is_lost,
    arguments_are_kept,
    early_tasks_start_once,
    third_death_is_the_last,
    late_tasks_end,
    success_is_true,
    success_is_final,
    failures_are_explained,
    limits_hold,
    tasks_start_at_their_time,
    what_is_called_off_does_not_start,
    refused_means_refused,
    nothing_is_left,
)
PROMISES: tuple[Promise, ...] = (
    *OF_TASKS,
    what_was_not_started_is_not_lost,
    deaths_are_true,
    tasks_run_again_only_after_a_death,
)


class Recovery(NamedTuple):
    """A task whose process died under it, until it ran again or was recorded as lost."""

    cause: str
    #: Seconds.
    took: float
    #: Whether another fault stood in the way meanwhile.
    obstructed: bool


def recoveries(run: Run) -> Iterator[Recovery]:
    """Yield how long it took with each task that was running when its process died."""
    for story in run.stories.values():
        for start in story.starts:
            death = run.death(start)
            if death is None or story.finish(start) is not None:
                continue
            heard = [*(other.at for other in story.starts if other != start), *story.failed]
            if after := [at for at in heard if at > death.at]:
                again = min(after)
                obstructed = any(at < again and until > death.at for at, until in run.obstacles)
                yield Recovery(death.cause, again - death.at, obstructed)


def repeated(run: Run) -> int:
    """Return how many ``acks_late`` tasks ran again, those apart that end their process."""
    stories = run.stories.values()
    return sum(s.kind in LATE and s.kind != "kills" and len(s.starts) > 1 for s in stories)
