"""What users are told of a queue that can not be used, where they meet it.

What is wrong with arguments is told in ``test_extension.py``, with settings in
``test_config.py``, and with places in ``engines/test_place.py``.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import celery as stock
import pytest
from celery.exceptions import ImproperlyConfigured
from flask import Flask
from kombu.exceptions import OperationalError
from programs import celery_command
from programs import Program
from programs import run

from celeriac import make_celery
from celeriac.engines import EngineConfigurationError
from celeriac.engines import EngineError
from celeriac.engines import open_engine

PROJECT = """
from flask import Flask
from celeriac import make_celery

flask_app = Flask("proj", instance_path={folder!r})
flask_app.config["CELERY_BROKER_URL"] = {url!r}
celery = make_celery(flask_app)

@celery.task()
def ping():
    return "pong"
"""

Send = Callable[[str], Any]


def echo(text: str) -> str:
    return text


def by_celeriac(url: str, folder: Path) -> Any:
    flask_app = Flask("shop", instance_path=str(folder))
    flask_app.config["CELERY_BROKER_URL"] = url
    return make_celery(flask_app)


def by_stock_celery(url: str, folder: Path) -> Any:
    return stock.Celery("shop", broker=url, backend=url, set_as_current=False)


@pytest.fixture(params=[by_celeriac, by_stock_celery])
def send(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Send]:
    """Return a function that makes an app for a URL, and calls the ``delay()`` of a task."""
    apps = []

    def send(url: str) -> Any:
        app = request.param(url, tmp_path / "instance")
        apps.append(app)
        return app.task(echo).delay("text")

    yield send
    for app in apps:
        app.close()


def missing_folder(path: Path) -> tuple[Path, str]:
    path = path.with_name("missing") / "queue.db"
    return path, (
        f"The folder {path.parent} of the queue file does not exist. Create it, or name another "
        "file in broker_url."
    )


def a_folder(path: Path) -> tuple[Path, str]:
    path.mkdir()
    return path, (f"{path} is a folder, and the queue needs a file. Name a file in broker_url.")


def corrupt_file(path: Path) -> tuple[Path, str]:
    path.write_bytes(b"no database" * 100)
    return path, (
        f"The queue file {path} is damaged (file is not a database). Stop the workers, keep a "
        f"copy, and try 'sqlite3 {path} .recover | sqlite3 recovered.sqlite3'; or move it away, "
        "and an empty one is made."
    )


def file_of_another_program(path: Path) -> tuple[Path, str]:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE users (name)")
    return path, (
        f"{path} is a SQLite database of another program. The queue needs a file of its own: name "
        "another one in broker_url, for example sqlite:///celeriac.sqlite3."
    )


def file_of_a_newer_version(path: Path) -> tuple[Path, str]:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA application_id = {int.from_bytes(b'Clrc', 'big')}")
        db.execute("PRAGMA user_version = 99")
    return path, (
        f"The queue file {path} has schema version 99, and this version of Celeriac knows up to 5. "
        "Upgrade Celeriac, or use another queue file."
    )


def unwritable_file(path: Path) -> tuple[Path, str]:
    # A place that even root can not write.
    path = Path("/proc/queue.db")
    return path, (
        f"The queue file {path} can not be written: No such file or directory. Give the user that "
        "runs the application and its workers write access to /proc and the files in it, or name "
        "another file in broker_url."
    )


BAD_FILES = [
    missing_folder,
    a_folder,
    corrupt_file,
    file_of_another_program,
    file_of_a_newer_version,
    unwritable_file,
]


@pytest.mark.parametrize("bad", BAD_FILES)
def test_delay_tells_what_is_wrong_with_the_queue_file(
    bad: Callable[[Path], tuple[Path, str]], tmp_path: Path, send: Send
) -> None:
    path, message = bad(tmp_path / "queue.db")

    with pytest.raises(OperationalError) as caught:
        send(f"sqlite:///{path}")

    assert str(caught.value) == message


@pytest.mark.parametrize("bad", BAD_FILES)
def test_results_tell_what_is_wrong_with_the_queue_file(
    bad: Callable[[Path], tuple[Path, str]], tmp_path: Path
) -> None:
    path, message = bad(tmp_path / "queue.db")
    celery = by_celeriac(f"sqlite:///{path}", tmp_path)

    with pytest.raises(EngineError) as caught:
        celery.AsyncResult("some-id").get(timeout=5)

    assert str(caught.value) == message
    celery.close()


def test_app_of_a_queue_that_can_not_be_used_is_made_all_the_same(tmp_path: Path) -> None:
    # `flask routes` must work on a machine where the queue does not.
    path, _ = corrupt_file(tmp_path / "queue.db")

    by_celeriac(f"sqlite:///{path}", tmp_path).close()


@pytest.mark.parametrize("bad", [corrupt_file, file_of_a_newer_version, missing_folder])
def test_worker_ends_and_tells_what_is_wrong_with_the_queue_file(
    bad: Callable[[Path], tuple[Path, str]], tmp_path: Path, worker: Callable[..., Program]
) -> None:
    path, message = bad(tmp_path / "queue.db")
    url = f"sqlite:///{path}"
    (tmp_path / "proj.py").write_text(PROJECT.format(folder=str(tmp_path), url=url))

    program = worker("-A", "proj", "-c", "1", wait=False)

    assert program.wait() == 1
    assert message in program.log


def test_inspect_tells_what_is_wrong_with_the_queue_file(tmp_path: Path) -> None:
    path, message = corrupt_file(tmp_path / "queue.db")
    url = f"sqlite:///{path}"
    (tmp_path / "proj.py").write_text(PROJECT.format(folder=str(tmp_path), url=url))

    done = run(celery_command("-A", "proj", "inspect", "ping"), cwd=tmp_path, check=False)

    assert done.returncode != 0
    assert message in done.stdout + done.stderr


# A queue that is not to be had at the moment


@pytest.fixture
def foreign_lock(queue_path: Path) -> Iterator[sqlite3.Connection]:
    """Hold the write lock of a queue file, as a backup or a curious user would."""
    open_engine(f"sqlite:///{queue_path}").queue_sizes()
    with closing(
        sqlite3.connect(queue_path, isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def test_delay_into_a_locked_queue_raises_and_stores_nothing(
    queue_path: Path, foreign_lock: sqlite3.Connection, send: Send
) -> None:
    began = time.monotonic()

    with pytest.raises(OperationalError) as caught:
        send(f"sqlite:///{queue_path}?busy_timeout=0.3")

    assert str(caught.value) == (
        f"The queue file {queue_path} stayed locked for 0.3 s. Another program holds a transaction "
        "open on it: only Celeriac should write to this file."
    )
    assert 0.3 <= time.monotonic() - began < 5
    assert open_engine(f"sqlite:///{queue_path}").list_tasks() == []


def test_delay_waits_for_a_lock_that_is_given_up(
    queue_path: Path, foreign_lock: sqlite3.Connection, send: Send
) -> None:
    timer = threading.Timer(0.5, foreign_lock.execute, ("COMMIT",))
    timer.start()

    result = send(f"sqlite:///{queue_path}")

    timer.join()
    tasks = open_engine(f"sqlite:///{queue_path}").list_tasks()
    assert [task.task_id for task in tasks] == [result.id]


def test_delay_onto_a_full_disk_raises_and_stores_nothing(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    celery = by_celeriac(f"sqlite:///{path}", tmp_path)
    task = celery.task(echo)
    task.delay("before")
    engine = open_engine(celery.conf.broker_url)
    connection = engine._connections.get()  # type: ignore[attr-defined]
    connection.db.execute("PRAGMA max_page_count = 60")

    with pytest.raises(OperationalError) as caught:
        task.delay("x" * 500_000)

    assert str(caught.value) == (
        f"There is no room left for the queue file {path}. Nothing was written. Free some space on "
        "its disk; workers go on by themselves."
    )
    task.delay("after")
    assert engine.queue_sizes() == {"celery": 2}
    celery.close()


# URLs


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        (
            "sqlite:///:memory:",
            EngineConfigurationError,
            "sqlite:///:memory: names no file. Write sqlite:///queue.sqlite3 for a file in the "
            "instance folder, sqlite:////var/lib/app/queue.sqlite3 for an absolute path. A queue "
            "in memory could not be reached by a worker; for tests use a temporary file.",
        ),
        (
            "sqlite:////var/queue.db?durabilty=full",
            EngineConfigurationError,
            "durabilty=full in sqlite:////var/queue.db?durabilty=full is not understood. The "
            "options are durability=full, durability=normal, busy_timeout=<seconds> and "
            "max_size=<bytes>, such as 500MB or 2GB, at least 1MB.",
        ),
        (
            "sqllite:///queue.db",
            ImproperlyConfigured,
            "broker_url is a sqllite:// URL, which neither Celery nor Celeriac knows: did you mean "
            "sqlite://? With sqlite:/// no server is needed.",
        ),
        (
            "zookeeper://localhost",
            ImproperlyConfigured,
            "broker_url is a zookeeper:// URL, and the package kazoo is not installed: pip install "
            "'celery[zookeeper]'.",
        ),
    ],
)
def test_a_url_that_can_not_work_is_refused_when_the_app_is_made(
    url: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        by_celeriac(url, tmp_path)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    "url", ["sqlite:///:memory:", "sqlite:////var/queue.db?durabilty=full", "sqlite://host/q.db"]
)
def test_a_url_that_can_not_work_is_told_by_stock_celery_at_delay(url: str, tmp_path: Path) -> None:
    app = stock.Celery("shop", broker=url, set_as_current=False)

    with pytest.raises(OperationalError, match=r"names no file|is not understood"):
        app.task(echo).delay("text")

    app.close()
