"""Beat over an engine: what is due is sent once, however many beats run and whichever dies."""

from __future__ import annotations

import json
import logging
import signal
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.schedules import crontab
from flask import Flask
from programs import celery_command
from programs import Program
from waiting import wait_until

from celeriac import Celeriac
from celeriac import make_celery
from celeriac.beat import Scheduler
from celeriac.engines import Engine
from celeriac.engines import open_engine
from celeriac.engines.base import Entry

#: Seconds between two runs where a test waits for several.
OFTEN = 0.4

PROGRAM = """\
import os
from flask import Flask
from celeriac import make_celery

flask_app = Flask(__name__, instance_path=os.getcwd())
flask_app.config["CELERY"] = {{
    "broker_url": os.environ["QUEUE"],
    "beat_schedule": {{"often": {{"task": "timetable.tick", "schedule": {often}}}}},
    "task_ignore_result": True,
}}
celery = make_celery(flask_app)

@celery.task
def tick():
    with open("journal", "a") as journal:
        print("tick", file=journal)
"""

#: A Celery app that knows nothing of Celeriac.
STOCK_PROGRAM = """\
import os
from celery import Celery

celery = Celery("timetable", broker=os.environ["QUEUE"])

@celery.task(name="timetable.tick", ignore_result=True)
def tick():
    with open("journal", "a") as journal:
        print("tick", file=journal)

@celery.on_after_finalize.connect
def schedule(sender, **kwargs):
    sender.add_periodic_task({often}, tick.s(), name="often")
"""


@pytest.fixture
def app(queue_url: str) -> Celeriac:
    """Return an app with a task that nobody runs."""
    flask_app = Flask("timetable")
    flask_app.config["CELERY_BROKER_URL"] = queue_url
    celery = make_celery(flask_app)

    @celery.task(name="tick", ignore_result=True)
    def tick(*args: object, **kwargs: object) -> None: ...

    return celery


@pytest.fixture
def engine(queue_url: str) -> Engine:
    return open_engine(queue_url)


def schedule(app: Any, **entries: Any) -> Scheduler:
    """Return the scheduler of a new beat for these entries."""
    app.conf.beat_schedule = {
        name: entry if isinstance(entry, dict) else {"task": "tick", "schedule": entry}
        for name, entry in entries.items()
    }
    return Scheduler(app)


def run_due(scheduler: Scheduler) -> float:
    """Send all that is due now, and return for how long the scheduler would sleep."""
    delay = 0.0
    while delay == 0:
        delay = scheduler.tick()
    return delay


def last_ran(engine: Engine, name: str, ago: timedelta) -> None:
    """Let an entry have run last some time ago."""
    engine.save_entries("timetable", {name: time.time() - ago.total_seconds()})


def stored(engine: Engine, name: str = "often") -> Entry:
    return engine.get_entries("timetable", [name])[name]


# One beat


def test_due_entry_is_sent_and_noted(app: Celeriac, engine: Engine) -> None:
    last_ran(engine, "often", timedelta(seconds=61))
    scheduler = schedule(app, often=60)
    began = time.time()

    delay = run_due(scheduler)

    assert [task.task for task in engine.list_tasks()] == ["tick"]
    assert began <= stored(engine).last_run_at <= time.time()
    assert stored(engine).runs == 1
    assert 0 < delay <= 60


def test_new_entry_is_not_due_before_its_first_interval(app: Celeriac, engine: Engine) -> None:
    scheduler = schedule(app, often=60, nightly=crontab(0, 0, day_of_month="1"))

    assert 0 < run_due(scheduler) <= 60
    assert engine.list_tasks() == []
    assert stored(engine).runs == 0


@pytest.mark.parametrize(
    "interval", [3600, timedelta(hours=1), crontab(minute="*/30")], ids=["seconds", "delta", "cron"]
)
def test_restarted_beat_makes_up_for_one_run(app: Celeriac, engine: Engine, interval: Any) -> None:
    last_ran(engine, "often", timedelta(days=3))

    run_due(schedule(app, often=interval))
    run_due(schedule(app, often=interval))

    assert len(engine.list_tasks()) == 1


def test_restarted_beat_goes_on_where_it_was(app: Celeriac, engine: Engine) -> None:
    last_ran(engine, "often", timedelta(minutes=20))

    scheduler = schedule(app, often=3600)

    entry = scheduler.schedule["often"]
    assert entry.last_run_at.timestamp() == pytest.approx(stored(engine).last_run_at)
    assert entry.last_run_at.utcoffset() is not None
    run_due(scheduler)
    assert engine.list_tasks() == []


def test_starting_deadline_holds(app: Celeriac, engine: Engine) -> None:
    a_year_ago = datetime.now(timezone.utc) - timedelta(days=182)
    yearly = crontab(0, 0, day_of_month="1", month_of_year=str(a_year_ago.month))
    last_ran(engine, "often", timedelta(days=400))
    app.conf.beat_cron_starting_deadline = 3600

    run_due(schedule(app, often=yearly))

    assert engine.list_tasks() == []


