"""A broker or a result backend that is gone: ``delay()`` says so soon, on whatever broker."""

from __future__ import annotations

import gc
import signal
import socket
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from kombu.exceptions import OperationalError
from programs import free_port
from programs import Program
from waiting import wait_until

from celeriac import Celeriac
from celeriac import make_celery

#: Where five seconds are promised; Celery waits for 19, or for ever.
SOON = 15.0

URLS = {
    "redis": "redis://127.0.0.1:{port}/0",
    "amqp": "amqp://guest:guest@127.0.0.1:{port}//",
}


@pytest.fixture
def closed_port() -> int:
    return free_port()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Return a port where connections are taken, and nothing is ever answered."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener.getsockname()[1]


@pytest.fixture(params=["closed_port", "silent_port"])
def port(request: pytest.FixtureRequest) -> int:
    return int(request.getfixturevalue(request.param))


@pytest.fixture
def make_app() -> Iterator[Callable[..., Celeriac]]:
    """Make apps whose connections are closed at the end."""
    made = []

    def make(broker: str, **settings: Any) -> Celeriac:
        flask_app = Flask("program")
        flask_app.config["CELERY"] = {"broker_url": broker, **settings}
        made.append(make_celery(flask_app))
        return made[-1]

    yield make
    for app in made:
        app.close()


def send(app: Celeriac) -> str:
    """Send a task that can not be sent, and return why."""
    began = time.monotonic()
    with pytest.raises(OperationalError) as caught:
        app.send_task("program.add", (1, 2))
    assert time.monotonic() - began < SOON
    return str(caught.value)


@pytest.mark.parametrize("scheme", URLS)
def test_broker_out_of_reach(make_app: Any, port: int, scheme: str) -> None:
    app = make_app(URLS[scheme].format(port=port))

    assert send(app)


def test_broker_and_results_out_of_reach(make_app: Any, port: int) -> None:
    url = URLS["redis"].format(port=port)
    app = make_app(url, result_backend=url)

    assert send(app).startswith(f"The task was not sent: its result backend, {url}, can not be")


def test_results_out_of_reach(make_app: Any, amqp_url: str, closed_port: int) -> None:
    url = f"redis://:secret@127.0.0.1:{closed_port}/0"
    app = make_app(amqp_url, result_backend=url)

    assert send(app) == (
        f"The task was not sent: its result backend, redis://:**@127.0.0.1:{closed_port}/0, can "
        "not be reached ([Errno 111] Connection refused). A task with ignore_result=True does not "
        "need it."
    )


def test_replies_out_of_reach(make_app: Any, closed_port: int) -> None:
    app = make_app(URLS["amqp"].format(port=closed_port), result_backend="rpc://")

    assert "Connection refused" in send(app)


@pytest.fixture
def redis(program: Callable[..., Program], tmp_path: Path, redis_url: str) -> Any:
    """Start Redis servers of this test's own, which it may stop."""
    port = free_port()

    def start() -> tuple[Program, str]:
        options = f"--port {port} --bind 127.0.0.1 --dir {tmp_path} --appendonly no".split()
        server = program("redis-server", *options, "--save", "")
        server.wait_for_log("Ready to accept connections")
        return server, f"redis://127.0.0.1:{port}/0"

    return start


def test_redis_that_falls_silent_and_comes_back(make_app: Any, redis: Any) -> None:
    server, url = redis()
    app = make_app(url, result_backend=url)
    app.send_task("program.add", (1, 2))

    server.send(signal.SIGSTOP)
    try:
        assert send(app)
    finally:
        server.send(signal.SIGCONT)

    wait_until(lambda: app.backend.client.ping())
    app.send_task("program.add", (1, 2))


def test_redis_that_ends_and_is_started_again(make_app: Any, redis: Any) -> None:
    server, url = redis()
    app = make_app(url, result_backend=url)
    app.send_task("program.add", (1, 2))

    server.stop()
    assert send(app)

    redis()
    result = app.send_task("program.add", (1, 2))
    app.backend.store_result(result.id, 3, "SUCCESS")
    assert result.get(timeout=SOON) == 3


def test_result_is_forgotten_at_once_when_redis_has_ended(make_app: Any, redis: Any) -> None:
    server, url = redis()
    app = make_app(url, result_backend=url)
    result = app.send_task("program.add", (1, 2))

    server.stop()
    # From here on it is known that the connection is lost.
    assert send(app)
    began = time.monotonic()
    del result
    gc.collect()

    assert time.monotonic() - began < SOON


def test_only_senders_are_in_a_hurry(make_app: Any, redis_url: str) -> None:
    app = make_app(redis_url, result_backend=redis_url)

    reading = app.connection_for_read().transport_options
    writing = app.connection_for_write().transport_options

    assert "socket_timeout" not in reading
    assert writing["socket_timeout"] == 2.5
    assert app.backend.retry_policy["max_retries"] == 20
    assert app.backend.connparams["socket_timeout"] == 120.0


def test_settings_of_the_user_win(make_app: Any, redis_url: str) -> None:
    app = make_app(redis_url, broker_transport_options={"socket_timeout": 60})

    options = app.connection_for_write().transport_options

    assert options["socket_timeout"] == 60
    assert options["socket_connect_timeout"] == 2.5
