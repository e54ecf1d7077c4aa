"""Workers that hang are noticed and begin anew; busy, stopped and waiting ones are left alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from celery import Celery
from celery import chord
from celery.worker import state
from programs import free_port
from programs import Program
from waiting import wait_until

from celeriac.engines import Engine
from celeriac.engines import open_engine
from celeriac.health import look
from celeriac.health import State
from celeriac.health import WorkerHealth
from celeriac.worker.probe import Probe
from celeriac.worker.restart import Restart

HERE = Path(__file__).parent
SOON = 15
#: Looks after which the workers of these tests count as hanging, in seconds, and some more.
LONG = 3.0


class Application:
    """The program ``hanging.py``, and what a test asks of it."""

    def __init__(self, folder: Path, url: str, worker: Callable[..., Program]) -> None:
        self.folder, self.url, self._worker = folder, url, worker
        self.port = free_port()
        self._names = ["one", "two"]
        self.engine: Engine = open_engine(url)
        self.celery = Celery(broker=url, backend=url, set_as_current=False)

    def start(self, *options: str, probe: bool = True, wait: bool = True) -> Program:
        conf = {"worker_health_address": f"127.0.0.1:{self.port}"} if probe else {}
        env = {
            "HANGING_URL": self.url,
            "HANGING_FOLDER": str(self.folder),
            "HANGING_CONF": json.dumps(conf),
        }
        options = ("-n", f"{self._names.pop(0)}@here", *options)
        return self._worker("-A", "hanging", *options, cwd=HERE, env=env, wait=wait)

    def send(self, name: str, *args: Any) -> Any:
        return self.celery.send_task(f"hanging.{name}", args)

    def begin(self, name: str, key: str) -> Any:
        """Send a task that runs until it is let go, and wait until it runs."""
        result = self.send(name, key)
        wait_until(lambda: (self.folder / f"{key}-began").exists(), SOON)
        return result

    def let_go(self, key: str) -> None:
        (self.folder / key).touch()

    def hang(self) -> None:
        """Have the loops of all workers hang."""
        self.celery.control.broadcast("hang", {"seconds": 1000})

    def ask(self, path: str = "/health", method: str = "GET") -> tuple[int, bytes]:
        """Return what the probe answers: the status, and the body."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def health(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.ask()[1])
        return told

    def is_told(self, status: str) -> Callable[[], bool]:
        return lambda: self.health()["status"] == status


@pytest.fixture
def application(
    tmp_path: Path, queue_url: str, worker: Callable[..., Program]
) -> Iterator[Application]:
    application = Application(tmp_path, queue_url, worker)
    yield application
    application.celery.close()


def began_anew(worker: Program) -> Callable[[], bool]:
    return lambda: worker.log.count(" ready.") == 2


def test_worker_whose_loop_hangs_begins_anew_until_it_hangs_too_often(
    application: Application,
) -> None:
    workers = [application.start("-P", pool, "-c", "1", probe=False) for pool in ("solo", "gevent")]

    application.hang()

    for worker in workers:
        wait_until(began_anew(worker), 30, message=lambda worker=worker: worker.log)
        assert "The worker is wedged: its loop made no round for" in worker.log
        assert 'hanging.py", line' in worker.log
    pids = {each.pid for each in look(application.engine).workers}
    assert pids == {worker.pid for worker in workers}
    assert application.send("add", 1, 2).get(timeout=SOON) == 3

    application.hang()

    for worker in workers:
        assert worker.wait() == os.EX_SOFTWARE
        assert "It ends." in worker.log


def test_task_that_runs_while_the_parent_hangs_may_finish(application: Application) -> None:
    worker = application.start("-c", "2")
    children = worker.children()
    running = application.begin("waiting", "key")

    application.hang()
    wait_until(application.is_told("wedged"), SOON)

    code, body = application.ask()
    assert code == 503
    assert json.loads(body)["reason"].startswith("its loop made no round for ")
    application.let_go("key")
    assert running.get(timeout=SOON) == "key"
    wait_until(began_anew(worker), SOON)
    assert not any(child.is_running() for child in children)
    assert application.ask()[0] == 200
    assert application.health()["pid"] == worker.pid


def test_children_that_hang_between_two_tasks_are_replaced(application: Application) -> None:
    worker = application.start("-c", "2")
    children = worker.children()
    children[0].suspend()

    # Its body is sent by the child that finishes the header, between two of its tasks.
    add, total = (application.celery.signature(f"hanging.{name}") for name in ("add", "total"))
    chord([add.clone((1, 2)), add.clone((3, 4))])(total)

    wait_until(lambda: not any(child.is_running() for child in children), SOON)
    assert application.send("add", 1, 2).get(timeout=SOON) == 3
    # Written by the child, with its last breath.
    assert "Fatal Python error: Aborted" in worker.log
    assert "in hang_once" in worker.log
    assert worker.log.count(" ready.") == 1


