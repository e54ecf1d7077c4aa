"""Logging: a worker leaves it as the application configured it, and sets it up otherwise."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from leaks import LASTING
from programs import celery_command
from programs import Program
from programs import run
from waiting import wait_until

HERE = Path(__file__).parent / "instruments"
MESSAGES = ("to Flask's logger", "to a logger of its own", "to a task's logger")
#: What Celery's own lines begin with.
CELERYS = re.compile(r"^\[\d{4}-\d\d-\d\d [\d:,]+: [A-Z]+/")


class Case:
    """One way to configure logging, and a worker in it that ran one task."""

    def __init__(
        self,
        folder: Path,
        way: str,
        *options: str,
        url: str = "",
        conf: dict[str, Any] | None = None,
    ) -> None:
        folder.mkdir()
        self.folder = folder
        self.url = url or f"sqlite:///{folder}/queue.sqlite3?durability=normal"
        self.env = {
            "PROGRAM_LOGGING": way,
            "PROGRAM_URL": self.url,
            "PROGRAM_CONF": json.dumps(conf or {}),
            "PYTHONPATH": os.pathsep.join(
                [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        }
        command = celery_command("-A", "logged.celery", "worker", "-c", "1", *options)
        log_path = folder / "worker.out"
        self.worker = Program(command, log_path=log_path, cwd=folder, env=self.env)

    def send(self) -> None:
        with Celery(broker=self.url, set_as_current=False) as app:
            self.task_id = app.send_task("logged.speak").id

    def wait(self) -> None:
        """Wait until the task has printed its line, which is its last."""
        wait_until(
            lambda: "to standard output" in self.log,
            40,
            message=lambda: f"the task in this log:\n{self.log}",
        )

    @property
    def log(self) -> str:
        """Return all that the worker wrote, wherever."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("worker.*")))

    def lines(self, text: str) -> list[str]:
        return [line for line in self.log.splitlines() if text in line]


@pytest.fixture(scope="module")
def cases(
    tmp_path_factory: pytest.TempPathFactory, module_redis_url: str
) -> Iterator[dict[str, Case]]:
    """Start one worker of each kind, all at once."""
    folder = tmp_path_factory.mktemp("logging")
    made = {
        "root": Case(folder / "root", "root"),
        "threads": Case(folder / "threads", "root", "-P", "threads"),
        "redis": Case(folder / "redis", "root", "-l", "INFO", url=module_redis_url),
        "quiet": Case(folder / "quiet", "root", "-P", "threads", "-l", "WARNING"),
        "nothing": Case(folder / "nothing", "nothing", "-l", "INFO"),
        "flask": Case(folder / "flask", "flask", "-l", "INFO"),
        "file": Case(folder / "file", "root", "-P", "threads", "-l", "INFO", "-f", "worker.log"),
        "hijacked": Case(
            folder / "hijacked",
            "root",
            *("-P", "threads", "-l", "INFO"),
            conf={"worker_hijack_root_logger": True},
        ),
        "redirected": Case(folder / "redirected", "root", conf={"worker_redirect_stdouts": True}),
    }
    LASTING.update(case.worker.pid for case in made.values())
    try:
        for case in made.values():
            case.send()
        for case in made.values():
            case.wait()
        yield made
    finally:
        for case in made.values():
            case.worker.send(signal.SIGTERM)
        for case in made.values():
            case.worker.stop()
            print(case.worker.log)


@pytest.mark.parametrize("name", ["root", "threads", "redis"])
def test_configured_logging_is_left_alone(cases: dict[str, Case], name: str) -> None:
    case = cases[name]

    records = [json.loads(line) for line in case.log.splitlines() if line.startswith("{")]

    told = [record["message"] for record in records]
    assert [message for message in told if message in MESSAGES] == list(MESSAGES)
    assert not [line for line in case.log.splitlines() if CELERYS.match(line)]
    # Celery's own lines are the application's in form.
    (received,) = [record for record in records if record["message"].endswith(" received")]
    assert received["name"] == "celery.worker.strategy"
    assert len([message for message in told if message.endswith(" ready.")]) == 1
    # Standard output is nobody's log.
    assert case.lines("to standard output") == ["to standard output"]


