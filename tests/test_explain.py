"""Why a task has not run: one test for each cause, and the warning that a wait in vain gives.

Workers are rows that this process registers: what counts is what the engine knows of them.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery import chord
from celery.exceptions import TimeoutError
from flask import Flask
from programs import Program
from waiting import wait_until

from celeriac import Celeriac
from celeriac import make_celery
from celeriac.engines import Engine
from celeriac.engines import open_engine
from celeriac.engines.base import Outcome
from celeriac.engines.base import Result
from celeriac.engines.base import Worker
from celeriac.exceptions import WaitingWarning
from celeriac.explain import Cause
from celeriac.explain import Explanation


@pytest.fixture
def app(queue_url: str) -> Iterator[Celery]:
    app = Celery("proj", broker=queue_url, backend=queue_url, set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def engine(queue_url: str) -> Engine:
    return open_engine(queue_url)


@pytest.fixture
def work(engine: Engine) -> Iterator[Callable[..., str]]:
    """Register a worker that consumes ``queue`` and knows ``tasks``."""
    registered: list[str] = []

    def work(
        queue: str = "celery",
        tasks: tuple[str, ...] = ("proj.add",),
        hostname: str = "worker@host",
    ) -> str:
        worker = Worker(f"w{len(registered)}", hostname, os.getpid(), [queue], tasks)
        engine.register(worker)
        registered.append(worker.id)
        return worker.id

    yield work
    for worker_id in registered:
        engine.deregister(worker_id)


@pytest.fixture
def explain(app: Celery) -> Callable[[str], Explanation]:
    return lambda task_id: app.backend.explain(task_id)  # type: ignore[no-any-return]


def send(app: Celery, name: str = "proj.add", task_id: str = "id", **options: Any) -> Any:
    return app.send_task(name, (1, 2), task_id=task_id, **options)


# One test for each cause


def test_no_worker(app: Celery, explain: Callable[[str], Explanation]) -> None:
    send(app)

    explanation = explain("id")

    assert explanation.cause is Cause.NO_WORKER
    assert explanation.in_vain
    assert str(explanation) == (
        "No worker is running, so task proj.add[id] waits in queue `celery`. Start one with: "
        "celery -A proj.celery worker"
    )


def test_dead_worker_counts_as_none(
    app: Celery, queue_url: str, explain: Callable[[str], Explanation]
) -> None:
    send(app)
    register = (
        "import os, sys\n"
        "from celeriac.engines import open_engine\n"
        "from celeriac.engines.base import Worker\n"
        "worker = Worker('w', 'worker@host', os.getpid(), ['celery'], {'proj.add'})\n"
        "open_engine(sys.argv[1]).register(worker)\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", register, queue_url], check=True)

    assert explain("id").cause is Cause.NO_WORKER


def test_worker_on_another_queue(
    app: Celery, work: Callable[..., str], explain: Callable[[str], Explanation]
) -> None:
    send(app, queue="mail")
    work()
    work("reports")

    explanation = explain("id")

    assert explanation.cause is Cause.QUEUE_NOT_CONSUMED
    assert explanation.in_vain
    assert str(explanation) == (
        "0 of 2 live workers consume queue `mail`, where task proj.add[id] waits. Start one with: "
        "celery -A proj.celery worker -Q mail"
    )


def test_worker_that_is_told_to_consume_nothing(
    app: Celery, engine: Engine, explain: Callable[[str], Explanation]
) -> None:
    send(app)
    engine.register(Worker("w0", "worker@host", os.getpid(), [], ("proj.add",)))

    explanation = str(explain("id"))
    engine.deregister("w0")

    assert explanation == (
        "0 of 1 live workers consume queue `celery`, where task proj.add[id] waits. Start one "
        "with: celery -A proj.celery worker"
    )


def test_consumer_of_remote_control_is_no_worker(
    app: Celery, work: Callable[..., str], explain: Callable[[str], Explanation]
) -> None:
    send(app)
    work("worker@host.celery.pidbox", (), hostname="")
    work("celeryev.1234", (), hostname="")

    assert explain("id").cause is Cause.NO_WORKER


def test_task_that_no_worker_knows(
    app: Celery, work: Callable[..., str], explain: Callable[[str], Explanation]
) -> None:
    send(app, "proj.ad")
    work(tasks=("proj.add", "proj.send_mail"))

    explanation = explain("id")

    assert explanation.cause is Cause.NOT_REGISTERED
    assert explanation.in_vain
    assert str(explanation) == (
        "0 of 1 live workers on queue `celery` know task `proj.ad`, so id waits. They know "
        "`proj.add`. Start one that imports it with: celery -A proj.celery worker -I proj"
    )


def test_stock_worker_may_know_the_task(
    app: Celery, work: Callable[..., str], explain: Callable[[str], Explanation]
) -> None:
    send(app)
    work(tasks=(), hostname="")

    assert explain("id").cause is Cause.WAITING


def test_result_that_is_not_kept(app: Celery, explain: Callable[[str], Explanation]) -> None:
    send(app, ignore_result=True)

    explanation = explain("id")

    assert explanation.cause is Cause.RESULT_IGNORED
    assert explanation.in_vain
    assert str(explanation) == (
        "The result of task id is not kept (ignore_result or task_ignore_result is set), so "
        "there is nothing to wait for. Keep it with: @celery.task(ignore_result=False)"
    )
    assert app.backend.explain("other", ignored=True).cause is Cause.RESULT_IGNORED


def test_revoked(
    app: Celery,
    engine: Engine,
    work: Callable[..., str],
    explain: Callable[[str], Explanation],
) -> None:
    send(app)
    work()
    engine.revoke(["id"])

    assert explain("id") == (Cause.REVOKED, "Task proj.add[id] was revoked and will not run.", "")


def test_expired(
    app: Celery, work: Callable[..., str], explain: Callable[[str], Explanation]
) -> None:
    send(app, expires=0.01)
    work()
    time.sleep(0.02)

    explanation = explain("id")

    assert explanation.cause is Cause.EXPIRED
    assert explanation.text.startswith("Task proj.add[id] expired at 20")


def test_not_due(
    app: Celery, work: Callable[..., str], explain: Callable[[str], Explanation]
) -> None:
    send(app, countdown=60)
    work()

    explanation = explain("id")

    assert explanation.cause is Cause.NOT_DUE
    assert not explanation.in_vain
    assert explanation.text.startswith("Task proj.add[id] is not due before 20")


def test_waiting_behind_others(
    app: Celery, work: Callable[..., str], explain: Callable[[str], Explanation]
) -> None:
    send(app, task_id="first")
    send(app)
    work()

    assert explain("id") == (
        Cause.WAITING,
        "Task proj.add[id] waits in queue `celery` with 1 other.",
        "",
    )


def test_running(
    app: Celery,
    engine: Engine,
    work: Callable[..., str],
    explain: Callable[[str], Explanation],
) -> None:
    send(app)
    engine.claim(["celery"], 1, worker=work())

    explanation = explain("id")

    assert explanation.cause is Cause.RUNNING
    assert not explanation.in_vain
    assert explanation.text.startswith("Worker worker@host has task proj.add[id] since 20")


def test_worker_died(app: Celery, queue_url: str, explain: Callable[[str], Explanation]) -> None:
    send(app)
    claim = (
        "import os, sys\n"
        "from celeriac.engines import open_engine\n"
        "from celeriac.engines.base import Worker\n"
        "engine = open_engine(sys.argv[1])\n"
        "engine.register(Worker('w', 'worker@host', os.getpid(), ['celery'], {'proj.add'}))\n"
        "assert engine.claim(['celery'], 1, worker='w')\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", claim, queue_url], check=True)

    explanation = explain("id")

    assert explanation.cause is Cause.WORKER_LOST
    assert explanation.text.endswith(" died. The next one that runs or starts sees to it.")


def test_finished(
    app: Celery,
    engine: Engine,
    work: Callable[..., str],
    explain: Callable[[str], Explanation],
) -> None:
    send(app)
    (delivery,) = engine.claim(["celery"], 1, worker=work())
    engine.complete([Outcome(delivery, results=[Result("id", "SUCCESS", b"")])])

    assert explain("id") == (Cause.FINISHED, "Task id has finished: SUCCESS.", "")


def test_started_by_a_stock_worker(engine: Engine, explain: Callable[[str], Explanation]) -> None:
    engine.store_results([Result("id", "STARTED", b"")])

    assert explain("id") == (Cause.RUNNING, "Task id was started: STARTED.", "")


def test_unknown(explain: Callable[[str], Explanation]) -> None:
    explanation = explain("id")

    assert explanation.cause is Cause.UNKNOWN
    assert explanation.in_vain
    assert str(explanation) == (
        "No task id is known here: it was never sent to this broker, comes later in a chain or "
        "chord, or its result has expired, was forgotten or is not kept."
    )


# The command


def test_command_names_the_variable_that_holds_the_app(
    app: Celery, explain: Callable[[str], Explanation], monkeypatch: pytest.MonkeyPatch
) -> None:
    app.main = __name__
    monkeypatch.setattr(sys.modules[__name__], "my_celery", app, raising=False)
    send(app)

    assert explain("id").command == f"celery -A {__name__}.my_celery worker"


def test_command_of_an_app_made_by_a_factory(queue_url: str) -> None:
    flask_app = Flask("site_from_factory")
    flask_app.config["CELERY"] = {"broker_url": queue_url}
    celery = make_celery(flask_app)
    send(celery)

    explanation = celery.backend.explain("id")

    assert explanation.command == "flask --app site_from_factory celery worker"
    celery.close()


def test_command_of_an_app_whose_factory_has_it_from_a_variable(
    queue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flask_app = Flask(__name__)
    flask_app.config["CELERY"] = {"broker_url": queue_url}
    celery = Celeriac()
    monkeypatch.setattr(sys.modules[__name__], "celery_of_factory", celery, raising=False)
    celery.init_app(flask_app)
    send(celery)

    assert celery.backend.explain("id").command == f"flask --app {__name__} celery worker"
    monkeypatch.setattr(sys.modules[__name__], "flask_of_factory", flask_app, raising=False)
    assert celery.backend.explain("id").command == f"celery -A {__name__}.celery_of_factory worker"
    celery.close()


# Waiting


def test_waiting_in_vain_warns_within_three_seconds_and_goes_on(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    result = send(app)
    started = time.monotonic()

    with pytest.warns(WaitingWarning) as warned, pytest.raises(TimeoutError):
        result.get(timeout=3)

    assert time.monotonic() - started >= 3
    (warning,) = warned.list
    assert str(warning.message).startswith("No worker is running, so task proj.add[id] waits")
    assert warning.filename == __file__
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert record.message == f"Waiting in vain: {warning.message}"


def test_waiting_in_vain_ends_when_it_no_longer_is(
    app: Celery, engine: Engine, work: Callable[..., str]
) -> None:
    result = send(app)

    def run() -> None:
        (delivery,) = engine.claim(["celery"], 1, worker=work())
        meta = b'{"status": "SUCCESS", "result": 3, "task_id": "id"}'
        engine.complete([Outcome(delivery, results=[Result("id", "SUCCESS", meta)])])

    later = threading.Timer(2.8, run)
    with pytest.warns(WaitingWarning, match="No worker is running"):
        later.start()
        assert result.get(timeout=10) == 3
    later.join()


def test_waiting_for_the_end_of_a_chain_looks_at_its_beginning(
    app: Celery, work: Callable[..., str]
) -> None:
    first = app.signature("proj.add", (1, 2), app=app, queue="mail")
    result = (first | app.signature("proj.add", (3,), app=app)).apply_async()
    work()

    with pytest.warns(WaitingWarning, match="consume queue `mail`"), pytest.raises(TimeoutError):
        result.get(timeout=2.7)


def test_waiting_for_a_later_step_by_its_id_does_not_warn(
    app: Celery, work: Callable[..., str]
) -> None:
    send(app, task_id="first step")
    work()

    with pytest.raises(TimeoutError):  # A warning would be an error.
        app.AsyncResult("second step").get(timeout=2.7)


def test_waiting_for_a_task_in_another_broker_does_not_warn(app: Celery) -> None:
    app.conf.broker_url = "memory://"

    with pytest.raises(TimeoutError):
        app.AsyncResult("id").get(timeout=2.7)


def test_waiting_for_a_result_that_is_not_kept_returns_none_and_warns_once(queue_url: str) -> None:
    flask_app = Flask(__name__)
    flask_app.config["CELERY"] = {"broker_url": queue_url, "task_ignore_result": True}
    celery = make_celery(flask_app)

    @celery.task
    def add(a: int, b: int) -> int:
        return a + b

    with pytest.warns(WaitingWarning, match="is not kept") as warned:
        assert add.delay(1, 2).wait() is None
        assert add.delay(1, 2).get() is None

    assert len(warned.list) == 1
    celery.close()


def test_group_in_vain_warns(app: Celery) -> None:
    from celery import group

    result = group(app.signature("proj.add", (1, n), app=app) for n in range(3)).apply_async()

    with pytest.warns(WaitingWarning, match="No worker is running"), pytest.raises(TimeoutError):
        result.get(timeout=2.7)


def test_explain_of_a_result(queue_url: str) -> None:
    flask_app = Flask("proj")
    flask_app.config["CELERY"] = {"broker_url": queue_url}
    celery = make_celery(flask_app)

    assert send(celery).explain().startswith("No worker is running, so task proj.add[id] waits")
    celery.close()


def test_result_without_a_result_backend_says_what_to_set() -> None:
    flask_app = Flask(__name__)
    flask_app.config["CELERY_BROKER_URL"] = "memory://"
    celery = make_celery(flask_app)
    told = (
        "No result backend is configured, so nothing is known of task id: set result_backend, "
        "to the URL of a Redis or to rpc:// for instance."
    )

    result = celery.AsyncResult("id")

    assert result.explain() == told
    for look in (lambda: result.state, result.ready, result.wait, lambda: result.result):
        with pytest.raises(NotImplementedError) as raised:
            look()
        assert str(raised.value) == told


def test_explain_of_the_last_result_of_a_chain(queue_url: str) -> None:
    flask_app = Flask("proj")
    flask_app.config["CELERY"] = {"broker_url": queue_url}
    celery = make_celery(flask_app)
    add = celery.signature("proj.add", (1, 2))

    last = (add | add).apply_async()

    assert last.explain() == (
        f"Task {last.id} comes after another. No worker is running, so task "
        f"proj.add[{last.parent.id}] waits in queue `celery`. Start one with: "
        "flask --app proj celery worker"
    )
    celery.close()


def test_callback_of_a_chord_names_the_members_that_are_missing(
    app: Celery, work: Callable[..., str]
) -> None:
    add = app.signature("proj.add", (1, 1), app=app)
    body = app.signature("proj.total", app=app)
    result = chord([add.clone(task_id=f"member {n}") for n in range(5)], body, app=app).delay()
    work()

    explanation = app.backend.explain(result.id, search=True)

    assert explanation.cause is Cause.WAITING
    assert str(explanation) == (
        f"Task {result.id} comes after proj.add[member 0], proj.add[member 1], "
        "proj.add[member 2] and 2 more, not finished yet. "
        "Task proj.add[member 0] waits in queue `celery` with 4 others."
    )


# Real workers


def test_real_worker_is_named(
    queue_url: str,
    tmp_path: Path,
    worker: Callable[..., Program],
    app: Celery,
    explain: Callable[[str], Explanation],
) -> None:
    (tmp_path / "proj.py").write_text(
        "import time\n"
        "from celery import Celery\n"
        f"app = Celery('proj', broker={queue_url!r}, backend={queue_url!r})\n"
        "@app.task\n"
        "def nap(seconds):\n"
        "    time.sleep(seconds)\n"
    )
    worker("-A", "proj", "-Q", "mail", "-c", "1", "-n", "one@host")

    app.send_task("proj.nap", (60,), task_id="elsewhere")
    app.send_task("proj.nab", (60,), task_id="misspelt", queue="mail")
    app.send_task("proj.nap", (0.5,), task_id="running", queue="mail")
    wait_until(lambda: explain("running").cause is Cause.RUNNING)

    assert explain("running").text.startswith("Worker one@host has task proj.nap[running]")
    assert explain("elsewhere").text.startswith("0 of 1 live workers consume queue `celery`")
    assert explain("misspelt").cause is Cause.NOT_REGISTERED
    assert "They know `proj.nap`" in explain("misspelt").text
    assert app.AsyncResult("running").get(timeout=10) is None
    assert explain("running").cause is Cause.FINISHED
