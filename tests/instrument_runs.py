"""Runs of the instrumented program, on a queue file and on Redis, to be compared."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from programs import celery_command
from programs import Program
from programs import run

HERE = Path(__file__).parent / "instruments"

Records = list[tuple[str, Any]]


def record_both(folder: Path, instrument: str, pool: str, redis_url: str) -> dict[str, Records]:
    """Run the program on SQLite with our worker and on Redis with Celery's, side by side.

    :return: what the instrument recorded, by ``"sqlite"`` and ``"redis"``.
    """
    urls = {"sqlite": f"sqlite:///{folder}/queue.sqlite3?durability=normal", "redis": redis_url}
    runs = {
        name: _Run(folder / f"{instrument}-{pool}-{name}", instrument, pool, url)
        for name, url in urls.items()
    }
    try:
        for each in runs.values():
            each.call()
    finally:
        for each in runs.values():
            each.worker.stop()
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
    return {name: list(each.records()) for name, each in runs.items()}


class _Run:
    def __init__(self, folder: Path, instrument: str, pool: str, url: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.env = {
            "PROGRAM_FOLDER": str(folder),
            "PROGRAM_URL": url,
            "PROGRAM_INSTRUMENT": instrument,
            "PROGRAM_POOL": pool,
            "PYTHONPATH": os.pathsep.join(
                [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        }
        options = ["-c", "1", "-P", pool, "-l", "INFO", *(["-B"] if pool == "prefork" else [])]
        self.worker = Program(
            celery_command("-A", "instrumented.celery", "worker", *options),
            log_path=folder / "worker.log",
            cwd=folder,
            env=self.env,
        )

    def call(self) -> None:
        self.worker.wait_for_log(" ready.")
        code = "import instrumented; instrumented.call()"
        run([sys.executable, "-c", code], cwd=self.folder, env=self.env, timeout=50)

    def records(self) -> Iterator[tuple[str, Any]]:
        """Yield what was recorded, by whichever process."""
        for line in (self.folder / "records").read_text().splitlines():
            kind, fields = json.loads(line)
            yield kind, fields
