"""The suite on one broker, which is the result backend as well, and a worker on it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from . import known

ROOT = Path(__file__).parents[2]


class Outcome(NamedTuple):
    """What became of a test."""

    name: str
    #: passed, failed, skipped, xfailed; ``rerun`` for a try that is repeated.
    outcome: str
    seconds: float
    message: str


class Part(NamedTuple):
    """A share of the tests that have the same worker, with a broker of its own."""

    worker: str
    number: int = 1
    count: int = 1

    @property
    def name(self) -> str:
        return f"{self.worker}-{self.number}"


#: The suite mostly waits, so its parts are run side by side.
_PARTS = {
    known.REDIS: [Part(known.THREAD, number, 4) for number in (1, 2, 3, 4)],
    known.SQLITE: [
        *(Part(known.PROCESS, number, 4) for number in (1, 2, 3, 4)),
        Part(known.THREAD),
        Part(known.THREADS),
    ],
}


class Column(NamedTuple):
    """The suite on one broker, and where its parts leave what they have to say."""

    name: str
    title: str
    folder: Path

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """What is known so far, by the name of the test; the last try counts."""
        lines = [
            line
            for path in sorted(self.folder.glob("*/outcomes"))
            for line in path.read_text().splitlines()
        ]
        return {each.name: each for each in (Outcome(**json.loads(line)) for line in lines)}

    @property
    def failures(self) -> list[Path]:
        """The logs of the parts that were not run to their end."""
        paths = [self.folder / part.name for part in _PARTS[self.name]]
        return [path / "log" for path in paths if not (path / "ended").exists()]

    def start(self, python: str, suite: Path, options: Sequence[str]) -> list[threading.Thread]:
        """Start to run the suite; return the threads that do."""
        threads = [
            threading.Thread(target=self._run, args=(part, python, suite, options))
            for part in _PARTS[self.name]
        ]
        for thread in threads:
            thread.start()
        return threads

    def _run(self, part: Part, python: str, suite: Path, options: Sequence[str]) -> None:
        folder = self.folder / part.name
        folder.mkdir()
        with _redis(folder) as port, (folder / "log").open("w") as log:
            redis = f"redis://127.0.0.1:{port}/0"
            url = redis if self.name == known.REDIS else f"sqlite:///{folder}/queue.sqlite3"
            environment = {
                **os.environ,
                # The suite itself starts `celery`.
                "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                # As where Celery's maintainers run it.
                "WORKER_LOGLEVEL": "INFO",
                "TEST_BROKER": url,
                "TEST_BACKEND": url,
                # Where its tasks note what they did, whatever the broker.
                "REDIS_HOST": "127.0.0.1",
                "REDIS_PORT": str(port),
                "UPSTREAM_COLUMN": self.name,
                "UPSTREAM_WORKER": part.worker,
                "UPSTREAM_SHARE": f"{part.number}/{part.count}",
                "UPSTREAM_FOLDER": str(folder),
            }
            ended = subprocess.run(
                [python, *_PYTEST, "--timeout=300", *options],
                cwd=suite,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        # With tests passed or failed, or none chosen.
        if ended.returncode in (0, 1, 5):
            (folder / "ended").touch()


_PYTEST = (
    "-m pytest -v -p no:cacheprovider -p celery.contrib.pytest -p tests.upstream.plugin "
    # Of Azure, whose client is not installed.
    "t/integration --ignore t/integration/test_backend.py"
).split()


@contextmanager
def _redis(folder: Path) -> Iterator[int]:
    """Run a Redis of this column's own, since the suite counts what there is in it."""
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("The suite needs Redis, also for what its tasks note: install redis-server.")
    port = _free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / "redis.log").open("w") as log:
        server = subprocess.Popen([program, *options], stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 20
        while not _is_listening(port) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _is_listening(port: int) -> bool:
    with socket.socket() as caller:
        caller.settimeout(1)
        return caller.connect_ex(("127.0.0.1", port)) == 0
