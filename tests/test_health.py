"""``celery health`` tells how workers and queues are, from the queue file alone."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from celery.bin.celery import celery as program
from click.testing import CliRunner
from programs import celery_command
from programs import run

from celeriac import health
from celeriac.engines import Engine
from celeriac.engines import open_engine
from celeriac.engines.base import Message
from celeriac.engines.base import Worker
from celeriac.health import look
from celeriac.health import State

#: Registers a worker and says so, for the time that it lives.
WORKER = """\
import sys, time
from celeriac.engines import open_engine
from celeriac.engines.base import Worker

engine = open_engine(sys.argv[1])
engine.register(Worker(sys.argv[2], sys.argv[3], 4242, ["celery"], {"add"}, 2))
print("registered", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def engine(queue_url: str) -> Engine:
    return open_engine(queue_url)


@pytest.fixture
def enter(queue_url: str) -> Iterator[Callable[[str, str], subprocess.Popen[str]]]:
    """Have a process that is a worker: ``enter(id, name)``."""
    started = []

    def enter(id: str, name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, queue_url, id, name]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout and started[-1].stdout.readline() == "registered\n"
        return started[-1]

    yield enter
    for process in started:
        process.kill()
        process.communicate()


class Done(NamedTuple):
    code: int
    output: str


@pytest.fixture
def celery(queue_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run Celery's program, with the broker's URL and no application."""

    def run(*args: str, url: str = queue_url) -> Done:
        # Celery's program puts the URL there.
        monkeypatch.setenv("CELERY_BROKER_URL", url)
        done = CliRunner().invoke(program, ["-b", url, *args])
        # Seconds differ, and the rest is compared as it is.
        return Done(done.exit_code, re.sub(r"\b\d+ s\b", "N s", done.output))

    return run


def introduce(engine: Engine, name: str = "one@here") -> None:
    """Make the test's own process a worker."""
    engine.register(Worker(name, name, os.getpid(), ["celery", "mail"], {"add"}, 4))


def publish(engine: Engine, count: int, queue: str = "celery") -> None:
    engine.publish([Message(queue, "{}", "", "add", f"id-{i}") for i in range(count)])


def test_idle_and_busy_worker_are_well(engine: Engine, celery: Callable[..., Done]) -> None:
    introduce(engine)
    publish(engine, 1, "mail")
    assert celery("health") == Done(
        0,
        "one@here: idle, 0 of 4 running, on celery, mail, heard of N s ago\n"
        "queue mail: 1 waiting, the oldest for N s\n"
        "Healthy: 1 worker.\n",
    )

    publish(engine, 3)
    engine.claim(["celery"], 1, worker="one@here", slot=0)
    engine.claim(["celery"], 1, worker="one@here", slot=2)

    assert celery("health", "-d", "one@here") == Done(
        0,
        "one@here: busy, 2 of 4 running, on celery, mail, heard of N s ago\n"
        "queue celery: 1 waiting, the oldest for N s\n"
        "queue mail: 1 waiting, the oldest for N s\n"
        "Healthy: 1 worker.\n",
    )


def test_worker_that_is_not_heard_of_is_wedged(
    engine: Engine, celery: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    introduce(engine)
    monkeypatch.setattr(health, "SILENCE", 0.05)
    time.sleep(0.06)

    assert celery("health") == Done(
        1,
        "one@here: wedged, 0 of 4 running, on celery, mail, heard of N s ago\n"
        "Unhealthy: one@here is wedged.\n",
    )


def test_worker_that_died_is_missed_until_it_is_back(
    engine: Engine, celery: Callable[..., Done], enter: Callable[..., subprocess.Popen[str]]
) -> None:
    introduce(engine)
    dead = enter("first", "two@here")
    dead.kill()
    dead.wait()

    assert celery("health") == Done(
        1,
        "one@here: idle, 0 of 4 running, on celery, mail, heard of N s ago\n"
        "two@here: dead, process 4242 ended\n"
        "Unhealthy: two@here is dead.\n",
    )
    assert celery("health", "-d", "one@here").code == 0
    assert celery("health", "-d", "two@here") == Done(
        2, "two@here: dead, process 4242 ended\nNo worker two@here runs.\n"
    )
    enter("second", "two@here")
    assert celery("health").output.endswith("\nHealthy: 2 workers.\n")


def test_without_workers_it_tells_what_waits(engine: Engine, celery: Callable[..., Done]) -> None:
    publish(engine, 2)

    assert celery("health") == Done(
        2, "queue celery: 2 waiting, the oldest for N s\nNo worker runs.\n"
    )
    # As `-n` names workers.
    assert celery("health", "-d", "there") == Done(2, "No worker celery@there runs.\n")


def test_json_says_the_same(engine: Engine, celery: Callable[..., Done]) -> None:
    introduce(engine)
    publish(engine, 1)

    told = json.loads(celery("health", "--json").output)

    (worker,) = told["workers"]
    (queue,) = told["queues"]
    assert 0 <= queue.pop("oldest") < 60
    assert time.time() - 60 < worker["heartbeat_at"] <= time.time()
    assert told == {
        "healthy": True,
        "verdict": "Healthy: 1 worker.",
        "workers": [
            {
                "name": "one@here",
                "state": "idle",
                "pid": os.getpid(),
                "running": 0,
                "concurrency": 4,
                "queues": ["celery", "mail"],
                "heartbeat_at": worker["heartbeat_at"],
            }
        ],
        "queues": [{"name": "celery", "waiting": 1}],
    }


def test_oldest_counts_from_when_it_was_due(engine: Engine) -> None:
    now = time.time()
    engine.publish([Message("celery", "{}", "", "add", "id", due_at=now - 100)])

    (queue,) = look(engine).queues

    assert queue.oldest is not None and queue.oldest < 60


def test_what_is_no_worker_is_left_out(engine: Engine) -> None:
    engine.register(Worker("box", "one@here", os.getpid(), ["one@here.celery.pidbox"], ()))
    publish(engine, 1, "one@here.celery.pidbox")

    report = look(engine)

    assert (report.workers, report.queues, report.exit_code) == ([], [], 2)
    assert [state.value for state in State] == ["idle", "busy", "wedged", "dead"]


def test_other_brokers_are_asked_otherwise(celery: Callable[..., Done]) -> None:
    done = celery("health", url="redis://localhost")

    assert done.code == 2
    assert done.output.endswith(
        "Error: health looks into a queue file, and the broker is redis://localhost/. "
        "Ask its workers instead: celery -A your_application.celery inspect ping\n"
    )


def test_a_file_that_can_not_be_had_is_told_in_a_sentence(
    celery: Callable[..., Done], tmp_path: Path
) -> None:
    for command in (["health"], ["explain", "id"], ["dead", "list"]):
        done = celery(*command, url=f"sqlite:///{tmp_path}/none/queue.sqlite3")

        assert done == Done(
            1,
            f"Error: The folder {tmp_path}/none of the queue file does not exist. Create it, or "
            "name another file in broker_url.\n",
        )


@pytest.mark.parametrize("command", ["health", "explain an-id", "dead list"])
def test_file_of_another_program_is_told_in_a_sentence(queue_path: Path, command: str) -> None:
    with closing(sqlite3.connect(queue_path)) as db:
        db.execute("CREATE TABLE theirs (x)")

    done = run(celery_command("-b", f"sqlite:///{queue_path}", *command.split()), check=False)

    assert (done.returncode, done.stderr) == (
        1,
        f"Error: {queue_path} is a SQLite database of another program. The queue needs a file of "
        "its own: name another one in broker_url, for example sqlite:///celeriac.sqlite3.\n",
    )


def test_probe_imports_no_application(queue_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "celery", "-b", f"sqlite:///{queue_path}"]

    done = subprocess.run([*command, "health"], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (2, "No worker runs.\n")
    assert "celeriac.extension" not in done.stderr
    assert "celeriac.worker" not in done.stderr
