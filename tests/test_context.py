"""The app context spans the whole task, whatever runs it."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask_sqlalchemy
import kombu.pools
import pytest
from celery import signals
from flask import current_app
from flask import Flask
from flask import g
from flask import has_app_context

from celeriac import Celeriac
from celeriac import make_celery
from celeriac.context import app_context
from celeriac.task import Task


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    app = Flask("shop", instance_path=str(tmp_path))
    app.config.update(CELERY_BROKER_URL="memory://", CELERY_RESULT_BACKEND="cache+memory://")
    return app


@pytest.fixture
def celery(app: Flask) -> Celeriac:
    return make_celery(app)


@pytest.fixture
def torn_down(app: Flask) -> list[Any]:
    errors: list[Any] = []
    app.teardown_appcontext(errors.append)
    return errors


# The context by itself


def test_context_is_pushed_and_popped(app: Flask, torn_down: list[Any]) -> None:
    with app_context(app):
        assert current_app == app
        assert torn_down == []

    assert not has_app_context()
    assert torn_down == [None]


def test_active_context_of_the_same_app_is_kept(app: Flask, torn_down: list[Any]) -> None:
    with app.app_context():
        g.user = "me"
        with app_context(app):
            assert g.user == "me"
        assert torn_down == []


def test_context_of_another_app_is_covered(app: Flask) -> None:
    with Flask("other").app_context():
        with app_context(app):
            assert current_app.name == "shop"
        assert current_app.name == "other"


def test_teardown_is_told_the_error(app: Flask, torn_down: list[Any]) -> None:
    error = ValueError("no")

    with pytest.raises(ValueError, match="no"), app_context(app):
        raise error

    assert torn_down == [error]


def test_failing_teardown_is_logged_and_hides_nothing(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    @app.teardown_appcontext
    def fail(error: BaseException | None) -> None:
        raise RuntimeError("teardown failed")

    with app_context(app):
        outcome = 65

    assert outcome == 65
    assert not has_app_context()
    assert [record.getMessage() for record in caplog.records] == [
        "Teardown of the app context of 'shop' failed"
    ]


# Around tasks that Celery traces


class Observed(Task[..., Any]):
    """Notes, wherever a task may hook in, whether there is a context."""

    seen: list[tuple[str, Any]] = []

    def note(self, where: str) -> None:
        self.seen.append((where, current_app.name if has_app_context() else None))

    def before_start(self, *args: Any) -> None:
        g.started = True
        self.note("before_start")

    def on_success(self, *args: Any) -> None:
        self.note("on_success")

    def on_failure(self, *args: Any) -> None:
        self.note("on_failure")

    def after_return(self, *args: Any) -> None:
        assert g.started
        self.note("after_return")


@pytest.fixture
def seen() -> Iterator[list[tuple[str, Any]]]:
    Observed.seen.clear()
    yield Observed.seen
    Observed.seen.clear()


def test_context_spans_the_whole_task(
    celery: Celeriac, seen: list[tuple[str, Any]], torn_down: list[Any]
) -> None:
    @celery.task(base=Observed, bind=True)
    def run(self: Observed) -> bool:
        self.note("run")
        return bool(g.started)

    assert run.apply().get() is True
    places = ["before_start", "run", "on_success", "after_return"]
    assert seen == [(place, "shop") for place in places]
    assert torn_down == [None]
    assert not has_app_context()


def test_failed_task_tells_teardown_its_error(
    celery: Celeriac, seen: list[tuple[str, Any]], torn_down: list[Any]
) -> None:
    error = ValueError("no")

    @celery.task(base=Observed)
    def run() -> None:
        raise error

    assert run.apply().result is error
    assert seen == [(place, "shop") for place in ("before_start", "on_failure", "after_return")]
    assert torn_down == [error]


def test_failing_teardown_does_not_hide_the_result(
    app: Flask, celery: Celeriac, caplog: pytest.LogCaptureFixture
) -> None:
    @app.teardown_appcontext
    def fail(error: BaseException | None) -> None:
        raise RuntimeError("teardown failed")

    @celery.task
    def add(a: int, b: int) -> int:
        return a + b

    assert add.apply((23, 42)).get() == 65
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_task_of_a_request_keeps_the_context_of_the_request(
    app: Flask, celery: Celeriac, torn_down: list[Any]
) -> None:
    @celery.task
    def user() -> str:
        return str(g.user)

    with app.app_context():
        g.user = "me"
        assert user.apply().get() == "me"
        assert torn_down == []


def test_tasks_within_tasks_keep_their_context(celery: Celeriac, torn_down: list[Any]) -> None:
    @celery.task(bind=True)
    def nested(self: Task[..., Any], depth: int) -> int:
        g.depth = g.get("depth", 0) + 1
        if depth:
            self.apply((depth - 1,))
            self(depth - 1)
        return int(g.depth)

    assert nested.apply((2,)).get() == 7
    assert torn_down == [None]


SHOP = """\
import sys
from celery import signals
from flask import Flask, current_app, g
from flask_sqlalchemy import SQLAlchemy
from celeriac import make_celery
from celeriac.task import Task

