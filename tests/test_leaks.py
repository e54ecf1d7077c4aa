"""The checks that end every test find what they are there for."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import flask
import pytest
from leaks import Leaks


@pytest.fixture
def leaks() -> Leaks:
    return Leaks(pytest.MonkeyPatch(), grace=0.05)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_nothing_left_behind_is_fine(leaks: Leaks) -> None:
    leaks.check()


def test_thread_is_found(leaks: Leaks, release: threading.Event) -> None:
    threading.Thread(target=release.wait, name="forgotten").start()

    with pytest.raises(pytest.fail.Exception, match="forgotten"):
        leaks.check()


def test_process_is_found_and_killed(leaks: Leaks) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    with pytest.raises(pytest.fail.Exception, match=f"process {child.pid}"):
        leaks.check()

    child.communicate(timeout=5)
    assert child.returncode == -9


def test_open_database_is_found(leaks: Leaks, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "forgotten.sqlite3")
    connection.execute("CREATE TABLE t (a)")

    with pytest.raises(pytest.fail.Exception, match=r"connection to .*forgotten\.sqlite3"):
        leaks.check()

    connection.close()


def test_app_context_is_found_and_popped(leaks: Leaks) -> None:
    flask.Flask("forgotten").app_context().push()

    with pytest.raises(pytest.fail.Exception, match="app context of forgotten"):
        leaks.check()

    assert not flask.has_app_context()


def test_environment_variable_is_found_and_restored(leaks: Leaks) -> None:
    os.environ["FORGOTTEN"] = "1"

    with pytest.raises(pytest.fail.Exception, match="environment variable FORGOTTEN: '1'"):
        leaks.check()

    assert "FORGOTTEN" not in os.environ
