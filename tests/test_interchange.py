"""Messages of one kind are run by workers of the other, and no secret travels with them."""

from __future__ import annotations

import json
import sqlite3
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from flask import Flask
from programs import celery_command
from programs import Program
from programs import run

from celeriac import make_celery

SOON = 10
CANARY = "canary-3f9c1d"

STOCK = """
    from celery import Celery, chord

    app = Celery("stock", broker={url!r}, backend={url!r})

    @app.task
    def add(x, y):
        return x + y

    @app.task
    def total(numbers):
        return sum(numbers)

    if __name__ == "__main__":
        print(add.delay(20, 3).get(timeout=10))
        print(chord([add.s(1, 1), add.s(2, 2)])(total.s()).get(timeout=10))
"""

OVER_RPC = """
    from celeriac import make_celery
    from flask import Flask

    flask_app = Flask("over_rpc")
    flask_app.config["CELERY"] = {{"broker_url": {url!r}, "result_backend": "rpc://"}}
    app = make_celery(flask_app)

    @app.task
    def add(x, y):
        return x + y

    if __name__ == "__main__":
        print(add.delay(20, 3).get(timeout=10))
"""


@pytest.fixture
def stock_module(tmp_path: Path, queue_url: str) -> Path:
    """Write a program of Celery's own making, which never imports Celeriac."""
    module = tmp_path / "stock.py"
    module.write_text(textwrap.dedent(STOCK).format(url=queue_url))
    return module


def test_results_come_over_rpc_through_the_queue_file(
    worker: Callable[..., Program], tmp_path: Path, queue_url: str
) -> None:
    module = tmp_path / "over_rpc.py"
    module.write_text(textwrap.dedent(OVER_RPC).format(url=queue_url))
    worker("-A", "over_rpc", "-c", "1")

    assert run([*celery_command()[:1], module], cwd=tmp_path).stdout.split() == ["23"]


def test_program_that_never_imports_celeriac_gets_our_worker(
    worker: Callable[..., Program], stock_module: Path, tmp_path: Path
) -> None:
    running = worker("-A", "stock", "-c", "1")

    assert run([*celery_command()[:1], stock_module], cwd=tmp_path).stdout.split() == ["23", "6"]
    told = run(celery_command("-A", "stock", "inspect", "-t", "1", "-j", "stats"), cwd=tmp_path)
    (stats,) = json.loads(told.stdout).values()
    assert stats["pool"]["implementation"] == "celeriac.worker.prefork:ProcessPool"
    assert "(prefork)" in running.log


def test_message_of_the_short_way_is_run_by_a_stock_worker(
    worker: Callable[..., Program], stock_module: Path, queue_url: str, tmp_path: Path
) -> None:
    flask_app = Flask("stock")
    flask_app.config["CELERY"] = {"broker_url": queue_url, "result_backend": queue_url}
    celery = make_celery(flask_app)

    @celery.task(name="stock.add")
    def add(x: int, y: int) -> int:
        raise AssertionError("the worker's own is run")

    result = add.delay(1, 2)
    # The parts that Celery's own worker is made of.
    conf = "--without-gossip --without-mingle".split()
    stock_module.write_text(
        stock_module.read_text()
        + "\napp.conf.worker_consumer = 'stock:Consumer'\n"
        + "from celery.worker.consumer import Consumer as _Consumer\n"
        + "class Consumer(_Consumer):\n    pass\n"
    )

    worker("-A", "stock", "-c", "1", *conf)

    assert result.get(timeout=SOON) == 3
    told = run(celery_command("-A", "stock", "inspect", "-t", "1", "-j", "stats"), cwd=tmp_path)
    (stats,) = json.loads(told.stdout).values()
    assert stats["pool"]["implementation"] == "celery.concurrency.prefork:TaskPool"
    celery.close()


@pytest.fixture
def logging_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what a worker in this process sets for its children undone."""
    for name in ("CELERY_LOG_FILE", "CELERY_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
    for name in ("FILE", "FORMAT", "LEVEL"):
        monkeypatch.setenv(f"_MP_FORK_LOG{name}_", "")


@pytest.mark.usefixtures("logging_variables")
def test_worker_inside_a_test_keeps_its_stock_parts(queue_url: str) -> None:
    app = Celery("inside", broker=queue_url, backend=queue_url, set_as_current=False)

    @app.task(name="inside.add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="celery.ping")
    def ping() -> str:
        return "pong"

    with start_worker(app, perform_ping_check=False, shutdown_timeout=SOON):
        assert add.delay(1, 2).get(timeout=SOON) == 3
    app.close()


def test_message_of_a_stock_producer_is_run_by_our_worker(
    worker: Callable[..., Program], stock_module: Path, queue_url: str
) -> None:
    worker("-A", "stock", "-c", "1")
    app = Celery("elsewhere", broker=queue_url, backend=queue_url, set_as_current=False)

    by_name = app.send_task("stock.add", (1, 2))
    with app.connection_for_write() as connection:
        producer = connection.Producer()
        message = app.amqp.as_task_v2("by-hand", "stock.add", args=(3, 4))
        producer.publish(
            message.body, routing_key="celery", headers=message.headers, **message.properties
        )
        compressed = app.send_task("stock.add", (5, 6), compression="gzip")

    assert by_name.get(timeout=SOON) == 3
    assert app.AsyncResult("by-hand").get(timeout=SOON) == 7
    assert compressed.get(timeout=SOON) == 11
    app.close()


def test_secret_of_the_flask_app_goes_nowhere(
    worker: Callable[..., Program], tmp_path: Path
) -> None:
    (tmp_path / "secretive.py").write_text(
        textwrap.dedent(
            f"""
            from flask import Flask
            from celeriac import make_celery

            flask_app = Flask(__name__, instance_path={str(tmp_path / "instance")!r})
            flask_app.config.update(SECRET_KEY={CANARY!r}, MAIL_PASSWORD={CANARY!r})
            celery = make_celery(flask_app)

            @celery.task(bind=True)
            def look(self):
                return {CANARY!r} in str(dict(self.app.conf)) + str(vars(self.request))

            if __name__ == "__main__":
                print(look.delay().get(timeout=10), {CANARY!r} in str(celery.conf.table()))
            """
        )
    )
    running = worker("-A", "secretive.celery", "-c", "1", "-l", "DEBUG")

    printed = run([*celery_command()[:1], tmp_path / "secretive.py"], cwd=tmp_path).stdout
    told: list[str] = []
    for command in ("conf", "report", "stats", "active_queues"):
        arguments = celery_command("-A", "secretive.celery", "inspect", "-t", "1", command)
        told.append(run(arguments, cwd=tmp_path).stdout)

    assert printed.split() == ["False", "False"]
    assert CANARY not in "".join(told) + running.log
    assert CANARY not in everything_in(tmp_path / "instance" / "celeriac.sqlite3")


def everything_in(path: Path) -> str:
    """Return all rows of a database, and its files as they are."""
    with sqlite3.connect(path) as db:
        dump = "\n".join(db.iterdump())
    db.close()
    for file in path.parent.glob(f"{path.name}*"):
        if file.is_file():
            dump += file.read_bytes().decode("latin-1")
    return dump
