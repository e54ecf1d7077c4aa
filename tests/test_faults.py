"""Every promise holds while workers and producers are killed; ``make faults`` does it for long."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import check
from faults.arena import Plan
from faults.check import PROMISES
from faults.check import recoveries
from faults.check import Recovery
from faults.disturb import FIRST
from faults.run import run
from faults.story import Death
from faults.story import Run
from faults.story import Start
from faults.story import Story

SECONDS = 3


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a run tells its programs by variables."""
    for name in ("FAULTS_FOLDER", "FAULTS_URL"):
        monkeypatch.setenv(name, "")
    yield


@pytest.mark.timeout(240)
def test_promises_hold_under_faults(tmp_path: Path, environment: None) -> None:
    plan = Plan(secrets.randbelow(10**6), SECONDS, pause=0.2, durability="normal")
    print(f"again: make faults FAULTS='--seed {plan.seed} --minutes {SECONDS / 60:g} --pause 0.2'")

    done = run(tmp_path, plan, may_mount=False)

    assert [case for promise in PROMISES for case in promise(done)] == []
    assert {fault.__name__ for fault in FIRST} <= done.faults.keys()
    assert done.killed.total() > 3
    assert done.tasks > 100


# The checker itself

BEGAN, ENDED = Start(1.0, 1, 0, "[5]"), Start(2.0, 1, 0)
#: In another process.
AGAIN = Start(3.0, 2, 0, "[5]")
KILLED, TOLD = Death(1.5, 1.5, "kill_child"), Death(1.5, 1.5, "SIGQUIT")
LOST = "WorkerLostError: Worker exited prematurely: process 1 of w0@faults, signal 9."


def forged(deaths: dict[int, list[Death]] | None = None, **fields: object) -> Run:
    """Return a run with one task, of which something is told otherwise."""
    story = Story(kind="quick_late", confirmed=True, state="SUCCESS", starts=[BEGAN], ends=[ENDED])
    for name, value in fields.items():
        setattr(story, name, value)
    done = Run()
    done.stories["id"] = story
    done.deaths.update(deaths or {})
    return done


def lost(deaths: dict[int, list[Death]] | None = None, **fields: object) -> Run:
    """Return a run with one task that is lost with its worker, as told otherwise."""
    told = {"kind": "quick_early", "state": "FAILURE", "failure": LOST, "ends": [], "args": "[5]"}
    return forged({1: [KILLED]} if deaths is None else deaths, **{**told, **fields})


def lost_twice() -> Run:
    """Return a run with two tasks that count as lost with one process, and never started."""
    done = lost(starts=[])
    done.stories["other"] = done.stories["id"]
    return done


@pytest.mark.parametrize(
    "run",
    [
        forged(),
        lost(),
        lost(starts=[]),
        forged({1: [KILLED]}, starts=[BEGAN, AGAIN]),
        forged({9: [TOLD]}, starts=[BEGAN, AGAIN]),
        forged(kind="revoked", revoked=0.95),
        forged(kind="later", untimely=[(1.0, "early")]),
    ],
)
def test_true_story_breaks_no_promise(run: Run) -> None:
    run.parents[1] = 9
    run.jumps = [0.5]

    assert [case for promise in PROMISES for case in promise(run)] == []


@pytest.mark.parametrize(
    ("promise", "run"),
    [
        (check.nothing_is_lost, forged(state="STARTED")),
        (check.what_was_not_started_is_not_lost, lost_twice()),
        (check.deaths_are_true, lost({})),
        (check.deaths_are_true, lost({1: [Death(0.5, 0.5, "kill_child")]})),
        (check.arguments_are_kept, lost(args="")),
        (check.arguments_are_kept, lost(args="[6]")),
        (check.early_tasks_start_once, forged(kind="quick_early", starts=[BEGAN, AGAIN])),
        (check.tasks_run_again_only_after_a_death, forged(starts=[BEGAN, AGAIN])),
        (
            check.tasks_run_again_only_after_a_death,
            forged({1: [Death(3.5, 3.5, "kill_child")]}, starts=[BEGAN, AGAIN]),
        ),
        (check.third_death_is_the_last, forged(kind="kills", starts=[BEGAN] * 4)),
        (check.late_tasks_end, forged(state="FAILURE", failure="WorkerLostError: death no. 2")),
        (check.success_is_true, forged(ends=[])),
        (check.success_is_final, Run(changed=["id"])),
        (check.failures_are_explained, forged(state="FAILURE", failure="KeyError: 'x'")),
        (check.failures_are_explained, forged(state="REVOKED")),
        (check.limits_hold, forged(kind="hard")),
        (check.tasks_start_at_their_time, forged(untimely=[(1.0, "early")])),
        (check.what_is_called_off_does_not_start, forged(kind="revoked", revoked=0.5)),
        (check.what_is_called_off_does_not_start, forged(kind="revoked", revoked=0.5, starts=[])),
        (check.refused_means_refused, forged(refused=True)),
        (check.nothing_is_left, Run(left=["a message"])),
        (check.nothing_is_left, Run(integrity="row 3 missing from index")),
    ],
)
def test_broken_promise_is_seen(promise: object, run: Run) -> None:
    assert callable(promise)
    assert len(list(promise(run))) == 1


def test_recovery_is_measured_until_task_runs_again_or_fails() -> None:
    again = forged({1: [KILLED]}, starts=[BEGAN, AGAIN], ends=[])
    failed = lost(failed=[1.75])
    failed.obstacles = [(1.6, 1.7)]

    assert [*recoveries(again)] == [Recovery("kill_child", 1.5, False)]
    assert [*recoveries(failed)] == [Recovery("kill_child", 0.25, True)]
