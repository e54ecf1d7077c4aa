"""Every promise holds while workers and producers are killed; ``make faults`` does it for long."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import check
from faults.check import PROMISES
from faults.check import Run
from faults.check import Story
from faults.journal import Event
from faults.run import run

SECONDS = 8


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a run tells its programs by variables."""
    for name in ("FAULTS_FOLDER", "FAULTS_URL"):
        monkeypatch.setenv(name, "")
    yield


@pytest.mark.timeout(240)
def test_promises_hold_under_faults(tmp_path: Path, environment: None) -> None:
    seed = secrets.randbelow(10**6)
    print(f"again: make faults FAULTS='--seed {seed} --minutes {SECONDS / 60:g} --pause 0.4'")

    done = run(tmp_path, seed=seed, seconds=SECONDS, pause=0.4, durability="normal")

    assert [case for promise in PROMISES for case in promise(done)] == []
    assert done.events["killed"] > 3
    assert done.tasks > 100


# The checker itself


def event(what: str = "start", pid: int = 1) -> Event:
    return Event(0.0, pid, what, ())


def forged(**fields: object) -> Run:
    """Return a run with one task, of which something is untrue."""
    story = Story(kind="quick_late", confirmed=True, state="SUCCESS")
    story.starts.append((event(), 0))
    story.ends.append((event("end"), 0))
    for name, value in fields.items():
        setattr(story, name, value)
    return Run(stories={"id": story})


def test_true_story_breaks_no_promise() -> None:
    assert [case for promise in PROMISES for case in promise(forged())] == []


@pytest.mark.parametrize(
    ("promise", "run"),
    [
        (check.nothing_is_lost, forged(state="STARTED")),
        (
            check.early_tasks_start_once,
            forged(kind="quick_early", starts=[(event(), 0), (event(pid=2), 0)]),
        ),
        (check.success_is_true, forged(ends=[])),
        (check.late_tasks_end, forged(state="FAILURE", failure="WorkerLostError: death no. 2")),
        (check.failures_are_explained, forged(state="FAILURE", failure="KeyError: 'x'")),
        (check.refused_means_refused, forged(refused=True)),
        (check.nothing_is_left, Run(left=["a message"])),
        (check.nothing_is_left, Run(integrity="row 3 missing from index")),
    ],
)
def test_broken_promise_is_seen(promise: object, run: Run) -> None:
    assert callable(promise)
    assert len(list(promise(run))) == 1
