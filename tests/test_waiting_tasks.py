"""A thousand tasks that wait, side by side in one worker that was given 1,024 open files."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery import group
from celery import signature
from programs import Program
from waiting import wait_until

from celeriac.engines import open_engine
from celeriac.engines.place import parse_url

#: Each takes a second. All at once take two; all one after another, a quarter of an hour.
MANY = 1000
SOON = 30

SHOP = """\
import asyncio, os, resource, time
from flask import Flask, current_app
from celeriac import make_celery

flask_app = Flask("shop", instance_path=os.getcwd())
flask_app.config["CELERY_BROKER_URL"] = os.environ["QUEUE"]
celery = make_celery(flask_app)

@celery.task(name="nap")
def nap(x):
    time.sleep(1)
    return [current_app.name, x]

@celery.task(name="nap_async")
async def nap_async(x):
    await asyncio.sleep(1)
    return [current_app.name, x]

@celery.task(name="files")
def files():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""

Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path, program: Start, queue_url: str) -> Start:
    """Start a worker with a limit of open files, as a shell sets it, and a pool."""
    (tmp_path / "shop.py").write_text(SHOP)
    celery = "-m celery -A shop worker -l WARNING"

    def start(limit: str, pool: str) -> Program:
        line = f"ulimit {limit}; exec {sys.executable} {celery} -P {pool} -c {MANY}"
        return program("sh", "-c", line, env={"QUEUE": queue_url})

    return start


@pytest.fixture
def client(queue_url: str) -> Celery:
    return Celery(broker=queue_url, backend=queue_url)


@pytest.mark.parametrize("pool", ["threads", "gevent"])
@pytest.mark.parametrize("name", ["nap", "nap_async"])
def test_a_thousand_tasks_wait_side_by_side(
    start: Start, client: Celery, pool: str, name: str
) -> None:
    worker = start("-Sn 1024", pool)

    naps: Any = (signature(name, (x,), app=client) for x in range(MANY))
    results = group(naps, app=client).apply_async()

    assert results.get(timeout=SOON) == [["shop", x] for x in range(MANY)]
    assert client.send_task("files").get(timeout=SOON) > 4 * MANY
    assert worker.stop() == 0
    assert "Error" not in worker.log


def test_threads_record_what_a_locked_file_kept_them_from_recording(
    tmp_path: Path, program: Start, queue_url: str
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    url = f"{queue_url}&busy_timeout=0.5"
    worker = program(
        *(
            sys.executable,
            "-m",
            "celery",
            "-A",
            "shop",
            "worker",
            "-l",
            "WARNING",
            "-P",
            "threads",
            "-c",
            "20",
        ),
        env={"QUEUE": url},
    )
    client = Celery(broker=queue_url, backend=queue_url)
    results = [client.send_task("nap", (x,)) for x in range(20)]
    wait_until(lambda: len(open_engine(queue_url).list_tasks(status="claimed")) == 20)

    path = parse_url(queue_url).path
    with closing(sqlite3.connect(path, isolation_level=None, timeout=SOON)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(3)
        other.execute("ROLLBACK")
    unlocked_at = time.monotonic()

    assert [result.get(timeout=SOON) for result in results] == [["shop", x] for x in range(20)]
    assert time.monotonic() - unlocked_at < 5
    assert worker.stop() == 0


def test_worker_says_that_it_may_open_too_few_files(start: Start, client: Celery) -> None:
    worker = start("-n 1024", "threads")

    assert client.send_task("nap", (1,)).get(timeout=SOON) == ["shop", 1]
    assert (
        "The worker may have 1024 files open, and 1000 tasks at once may need 4128. Start it with "
        "a lower -c, or raise the limit (ulimit -Hn, LimitNOFILE of systemd, --ulimit of Docker)\n"
    ) in worker.log