def test_another_time_zone_does_not_change_when_an_entry_ran(app: Celeriac, engine: Engine) -> None:
    last_ran(engine, "often", timedelta(minutes=20))
    app.conf.timezone = "Asia/Tokyo"

    entry = schedule(app, often=3600).schedule["often"]

    assert entry.last_run_at.utcoffset() == timedelta(hours=9)
    assert entry.last_run_at.timestamp() == pytest.approx(stored(engine).last_run_at)


def test_options_of_an_entry_hold(app: Celeriac, engine: Engine) -> None:
    last_ran(engine, "often", timedelta(seconds=61))
    options = {"queue": "slow", "priority": 7, "expires": 3600}
    entry = {"task": "tick", "schedule": 60, "args": [1], "kwargs": {"b": 2}, "options": options}

    run_due(schedule(app, often=entry))

    (task,) = engine.list_tasks()
    assert (task.queue, task.priority) == ("slow", 7)
    assert task.expires_at == pytest.approx(time.time() + 3600, abs=60)
    assert json.loads(task.body)[:2] == [[1], {"b": 2}]


def test_task_that_beat_does_not_know_is_sent_by_its_name(app: Celeriac, engine: Engine) -> None:
    last_ran(engine, "often", timedelta(seconds=61))

    run_due(schedule(app, often={"task": "elsewhere.tick", "schedule": 60}))

    assert [task.task for task in engine.list_tasks()] == ["elsewhere.tick"]


def test_tasks_are_added_by_the_signals_of_the_app(app: Celeriac) -> None:
    @app.on_after_configure.connect
    def early(sender: Any, **kwargs: Any) -> None:
        sender.add_periodic_task(60, app.signature("tick"), name="early")

    @app.on_after_finalize.connect
    def late(sender: Any, **kwargs: Any) -> None:
        sender.add_periodic_task(crontab(), app.signature("tick", (1,)), name="late")

    app.finalize()
    scheduler = Scheduler(app)

    assert set(scheduler.schedule) == {"early", "late"}


def test_entry_that_is_no_more_disappears(app: Celeriac, engine: Engine) -> None:
    last_ran(engine, "gone", timedelta(days=1))

    scheduler = schedule(app, often=60)

    assert set(scheduler.schedule) == {"often"}
    assert engine.get_entries("timetable", ["gone"]) == {}
    # Added again, it counts from then.
    run_due(schedule(app, gone=3600))
    assert engine.list_tasks() == []


def test_entry_may_be_added_to_a_running_scheduler(app: Celeriac, engine: Engine) -> None:
    scheduler = schedule(app)
    scheduler.tick()

    hour_ago = datetime.now(timezone.utc) - timedelta(hours=1)
    scheduler.add(name="often", task="tick", schedule=60, last_run_at=hour_ago)
    run_due(scheduler)

    assert len(engine.list_tasks()) == 1
    assert stored(engine).runs == 1