app = Flask("shop", instance_path=sys.path[0])
app.config["CELERY"] = {{"broker_url": {url!r}, "result_backend": {url!r}}}
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///app.db"
celery = make_celery(app)
database = SQLAlchemy(app)

def connection_id():
    with database.engine.connect() as connection:
        return id(connection.connection.dbapi_connection)

with app.app_context():
    # Held, so that no other connection can have its id.
    held = database.engine.raw_connection()
    parents = id(held.dbapi_connection)
    held.close()

@app.teardown_appcontext
def fail(error):
    raise RuntimeError("teardown failed with %r" % error)

class Hooked(Task):
    def before_start(self, *args):
        g.hooks = ["before_start in " + current_app.name]

    def after_return(self, *args):
        g.hooks.append("after_return in " + current_app.name)
        print(g.hooks)

@celery.task(base=Hooked)
def name():
    return current_app.name, connection_id() == parents
"""


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
@pytest.mark.parametrize("broker", ["sqlite", "redis"])
def test_worker_runs_whole_tasks_in_a_context(
    broker: str, pool: str, tmp_path: Path, worker: Any, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue({"sqlite": "queue_url", "redis": "redis_url"}[broker])
    (tmp_path / "shop.py").write_text(SHOP.format(url=url))
    program = worker("-A", "shop.celery", "-c", "1", "-P", pool, cwd=tmp_path)
    client = Celeriac(broker=url, backend=url)

    found, uses_the_parents_connection = client.send_task("shop.name").get(timeout=10)

    assert found == "shop"
    assert not (pool == "prefork" and uses_the_parents_connection)
    program.wait_for_log("['before_start in shop', 'after_return in shop']")
    program.wait_for_log("RuntimeError: teardown failed with None")
    client.close()
    if broker == "redis":  # Celery leaves these connections to the garbage collector.
        client.backend.client.connection_pool.disconnect()
        kombu.pools.reset()


# After a fork


def test_new_child_leaves_inherited_connections_alone(app: Flask) -> None:
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///app.db"
    database = flask_sqlalchemy.SQLAlchemy(app)
    make_celery(app)

    def connection_id() -> int:
        with app.app_context(), database.engine.connect() as connection:
            return id(connection.connection.dbapi_connection)

    def in_child(answer: Any) -> None:
        inherited = connection_id()
        signals.worker_process_init.send(sender=None)
        answer.send((inherited, connection_id()))

    mine = connection_id()
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=in_child, args=(send,))
    child.start()
    inherited, fresh = receive.recv()
    child.join()

    assert inherited == mine
    assert fresh != mine
    with app.app_context():
        database.engine.dispose()
