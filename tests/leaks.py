"""What a test may not leave behind, and how to find it."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from typing import Any

import flask
import psutil
import pytest
from waiting import wait_until

#: What ends by itself gets so many seconds.
GRACE = 2.0
#: Process ids of what fixtures of the whole session started; their children last like them.
LASTING: set[int] = set()

#: Written by pytest itself.
_VARIABLES = frozenset({"PYTEST_CURRENT_TEST"})
_DATABASES = (".sqlite3", ".sqlite3-wal", ".sqlite3-shm", ".db", ".db-wal", ".db-shm")


class Leaks:
    """What was there before a test, to be compared with what is there after it."""

    def __init__(self, changed_by: pytest.MonkeyPatch, grace: float = GRACE) -> None:
        self._monkeypatch = changed_by
        self._grace = grace
        self._threads = set(threading.enumerate())
        self._children = _children()
        self._databases = _open_databases()
        self._environment = _environment()

    def check(self) -> None:
        """Fail the test with a list of what it left behind."""
        self._monkeypatch.undo()
        _close_engines()
        found = [*self._variables(), *_contexts(), *self._running(), *self._files()]
        if found:
            pytest.fail("this test left behind:\n" + "\n".join(found), pytrace=False)

    def _variables(self) -> list[str]:
        now, then = _environment(), self._environment
        changed = sorted(name for name in {*now, *then} if now.get(name) != then.get(name))
        for name in changed:
            os.environ.pop(name, None)
            if name in then:
                os.environ[name] = then[name]
        return [f"environment variable {name}: {now.get(name)!r}" for name in changed]

    def _running(self) -> list[str]:
        """Return the threads and processes that do not end by themselves."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self._new_threads() + self._new_children(), self._grace)
        children = self._new_children()
        found = [f"thread {thread}" for thread in self._new_threads()]
        found += [f"process {child.pid} {_command(child)}" for child in children]
        for child in children:
            child.kill()
        return found

    def _files(self) -> list[str]:
        """Return the databases that are still open: connections are closed by name, not by luck."""
        found = _open_databases() - self._databases
        if found:
            # So that the next test is not blamed for it.
            gc.collect()
        return [f"connection to {path}" for path in sorted(found)]

    def _new_threads(self) -> list[Any]:
        return [thread for thread in threading.enumerate() if thread not in self._threads]

    def _new_children(self) -> list[Any]:
        return [child for child in _children() if child not in self._children]


def _contexts() -> list[str]:
    """Return the app contexts that are still pushed, and pop them."""
    found = []
    while flask.has_app_context():
        found.append(f"app context of {flask.current_app.name}")
        flask.globals.app_ctx._get_current_object().pop()  # type: ignore[attr-defined]
    return found


def _close_engines() -> None:
    from celeriac.engines import close_engines

    close_engines()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _VARIABLES}


def _children() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [child for child in found if not _is_lasting(child)]


def _is_lasting(process: psutil.Process) -> bool:
    try:
        return not LASTING.isdisjoint({process.pid, *(each.pid for each in process.parents())})
    except psutil.Error:  # It just ended.
        return True


def _open_databases() -> set[str]:
    return {file.path for file in psutil.Process().open_files() if file.path.endswith(_DATABASES)}


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "(ended)"
