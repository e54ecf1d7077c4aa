"""A plugin for pytest that runs a part of Celery's suite, with a worker as its column has it.

The suite's fixture starts the worker of the session in a thread of pytest's own process, through
:func:`celery.contrib.testing.worker.start_worker`. For SQLite this is replaced: by one that runs
``celery worker``, or, for the tests that look into the worker, by one that makes it ours.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import closing
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.upstream import known

# Environment variables by which :mod:`.column` says what is to be done.
COLUMN = "UPSTREAM_COLUMN"
WORKER = "UPSTREAM_WORKER"
#: Which of how many, such as "2/4".
SHARE = "UPSTREAM_SHARE"
FOLDER = "UPSTREAM_FOLDER"


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Outcomes(_folder() / "outcomes"))
    if os.environ[COLUMN] == known.SQLITE:
        _prepare_for_sqlite()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep this part's share of the tests that are for its worker."""
    number, count = map(int, os.environ[SHARE].split("/"))
    here = [each for each in items if _worker_of(each) == os.environ[WORKER]][number - 1 :: count]
    config.hook.pytest_deselected(items=[each for each in items if each not in here])
    items[:] = here
    for each in items:
        reason = known.NOT_APPLICABLE.get(known.function_of(known.name(each.nodeid)))
        if reason and os.environ[COLUMN] == known.SQLITE:
            each.add_marker(pytest.mark.skip(reason=reason))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let a test wait for results, also after one that made a worker in this process."""
    from celery._state import _set_task_join_will_block

    _set_task_join_will_block(False)


def _worker_of(item: pytest.Item) -> str:
    return known.worker_of(os.environ[COLUMN], known.name(item.nodeid))


def _folder() -> Path:
    return Path(os.environ[FOLDER])


class _Outcomes:
    """Writes a line of JSON for each test as soon as it is over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reports: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(report)
        if report.when != "teardown":
            return
        with self._path.open("a") as file:
            file.write(json.dumps(_outcome(self._reports)) + "\n")
        self._reports.clear()


def _outcome(reports: list[pytest.TestReport]) -> dict[str, Any]:
    """Return what became of one test, or of one try of it that is to be repeated."""
    outcomes = {report.outcome for report in reports}
    worst = next(each for each in ("failed", "rerun", "skipped", "passed") if each in outcomes)
    told = next((report for report in reports if report.outcome == worst), reports[0])
    is_xfail = any(hasattr(report, "wasxfail") for report in reports)
    return {
        "name": known.name(told.nodeid),
        "outcome": "xfailed" if is_xfail and worst == "skipped" else worst,
        "seconds": round(sum(report.duration for report in reports), 1),
        "message": _message(told),
    }


def _message(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # A skipped test: file, line, reason.
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr or "")[:2000]


# The worker


def _prepare_for_sqlite() -> None:
    from celery.contrib.testing import worker
    from celery.worker import state

    if os.environ[WORKER] == known.PROCESS:
        worker.start_worker = start_process
        state.successful_requests = _Finished()
        state.revoked_stamps = _RevokedStamps()
    else:
        # What makes the worker ours; the command line loads it.
        import celeriac.commands  # noqa: F401

        worker.start_worker = _start_thread(worker.start_worker)


def _start_thread(start_worker: Any) -> Any:
    def start(app: Any, pool: str, **kwargs: Any) -> AbstractContextManager[Any]:
        if os.environ[WORKER] == known.THREADS:
            pool = "threads"
        return start_worker(app, pool=pool, **kwargs)

    return start


@contextmanager
def start_process(app: Any, pool: str, **kwargs: Any) -> Iterator[None]:
    """Run ``celery worker`` for an app, with what Celery's own function gives its worker."""
    from celery.contrib.testing.tasks import ping
    from celery.result import allow_join_result
    from celery.utils.nodenames import anon_nodename

    settings = _folder() / "settings.json"
    settings.write_text(json.dumps(_changes(app)))
    command = f"celery -A tests.upstream.application worker -P {pool} -c 1 -l INFO"
    command += f" -n {anon_nodename()} --without-heartbeat --without-mingle --without-gossip"
    with (_folder() / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            env={**os.environ, "UPSTREAM_SETTINGS": str(settings)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with allow_join_result():
            assert ping.delay().get(timeout=60) == "pong"
        yield
        assert process.poll() is None, f"the worker ended by itself; see {_folder()}/worker.log"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _changes(app: Any) -> dict[str, Any]:
    """Return the settings that are not Celery's defaults."""
    from celery.app.defaults import DEFAULTS

    changes = {name: app.conf[name] for name in DEFAULTS if app.conf[name] != DEFAULTS[name]}
    return {
        name: sorted(value) if isinstance(value, set) else value for name, value in changes.items()
    }


class _Finished:
    """Stands for :data:`celery.worker.state.successful_requests`, in the worker's memory.

    Tests look there to learn that a task is done. The queue file knows it as well.
    """

    def __contains__(self, task_id: str) -> bool:
        from celeriac.engines import open_engine

        return not open_engine(os.environ["TEST_BROKER"]).list_tasks(task_ids=[task_id])


class _RevokedStamps:
    """Stands for :data:`celery.worker.state.revoked_stamps`.

    Tests empty it, so that the next may run what an earlier one called off. With us revocations
    last, and nothing but this takes them back.
    """

    def clear(self) -> None:
        path = os.environ["TEST_BROKER"].removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("DELETE FROM celeriac_revoked_stamps")
