"""Who is measured, each at its documented best settings with one worker command."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

REDIS_URL = os.environ.get("BENCHMARK_REDIS_URL", "redis://127.0.0.1:6379/7")

#: Two children, and for stock Celery the flags that make it fastest: no chatter between
#: workers, larger prefetch. Rate limits are off in ``apps/stock.py``.
CHILDREN = 2
_TUNED = ("--without-gossip", "--without-mingle", "--without-heartbeat")


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    name: str
    title: str
    #: What survives of a task whose ``delay()`` returned.
    durability: str
    #: Which class of ``queues`` talks to it.
    kind: str
    broker: str
    results: str
    app: str = ""
    flags: tuple[str, ...] = ()
    #: Its part of ``--tasks``: the slow ones get fewer, to take seconds and not minutes.
    scale: float = 1.0
    synchronous: str = field(default="", repr=False)

    def urls(self, folder: Path) -> tuple[str, str]:
        """Return its broker and result backend URLs, with files in ``folder``."""
        return self.broker.format(folder=folder), self.results.format(folder=folder)

    def environment(self, folder: Path) -> dict[str, str]:
        """Return what the contender's program reads from its environment."""
        broker, results = self.urls(folder)
        return {"BENCHMARK_BROKER_URL": broker, "BENCHMARK_RESULT_BACKEND": results}

    def worker_command(self, folder: Path) -> list[str]:
        """Return the command that starts its worker."""
        if self.kind == "limit":
            return [sys.executable, "-m", "benchmarks.limit", str(folder), self.synchronous]
        command = [sys.executable, "-m", "celery", "-A", self.app, "worker"]
        return [*command, "-c", str(CHILDREN), "-l", "WARNING", *self.flags]


def _celeriac(durability: str, survives: str) -> Contender:
    url = "sqlite:///{folder}/queue.sqlite3?durability=" + durability
    return Contender(
        name=f"celeriac-{durability}",
        title=f"Celeriac, SQLite, `{durability}`",
        durability=survives,
        kind="celeriac",
        broker=url,
        results=url,
        app="benchmarks.apps.celeriac_app",
    )


def _limit(synchronous: str, survives: str) -> Contender:
    return Contender(
        name=f"limit-{synchronous}",
        title=f"raw `sqlite3`, `{synchronous}`",
        durability=survives,
        kind="limit",
        broker="{folder}/queue.sqlite3",
        results="{folder}/queue.sqlite3",
        synchronous=synchronous,
    )


CONTENDERS = (
    _celeriac("full", "power loss"),
    _celeriac("normal", "process death"),
    Contender(
        name="celery-redis",
        title="Celery, Redis",
        durability="nothing (Redis in memory)",
        kind="redis",
        broker=REDIS_URL,
        results=REDIS_URL,
        app="benchmarks.apps.stock",
        flags=(*_TUNED, "--prefetch-multiplier", "16"),
        scale=0.25,
    ),
    Contender(
        name="celery-sqlalchemy",
        title="Celery, SQLAlchemy transport, SQLite",
        durability="power loss",
        kind="sqlalchemy",
        broker="sqla+sqlite:///{folder}/broker.sqlite3",
        results="db+sqlite:///{folder}/results.sqlite3",
        app="benchmarks.apps.stock",
        flags=(*_TUNED, "--prefetch-multiplier", "16"),
        scale=0.05,
    ),
    _limit("full", "power loss"),
    _limit("normal", "process death"),
)

BY_NAME = {contender.name: contender for contender in CONTENDERS}
