"""Set aside, not gone: what ends badly for a reason that somebody may mend."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kombu
import pytest
from billiard.exceptions import WorkerLostError
from celery import Celery
from celery import chain
from celery import group
from celery.exceptions import Reject
from contracts import Contract
from programs import Program
from waiting import wait_until

from celeriac.aside import incident
from celeriac.aside import Reason
from celeriac.aside import set_aside
from celeriac.dead import DeadLetter
from celeriac.dead import DeadLetters
from celeriac.engines import Engine
from celeriac.engines.base import Action
from celeriac.engines.base import Outcome
from celeriac.engines.base import Result
from celeriac.engines.base import Worker

SOON = 10
Start = Callable[..., Program]


@pytest.fixture
def letters(tasks: Any) -> DeadLetters:
    found: DeadLetters = tasks.celery.dead_letters
    return found


def when_dead(letters: DeadLetters, task_id: str) -> DeadLetter:
    """Wait until a task is set aside."""
    return wait_until(lambda: letters.get(task_id), SOON)


def by_name(tasks: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Send a task as another program does, that knows nothing of its signature."""
    return tasks.celery.send_task(f"contract_program.{name}", args, kwargs)


def unreadable(tasks: Any) -> str:
    with tasks.celery.connection_for_write() as connection:
        kombu.Producer(connection.channel()).publish(
            "[[1, 2], ",
            routing_key="celery",
            headers={"task": "contract_program.add", "id": "unreadable"},
            content_type="application/json",
            content_encoding="utf-8",
        )
    return "unreadable"


def test_what_somebody_may_mend_is_set_aside(
    tasks: Any, contract: Contract, start: Start, letters: DeadLetters
) -> None:
    worker = start("-c", "1")

    killing = when_dead(letters, tasks.late_killing.delay().id)
    lost = when_dead(letters, tasks.needing.delay("absent").id)
    misfit = when_dead(letters, by_name(tasks, "add", 1, 2, 3).id)
    rejected = when_dead(letters, tasks.rejecting.delay(requeue=False).id)
    nonsense = when_dead(letters, unreadable(tasks))

    assert [letter.id for letter in letters.list()] == [
        each.id for each in (killing, lost, misfit, rejected, nonsense)
    ]
    assert [(each.reason, each.deaths) for each in letters.list()] == [
        ("deaths", 3),
        ("lost", 1),
        ("signature", 0),
        ("rejected", 0),
        ("unreadable", 0),
    ]
    assert [run["ended"] for run in killing.report] == ["signal 9 (SIGKILL)"] * 3
    assert len({run["pid"] for run in killing.report}) == 3
    assert {run["worker"] for run in killing.report} == {"worker@contract"}
    assert "It was its death no. 3." in killing.error
    assert (lost.args, lost.kwargs) == (["absent"], {})
    assert misfit.error == "TypeError: add() takes 2 positional arguments but 3 were given"
    assert rejected.error == "Reject: not now"
    assert (
        "def rejecting" not in rejected.error and "in rejecting" in rejected.report[0]["traceback"]
    )
    assert (nonsense.args, nonsense.kwargs) == (None, None)
    assert (
        f"Task contract_program.add[{misfit.id}] is set aside, because the call does not fit the "
        "task (TypeError: add() takes 2 positional arguments but 3 were given). Look at it with: "
        f"celery -A contract_program.celery dead show {misfit.id}"
    ) in worker.log
    result = tasks.celery.AsyncResult(misfit.id)
    with pytest.raises(TypeError, match=r"^add\(\) takes 2 positional arguments but 3 were given$"):
        result.get(timeout=SOON)
    assert result.explain() == (
        f"Task contract_program.add[{misfit.id}] was set aside at "
        f"{misfit.died_at:%Y-%m-%d %H:%M:%S} UTC, because the call does not fit the task "
        "(TypeError: add() takes 2 positional arguments but 3 were given). Run it again with: "
        f"celery -A contract_program.celery dead retry {misfit.id}"
    )
    with pytest.raises(Reject):
        tasks.celery.AsyncResult(rejected.id).get(timeout=SOON)