def test_task_that_can_not_be_sent_comes_again_at_its_next_time(
    app: Celeriac, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    last_ran(engine, "often", timedelta(days=1))
    scheduler = schedule(app, often={"task": "tick", "schedule": 3600, "args": [{1, 2}]})

    run_due(scheduler)

    assert "Couldn't apply scheduled task often" in caplog.text
    assert engine.list_tasks() == []
    assert stored(engine).runs == 1


def test_run_that_can_not_be_noted_stays_due(
    app: Celeriac, queue_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.broker_url = f"sqlite:///{queue_path}?busy_timeout=0.1"
    engine = open_engine(app.conf.broker_url)
    last_ran(engine, "often", timedelta(days=1))
    scheduler = schedule(app, often=3600)

    with closing(sqlite3.connect(queue_path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert scheduler.tick() == 1.0
        assert "Trying again in 1 seconds." in caplog.text
        other.execute("ROLLBACK")
    assert stored(engine).runs == 0
    run_due(scheduler)

    assert len(engine.list_tasks()) == 1
    assert stored(engine).runs == 1


def test_eager_task_runs_in_beat_and_its_result_is_kept(app: Celeriac, engine: Engine) -> None:
    app.conf.update(task_always_eager=True, task_store_eager_result=True)
    ran: list[str] = []

    @app.task(name="eager", bind=True)
    def eager(self: Any) -> None:
        ran.append(self.request.id)

    last_ran(engine, "often", timedelta(seconds=61))
    run_due(schedule(app, often={"task": "eager", "schedule": 60}))

    assert len(ran) == 1
    assert engine.get_results(ran)[ran[0]].state == "SUCCESS"


# Several beats


def test_second_beat_sees_what_the_first_one_sent(
    app: Celeriac, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    last_ran(engine, "often", timedelta(hours=2))
    first, second = schedule(app, often=3600), schedule(app, often=3600)

    run_due(first)
    delay = run_due(second)

    assert len(engine.list_tasks()) == 1
    assert "beat: Another beat sent often." in caplog.text
    entry = second.schedule["often"]
    assert entry.last_run_at.timestamp() == pytest.approx(stored(engine).last_run_at)
    assert entry.total_run_count == 1
    assert delay > 0


@pytest.mark.differs("redis", "rabbitmq", row="Several `celery beat`")
def test_of_ten_beats_one_sends(app: Celeriac, engine: Engine) -> None:
    app.conf.beat_schedule = {"often": {"task": "tick", "schedule": OFTEN}}
    began = time.time()
    until = time.monotonic() + 5 * OFTEN

    def beat(number: int) -> None:
        scheduler = Scheduler(app)
        while time.monotonic() < until:
            time.sleep(max(0.0, min(scheduler.tick(), until - time.monotonic())))

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(beat, range(10)))

    sent = len(engine.list_tasks())
    assert sent == stored(engine).runs
    assert 1 <= sent <= (time.time() - began) / OFTEN


def test_two_apps_in_one_file_have_schedules_of_their_own(
    app: Celeriac, queue_url: str, engine: Engine
) -> None:
    other = Celery("other", broker=queue_url)
    for name in ("timetable", "other"):
        engine.save_entries(name, {"often": time.time() - 7200})

    run_due(schedule(app, often=3600))
    run_due(schedule(other, often=3600))
    run_due(schedule(app, often=3600))

    assert len(engine.list_tasks()) == 2


# Programs

Start = Callable[..., Program]


@pytest.fixture
def beat(tmp_path: Path, queue_url: str, program: Start) -> Start:
    """Start ``celery beat``, or another command of the program in this folder."""

    def start(*command: str, source: str = PROGRAM) -> Program:
        (tmp_path / "timetable.py").write_text(source.format(often=OFTEN))
        words = command or tuple(
            celery_command("-A", "timetable.celery", "beat", "-l", "INFO", "--pidfile=")
        )
        return program(*words, env={"QUEUE": queue_url})

    return start


def journal(folder: Path) -> list[str]:
    path = folder / "journal"
    return path.read_text().splitlines() if path.exists() else []


def test_each_due_time_is_sent_once_by_two_beats_whichever_dies(
    beat: Start, worker: Start, queue_url: str, engine: Engine, tmp_path: Path
) -> None:
    began = time.time()
    first, second = beat(), beat()
    for each in (first, second):
        each.wait_for_log("beat: Starting...")
    # Its own beat makes three.
    at_work = worker("-A", "timetable.celery", "-c", "1", "-B", env={"QUEUE": queue_url})
    wait_until(lambda: len(journal(tmp_path)) >= 3)
    first.kill()
    then = stored(engine).runs
    wait_until(lambda: stored(engine).runs >= then + 2)
    third = beat()
    third.wait_for_log("beat: Starting...")
    then = stored(engine).runs
    wait_until(lambda: stored(engine).runs >= then + 2)

    second.stop(signal.SIGTERM)
    third.stop(signal.SIGINT)
    # Its beat ends with it, and it does all that was sent before.
    wait_until(lambda: len(journal(tmp_path)) >= stored(engine).runs)
    at_work.stop()

    ran = len(journal(tmp_path)) + len(engine.list_tasks())
    assert ran == stored(engine).runs
    assert ran <= (time.time() - began) / OFTEN
    assert not list(tmp_path.glob("celerybeat-schedule*"))


@pytest.mark.parametrize("source", [PROGRAM, STOCK_PROGRAM], ids=["celeriac", "stock"])
def test_beat_keeps_its_state_in_the_queue_file(
    beat: Start, engine: Engine, tmp_path: Path, source: str
) -> None:
    running = beat(source=source)

    wait_until(lambda: len(engine.list_tasks()) >= 1, message=lambda: running.log)

    assert "scheduler -> celeriac.beat.Scheduler\n" in running.log
    assert f". db -> {engine.url}\n" in running.log
    assert stored(engine).runs >= 1
    running.stop()
    assert not list(tmp_path.glob("celerybeat-schedule*"))


@pytest.mark.parametrize("way", ["option", "setting"])
def test_scheduler_that_the_user_names_is_taken(beat: Start, tmp_path: Path, way: str) -> None:
    command = celery_command("-A", "timetable.celery", "beat", "-l", "INFO")
    source = PROGRAM
    if way == "option":
        command += ["-S", "celery.beat:PersistentScheduler"]
    else:
        named = '"beat_scheduler": "celery.beat:PersistentScheduler",'
        source = PROGRAM.replace('"task_ignore_result"', f'{named} "task_ignore_result"')

    running = beat(*command, source=source)

    running.wait_for_log("Sending due task often (timetable.tick)")
    assert "scheduler -> celery.beat.PersistentScheduler\n" in running.log
    assert list(tmp_path.glob("celerybeat-schedule*"))


def test_with_another_broker_the_scheduler_says_what_it_needs() -> None:
    flask_app = Flask("timetable")
    flask_app.config["CELERY_BROKER_URL"] = "redis://:secret@127.0.0.1:1"
    app = make_celery(flask_app)

    with pytest.raises(ImproperlyConfigured) as caught:
        Scheduler(app)

    assert str(caught.value) == (
        "celeriac.beat:Scheduler keeps the schedule in the broker's queue file, and the broker is "
        "redis://:**@127.0.0.1:1//. Leave out -S and beat_scheduler, or name another scheduler."
    )