@pytest.mark.parametrize("name", ["root", "threads", "redis"])
def test_records_tell_their_task(cases: dict[str, Case], name: str) -> None:
    case = cases[name]

    records = [json.loads(line) for line in case.log.splitlines() if line.startswith("{")]

    of_task = [record for record in records if record["task_id"] == case.task_id]
    assert {record["task_name"] for record in of_task} == {"logged.speak"}
    told = [record["message"].partition("[")[0] for record in of_task]
    assert told[0] == "Task logged.speak"
    assert set(told) == {"Task logged.speak", *MESSAGES}
    (ready,) = [record for record in records if record["message"].endswith(" ready.")]
    assert (ready["task_id"], ready["task_name"]) == (None, None)


def test_web_process_and_worker_write_alike(cases: dict[str, Case]) -> None:
    case = cases["root"]
    code = "import logged; logged.flask_app.test_client().get('/')"

    done = run([sys.executable, "-c", code], cwd=case.folder, env=case.env)

    _, web = map(json.loads, done.stderr.splitlines())
    worker = json.loads(case.lines("to a logger of its own")[0])
    assert web == {**worker, "task_id": "none", "task_name": "none"}


def test_level_of_the_command_line_counts(cases: dict[str, Case]) -> None:
    case = cases["quiet"]

    assert not case.lines(" received") and not case.lines(" ready.")
    assert len(case.lines("to a logger of its own")) == 1


def test_unconfigured_logging_is_celerys(cases: dict[str, Case]) -> None:
    case = cases["nothing"]

    for message in MESSAGES:
        (line,) = case.lines(message)
        assert CELERYS.match(line)
    (line,) = case.lines("to a task's logger")
    assert f"logged.speak[{case.task_id}]" in line
    (printed,) = case.lines("to standard output")
    assert re.search(r"WARNING/ForkPoolWorker-1\] to standard output$", printed)


def test_handler_of_flasks_logger_is_left_alone(cases: dict[str, Case]) -> None:
    case = cases["flask"]

    (line,) = case.lines("to Flask's logger")
    assert json.loads(line)["task_id"] == case.task_id
    # The rest of the program has configured nothing, and Celery tells of itself.
    (line,) = case.lines(" received")
    assert CELERYS.match(line)
    (line,) = case.lines("to a task's logger")
    assert CELERYS.match(line)
    assert case.lines("to a logger of its own") == ["to a logger of its own"]
    assert case.lines("to standard output") == ["to standard output"]


@pytest.mark.parametrize("name", ["hijacked", "file"])
def test_celerys_logging_is_had_by_asking_for_it(cases: dict[str, Case], name: str) -> None:
    case = cases[name]

    for message in MESSAGES:
        (line,) = case.lines(message)
        assert CELERYS.match(line)
    (printed,) = case.lines("to standard output")
    assert CELERYS.match(printed)


def test_log_file_gets_it_all(cases: dict[str, Case]) -> None:
    text = (cases["file"].folder / "worker.log").read_text()

    assert all(message in text for message in (*MESSAGES, "to standard output", " ready."))


def test_standard_output_is_redirected_by_asking_for_it(cases: dict[str, Case]) -> None:
    (line,) = cases["redirected"].lines("to standard output")

    record = json.loads(line)
    assert (record["name"], record["levelname"]) == ("celery.redirected", "WARNING")


def test_receiver_of_setup_logging_does_all_by_itself(
    program: Callable[..., Program], tmp_path: Path, queue_url: str
) -> None:
    (tmp_path / "own.py").write_text(
        "import logging\n"
        "from celery import signals\n"
        "from flask import Flask\n"
        "from celeriac import make_celery\n"
        "flask_app = Flask(__name__)\n"
        f"flask_app.config['CELERY_BROKER_URL'] = {queue_url!r}\n"
        "celery = make_celery(flask_app)\n"
        "@signals.setup_logging.connect\n"
        "def set_up(loglevel, **kwargs):\n"
        "    logging.basicConfig(level=loglevel, format='mine: %(task_id)s %(message)s')\n"
    )

    worker = program(*celery_command("-A", "own.celery", "worker", "-P", "solo", "-l", "INFO"))

    worker.wait_for_log(" ready.")
    assert not [line for line in worker.log.splitlines() if CELERYS.match(line)]
    assert re.search(r"^mine: None celery@.* ready\.$", worker.log, re.MULTILINE)