def test_what_is_no_accident_of_the_message_is_not_set_aside(
    tasks: Any, start: Start, letters: DeadLetters
) -> None:
    from billiard.exceptions import TimeLimitExceeded

    start("-c", "1")

    with pytest.raises(ValueError):
        tasks.fail.delay().get(timeout=SOON)
    with pytest.raises(TypeError):
        tasks.add.delay(1, None).get(timeout=SOON)
    with pytest.raises(TimeLimitExceeded):
        tasks.hard.delay().get(timeout=SOON)
    tasks.ignoring.delay()
    expired = tasks.add.apply_async((1, 1), expires=-1)
    wait_until(lambda: expired.state == "REVOKED", SOON)

    assert tasks.add.delay(1, 1).get(timeout=SOON) == 2
    assert letters.list() == []


def test_dead_letter_that_is_retried_runs_under_its_id(
    tasks: Any, contract: Contract, start: Start, letters: DeadLetters
) -> None:
    start("-c", "1")
    key = contract.new_key()
    last = chain(tasks.needing.s(key), tasks.kind.s()).delay()
    result = last.parent
    with pytest.raises(WorkerLostError):
        last.get(timeout=SOON)
    when_dead(letters, result.id)

    contract.let_go(key)
    assert letters.retry(result.id) == 1

    # Those that have seen the failure keep it; whoever asks anew waits.
    assert tasks.celery.AsyncResult(last.id).get(timeout=SOON) == "str"
    assert tasks.celery.AsyncResult(result.id).get(timeout=SOON) == key
    assert letters.list() == []
    assert letters.retry(result.id) == 0


def test_calls_that_do_not_fit_are_neither_run_nor_retried(
    tasks: Any, contract: Contract, start: Start, letters: DeadLetters
) -> None:
    start("-c", "1")
    key = contract.new_key()

    sent = [
        by_name(tasks, "persistent", key=key),
        by_name(tasks, "persistent", 1, 2, key=key),
        by_name(tasks, "ignored"),
    ]
    complaints = [when_dead(letters, each.id).error for each in sent]
    untyped = by_name(tasks, "untyped", 1, 2)
    with pytest.raises(TypeError):
        untyped.get(timeout=SOON)

    assert complaints == [
        "TypeError: persistent() missing 1 required positional argument: 'x'",
        "TypeError: persistent() takes 2 positional arguments but 3 positional arguments "
        "(and 1 keyword-only argument) were given",
        "TypeError: ignored() missing 1 required positional argument: 'key'",
    ]
    assert not contract.journal("persistent", key)
    assert tasks.celery.AsyncResult(sent[2].id).state == "PENDING"
    assert letters.get(untyped.id) is None
    assert tasks.echo.delay(1, 2, three=3).get(timeout=SOON) == [[1, 2], {"three": 3}]


def test_calls_that_come_to_fit_are_run(tasks: Any, start: Start, letters: DeadLetters) -> None:
    start("-c", "1")

    sent = [
        by_name(tasks, "doubled", 2, early=True),
        by_name(tasks, "doubled", 2, late=True),
        by_name(tasks, "derived", 2, 3),
        by_name(tasks, "positional", 2, x=3),
    ]
    misfit = by_name(tasks, "doubled", 2, never=True)

    assert [each.get(timeout=SOON) for each in sent] == [4, 4, 5, [2, {"x": 3}]]
    assert when_dead(letters, misfit.id).error == (
        "TypeError: doubled() got an unexpected keyword argument 'never'"
    )
    assert len(letters.list()) == 1


def test_task_of_a_worker_that_died_whole_is_set_aside(
    tasks: Any, contract: Contract, start: Start, letters: DeadLetters
) -> None:
    doomed = start("-c", "1", name="doomed")
    key = contract.new_key()
    result = tasks.waiting.delay(key)
    contract.wait_for("waiting", key)

    os.killpg(doomed.pid, signal.SIGKILL)
    doomed.process.wait()
    start("-c", "1", name="heir")

    letter = when_dead(letters, result.id)
    assert (letter.reason, letter.deaths) == ("lost", 1)
    assert letter.report[0]["worker"] == "doomed@contract"
    assert letter.report[0]["ended"] == "its worker died"