def test_worker_that_was_stopped_as_a_whole_goes_on(application: Application) -> None:
    worker = application.start("-c", "1")

    os.killpg(worker.pid, signal.SIGSTOP)
    time.sleep(LONG)
    os.killpg(worker.pid, signal.SIGCONT)

    assert application.send("add", 1, 2).get(timeout=SOON) == 3
    assert application.health()["status"] in ("idle", "busy")
    assert "wedged" not in worker.log


def test_workers_with_long_tasks_are_busy_and_heard_of(application: Application) -> None:
    application.start("-P", "solo", probe=False)
    results = [application.begin("computing", "one")]
    application.start("-P", "gevent", "-c", "1")
    results.append(application.begin("computing", "two"))
    since = time.time()

    def workers() -> Sequence[WorkerHealth]:
        return look(application.engine).workers

    wait_until(lambda: all(each.heartbeat_at > since + LONG for each in workers()), SOON)
    assert [each.state for each in workers()] == [State.BUSY, State.BUSY]
    assert application.health()["status"] == "busy"
    for key, result in zip(("one", "two"), results, strict=True):
        application.let_go(key)
        assert result.get(timeout=SOON) == key


def test_worker_that_waits_for_a_locked_file_says_so(
    application: Application, queue_path: Path
) -> None:
    worker = application.start("-c", "1")

    with closing(sqlite3.connect(queue_path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        health = wait_until(
            lambda: application.ask() if b"reason" in application.ask()[1] else None
        )
        time.sleep(LONG)
        assert application.ask()[0] == 200
        db.execute("ROLLBACK")

    assert health[0] == 200
    assert json.loads(health[1])["reason"].startswith("the queue file gave no answer for ")
    assert application.send("add", 1, 2).get(timeout=SOON) == 3
    assert "wedged" not in worker.log


def test_worker_within_another_program_is_told_to_end(caplog: pytest.LogCaptureFixture) -> None:
    try:
        Restart(None).begin("it hangs")

        assert state.should_stop == os.EX_SOFTWARE
    finally:
        state.should_stop = None
    first, *_ = caplog.messages[0].splitlines()
    assert first == "The worker is wedged: it hangs. It is to end."


# The probe


def test_probe_tells_of_the_worker_until_it_ends(application: Application) -> None:
    worker = application.start("-c", "2", "-Q", "celery,mail")
    wait_until(application.is_told("idle"))

    told = json.loads(application.ask("/")[1])

    assert time.time() - 60 < told["since"] <= time.time()
    assert told == {
        "status": "idle",
        "worker": "one@here",
        "pid": told["pid"],
        "running": 0,
        "concurrency": 2,
        "queues": ["celery", "mail"],
        "since": told["since"],
    }
    assert application.ask("/", "HEAD") == (200, b"")
    assert application.ask("/other") == (
        404,
        b'{"error": "There is /health, and nothing else."}\n',
    )
    assert application.ask("/", "DELETE")[0] == 501

    application.begin("waiting", "key")

    worker.send(signal.SIGTERM)

    wait_until(application.is_told("stopping"))
    assert application.ask()[0] == 200
    application.let_go("key")
    assert worker.wait() == 0


def test_probe_answers_at_once_whoever_else_asks(application: Application) -> None:
    worker = application.start("-c", "2")
    results = [application.begin("computing", key) for key in ("one", "two")]

    with closing(socket.create_connection(("127.0.0.1", application.port))) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost:")
        with closing(socket.create_connection(("127.0.0.1", application.port))) as mad:
            mad.sendall(b"\x16\x03\x01\xff\r\n\r\n" * 10)
            times = []
            for _ in range(15):
                began = time.perf_counter()
                assert application.health()["running"] == 2
                times.append(time.perf_counter() - began)
        # One that never comes to its end is not waited for.
        slow.settimeout(SOON)
        slow.recv(1)

    assert median(times) < 0.05
    for key, result in zip(("one", "two"), results, strict=True):
        application.let_go(key)
        assert result.get(timeout=SOON) == key
    assert "Traceback" not in worker.log


def test_worker_whose_port_is_taken_does_not_start(application: Application) -> None:
    with socket.create_server(("127.0.0.1", application.port)):
        worker = application.start("-c", "1", wait=False)

        assert worker.wait() == 1

    assert worker.log.splitlines()[-1] == (
        f"The worker can not start. It is to tell its health on 127.0.0.1:{application.port}, "
        "which can not be had (Address already in use). Each worker of a machine needs a port of "
        "its own: end what has it, or set worker_health_address."
    )


@pytest.mark.parametrize("address", ["8100", "localhost", "127.0.0.1:", ":0", ":65536", "a:b"])
def test_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(SystemExit) as caught:
        Probe(address, dict)

    assert str(caught.value) == (
        f"The worker can not start. worker_health_address is {address!r}, and a host and a port "
        "are needed: '127.0.0.1:8100', or ':8100' for every interface."
    )
