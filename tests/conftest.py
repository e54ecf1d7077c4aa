"""Fixtures that all tests share, and the checks that nothing outlives its test."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import pytest
from celery import _state
from leaks import LASTING
from leaks import Leaks
from programs import celery_command
from programs import free_port
from programs import is_listening
from programs import Program

# Fast and safe enough: a test does not lose power.
DURABILITY = "durability=normal"


def pytest_configure() -> None:
    """Let programs be interrupted: a shell has what it runs in the background ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves threads, processes, files, contexts or variables behind.

    ``monkeypatch`` is asked for so that it undoes the test's variables *after* this looks at
    them; its own changes are no leaks.
    """
    leaks = Leaks(changed_by=monkeypatch)
    yield
    leaks.check()


@pytest.fixture(autouse=True)
def no_other_celery_app() -> Iterator[None]:
    """Let no test see the Celery app that another one made current, or its shared tasks.

    A program that lasts for the whole session is no test's current app, either.
    """
    shared = set(_state._on_app_finalizers)
    _state.default_app = _state._tls.current_app = None
    yield
    _state._on_app_finalizers.intersection_update(shared)
    _state.default_app = _state._tls.current_app = None


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a Celery program that a test ran in this process did to the loggers."""
    loggers = [logging.getLogger(name) for name in (None, "celery", "celeriac")]
    before = [(each, each.level, each.propagate, list(each.handlers)) for each in loggers]
    yield
    logging.captureWarnings(False)
    for each, level, propagate, handlers in before:
        each.setLevel(level)
        each.propagate = propagate
        each.handlers[:] = handlers


# Queues


@pytest.fixture
def queue_path(tmp_path: Path) -> Path:
    """Return where the queue file of this test will be."""
    return tmp_path / "queue.sqlite3"


@pytest.fixture
def queue_url(queue_path: Path) -> str:
    """Return the URL of a queue file of this test's own."""
    return f"sqlite:///{queue_path}?{DURABILITY}"


@pytest.fixture
def queue_name() -> str:
    """Return a name that no other test gives to a queue, for brokers that tests share."""
    return f"celeriac-test-{uuid.uuid4().hex[:12]}"


# Servers


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a Redis for these tests alone, so that they may flush it."""
    program = shutil.which("redis-server")
    if program is None:
        _unavailable("redis-server is not installed")
    folder = tmp_path_factory.mktemp("redis")
    port = free_port()
    options = f"--port {port} --bind 127.0.0.1 --save --appendonly no --dir {folder}".split()
    # redis-server takes an empty string for "never save".
    options.insert(options.index("--save") + 1, "")
    server = Program([program, *options], log_path=folder / "log")
    LASTING.add(server.pid)
    try:
        server.wait_for_log("Ready to accept connections")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.stop()


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """Return the URL of an empty Redis database."""
    import redis

    yield redis_server
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()


@pytest.fixture(scope="module")
def module_redis_url(redis_server: str) -> Iterator[str]:
    """Return the URL of a Redis database that is empty when a module's tests begin, and after."""
    import redis

    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
        yield redis_server
        client.flushall()


@pytest.fixture(scope="session")
def amqp_url() -> str:
    """Return the URL of a RabbitMQ, which is shared: use ``queue_name``, and delete it."""
    url = os.environ.get("CELERIAC_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")
    parts = urlsplit(url)
    if not is_listening(parts.port or 5672, parts.hostname or "127.0.0.1"):
        _unavailable("no RabbitMQ answers at CELERIAC_TEST_AMQP_URL, or on 127.0.0.1:5672")
    return url


def _unavailable(reason: str) -> NoReturn:
    """Skip on a laptop, fail where everything must be tested."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI is set")
    pytest.skip(reason)


# Programs


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start programs that are stopped when the test ends, their logs shown if it failed."""
    started: list[Program] = []

    def start(
        *command: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> Program:
        log_path = tmp_path / f"program-{len(started)}.log"
        started.append(Program(command, log_path=log_path, cwd=cwd or tmp_path, env=env))
        return started[-1]

    yield start
    _stop(started)


@pytest.fixture
def worker(program: Callable[..., Program]) -> Callable[..., Program]:
    """Start workers: ``worker("-A", "module", "-c", "2", cwd=…, env=…)`` returns a ready one.

    :param wait: give ``False`` to get it before it is ready.
    """

    def start(*args: str, wait: bool = True, **kwargs: object) -> Program:
        # Celery's own options come before the command, the worker's after it.
        before, after = (args[:2], args[2:]) if args[:1] == ("-A",) else ((), args)
        if not {"-l", "--loglevel"} & set(after):
            after = (*after, "-l", "INFO")
        started = program(*celery_command(*before, "worker", *after), **kwargs)
        if wait:
            started.wait_for_log(" ready.")
        return started

    return start


def _stop(programs: list[Program]) -> None:
    """Stop the programs, the last started first; fail if one has to be killed."""
    errors = []
    for started in reversed(programs):
        try:
            started.stop()
        except AssertionError as error:
            errors.append(error)
        # Shown by pytest if the test failed.
        print(f"--- {started.process.args} ended with {started.process.returncode}")
        print(started.log)
    if errors:
        raise errors[0]