def test_a_thousand_are_run_again_within_seconds(
    tasks: Any, start: Start, letters: DeadLetters, engine: Engine
) -> None:
    ids = [each.id for each in group(tasks.add.s(i, i) for i in range(1000)).delay()]
    bury(engine)
    assert states(engine, ids) == {"FAILURE": 1000}
    start("-c", "2")

    began = time.monotonic()
    assert letters.retry() == 1000
    wait_until(lambda: states(engine, ids) == {"SUCCESS": 1000}, 30, interval=0.05)
    took = time.monotonic() - began

    assert letters.list() == []
    # What a machine with nothing else to do takes at most; it takes 1.5 s with two processors.
    assert took < 5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def bury(engine: Engine) -> None:
    """Set all that waits aside, as a worker does."""
    engine.register(Worker("gravedigger", "gravedigger@host", os.getpid(), ["celery"], []))
    aside = set_aside(Reason.LOST, "WorkerLostError: gone", incident("gravedigger@host", 1, "gone"))
    engine.complete(
        [
            Outcome(each, Action.SET_ASIDE, [Result(each.task_id, "FAILURE", b"{}")], aside=aside)
            for each in engine.claim(["celery"], 1000, worker="gravedigger")
        ]
    )
    engine.deregister("gravedigger")


def states(engine: Engine, task_ids: list[str]) -> Counter[str]:
    """Count the stored results of these tasks by their states."""
    return Counter(each.state for each in engine.get_results(task_ids).values())


#: Two versions of a program. The new one has a task more and one less, and another signature.
OLD = """\
from flask import Flask
from celeriac import make_celery

flask_app = Flask("shop", instance_path={folder!r})
flask_app.config["CELERY"] = {{"broker_url": {url!r}}}
celery = make_celery(flask_app)

@celery.task(name="shop.leaving")
def leaving():
    return "old"

@celery.task(name="shop.resize", autoretry_for=(Exception,), default_retry_delay=0)
def resize(path):
    return "old"
"""
NEW = OLD.replace('"old"', '"new"').replace("leaving", "coming").replace("(path)", "(path, width)")


def test_old_and_new_code_work_side_by_side(
    worker: Callable[..., Program], tmp_path: Path, queue_url: str
) -> None:
    for name, text in (("old", OLD), ("new", NEW)):
        code = text.format(folder=str(tmp_path / "instance"), url=queue_url)
        (tmp_path / f"{name}.py").write_text(code)
    old = worker("-A", "old.celery", "-n", "old@host", "-c", "1")
    worker("-A", "new.celery", "-n", "new@host", "-c", "1")
    app = Celery("shop", broker=queue_url, backend=queue_url, set_as_current=False)
    letters = DeadLetters(app)

    def send(name: str, count: int, *args: Any) -> list[Any]:
        return [app.send_task(name, args) for _ in range(count)]

    leaving, coming = send("shop.leaving", 20), send("shop.coming", 20)
    misfits = send("shop.resize", 40, "a.png", 100)
    (unknown,) = send("shop.unknown", 1)

    # No worker takes a task that it lacks.
    assert {each.get(timeout=SOON) for each in leaving} == {"old"}
    assert {each.get(timeout=SOON) for each in coming} == {"new"}
    # What no worker knows waits, and can be seen to.
    explanation = app.backend.explain(unknown.id)
    assert str(explanation).startswith(
        f"0 of 2 live workers on queue `celery` know task `shop.unknown`, so {unknown.id} waits."
    )
    answers = app.control.inspect(timeout=2, destination=["new@host"]).query_task(unknown.id)
    assert answers == {"new@host": {}}
    # A call that does not fit is not retried where it does not fit; it is kept.
    wait_until(lambda: all(each.ready() for each in misfits), SOON)
    aside = letters.list(reason="signature", task="shop.resize")
    ran = [each for each in misfits if each.state == "SUCCESS"]
    assert len(aside) + len(ran) == 40
    assert {each.result for each in ran} <= {"new"}
    assert {each.error for each in aside} <= {
        "TypeError: resize() takes 1 positional argument but 2 were given"
    }
    # Once the old code is gone, it runs.
    old.stop()
    assert letters.retry(reason="signature") == len(aside)
    again = [app.AsyncResult(each.id) for each in misfits]
    assert {each.get(timeout=SOON) for each in again} == {"new"}
    app.close()
