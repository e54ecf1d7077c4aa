"""Nothing is lost when workers are stopped under load; ``make stops`` does it fifty times."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.story import Run
from faults.story import Story
from stops.report import broken
from stops.run import run
from stops.run import Stop
from stops.run import Stops


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a run tells its programs by variables."""
    for name in ("FAULTS_FOLDER", "FAULTS_URL"):
        monkeypatch.setenv(name, "")
    yield


@pytest.mark.timeout(240)
def test_promises_hold_when_workers_are_stopped(tmp_path: Path, environment: None) -> None:
    seed = secrets.randbelow(10**6)
    print(f"again: make stops STOPS='--seed {seed} --stops 2 --grace 0.5'")

    # Two seconds are promised; the rest is for a busy machine.
    done = run(tmp_path, stops=2, seed=seed, grace=0.5, margin=6.0)

    assert {name: cases for name, cases in broken(done).items() if cases} == {}
    assert len(done.stops) == 2
    assert done.run.tasks > 50


# The checker itself


def story(**fields: object) -> Stops:
    told = Story(kind="long_late", confirmed=True, state="SUCCESS")
    for name, value in fields.items():
        setattr(told, name, value)
    return Stops(run=Run(stories={"id": told}))


@pytest.mark.parametrize(
    ("promise", "done"),
    [
        ("each_stop_is_clean", Stops([Stop(3.0, ["s1 left 2 claims"])])),
        ("late_tasks_succeed", story(state="FAILURE", failure="WorkerLostError: …")),
        (
            "early_tasks_are_lost_by_stops_alone",
            story(kind="long_early", state="FAILURE", failure="WorkerLostError: signal 9"),
        ),
    ],
)
def test_broken_promise_is_seen(promise: str, done: Stops) -> None:
    assert len(broken(done)[promise]) == 1
