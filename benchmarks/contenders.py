"""Who is measured, each at its documented best settings, with two processes for the work."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.servers import POSTGRESQL_URL
from benchmarks.servers import QUEUE
from benchmarks.servers import RABBITMQ_URL
from benchmarks.servers import REDIS_URL
from benchmarks.servers import SERVERS

if TYPE_CHECKING:
    from benchmarks.queues.base import Queue

#: Processes that run tasks, of every contender.
CHILDREN = 2

_IN_MEMORY = "nothing (Redis in memory)"


@dataclass(frozen=True)
class Contender:
    """One row of the tables."""

    name: str
    title: str
    #: What survives of a task that was enqueued: the call returned.
    durability: str
    #: The class that talks to it, as ``module:class`` below ``benchmarks.queues``.
    queue: str
    #: What follows ``python -m`` to start a worker. ``{folder}`` is where its files are,
    #: ``{number}`` tells apart the workers that are started side by side.
    command: tuple[str, ...]
    broker: str
    results: str
    #: How often the command is started: twice for those whose one worker is one process.
    workers: int = 1
    #: Names in ``servers.SERVERS``.
    servers: tuple[str, ...] = ()
    #: What must be installed beside Celeriac.
    packages: tuple[str, ...] = ()
    #: Its part of ``--tasks``: the slow ones get fewer, to take seconds and not minutes.
    scale: float = 1.0

    def urls(self, folder: Path) -> tuple[str, str]:
        """Return its broker and result backend URLs, with files in ``folder``."""
        return self.broker.format(folder=folder), self.results.format(folder=folder)

    def environment(self, folder: Path) -> dict[str, str]:
        """Return what the contender's program reads from its environment."""
        broker, results = self.urls(folder)
        return {"BENCHMARK_BROKER_URL": broker, "BENCHMARK_RESULT_BACKEND": results}

    def commands(self, folder: Path) -> list[list[str]]:
        """Return the commands that start its workers."""
        return [
            [sys.executable, "-m", *(part.format(folder=folder, number=n) for part in self.command)]
            for n in range(self.workers)
        ]

    def open(self, folder: Path) -> Queue:
        """Return the producer's side of it. Its environment must be set."""
        module, _, name = self.queue.partition(":")
        kind = getattr(importlib.import_module(f"benchmarks.queues.{module}"), name)
        queue: Queue = kind(self, folder)
        return queue

    def missing(self) -> Iterator[str]:
        """Yield why it can not be measured here."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                yield f"{package} is not installed"
        for name in self.servers:
            if reason := SERVERS[name].missing():
                yield reason


def _celeriac(durability: str, survives: str) -> Contender:
    url = "sqlite:///{folder}/queue.sqlite3?durability=" + durability
    app = "benchmarks.apps.celeriac_app"
    return Contender(
        name=f"celeriac-{durability}",
        title=f"Celeriac, SQLite, `{durability}`",
        durability=survives,
        queue="celery:CeleriacQueue",
        command=("celery", "-A", app, "worker", "-c", str(CHILDREN), "-l", "WARNING"),
        broker=url,
        results=url,
    )


#: The flags that make stock Celery fastest: no chatter between workers, larger prefetch.
#: Rate limits are off in ``apps/stock.py``.
_STOCK = (
    *("celery", "-A", "benchmarks.apps.stock", "worker", "-l", "WARNING"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    *("--prefetch-multiplier", "16"),
)
#: Faster than prefork, which hands every task over a pipe, but two commands and no time limits.
_SOLO = (*_STOCK, "-P", "solo", "-n", "worker{number}@%h")

_CELERY_REDIS = Contender(
    name="celery-redis",
    title="Celery, Redis",
    durability=_IN_MEMORY,
    queue="celery:RedisResultsQueue",
    command=(*_STOCK, "-c", str(CHILDREN)),
    broker=REDIS_URL,
    results=REDIS_URL,
    servers=("redis",),
    packages=("redis",),
    scale=0.25,
)
_CELERY_RABBITMQ = replace(
    _CELERY_REDIS,
    name="celery-rabbitmq",
    title="Celery, RabbitMQ",
    durability="process death, but for the last moments (no confirms)",
    broker=RABBITMQ_URL,
    servers=("rabbitmq", "redis"),
    packages=("redis", "amqp"),
)
_HUEY_REDIS = Contender(
    name="huey-redis",
    title="Huey, Redis",
    durability=_IN_MEMORY,
    queue="huey:RedisHueyQueue",
    command=(
        *("huey.bin.huey_consumer", "benchmarks.apps.huey_app.huey", "-q"),
        *("-w", str(CHILDREN), "-k", "process"),
    ),
    broker=REDIS_URL,
    results=REDIS_URL,
    servers=("redis",),
    packages=("huey", "redis"),
    scale=0.5,
)


def _solo(contender: Contender) -> Contender:
    return replace(
        contender,
        name=f"{contender.name}-solo",
        title=f"{contender.title}, two solo workers",
        command=_SOLO,
        workers=CHILDREN,
    )


def _limit(synchronous: str, survives: str) -> Contender:
    return Contender(
        name=f"limit-{synchronous}",
        title=f"raw `sqlite3`, `{synchronous}`",
        durability=survives,
        queue="limit:LimitQueue",
        command=("benchmarks.limit", "{folder}", synchronous),
        broker=synchronous,
        results="",
    )


CONTENDERS = (
    _celeriac("full", "power loss"),
    _celeriac("normal", "process death"),
    _CELERY_REDIS,
    _solo(_CELERY_REDIS),
    _CELERY_RABBITMQ,
    _solo(_CELERY_RABBITMQ),
    replace(
        _CELERY_REDIS,
        name="celery-sqlalchemy",
        title="Celery, SQLAlchemy transport, SQLite",
        durability="power loss",
        queue="celery:SQLAlchemyQueue",
        broker="sqla+sqlite:///{folder}/broker.sqlite3",
        results="db+sqlite:///{folder}/results.sqlite3",
        servers=(),
        packages=("sqlalchemy",),
        scale=0.05,
    ),
    replace(
        _HUEY_REDIS,
        name="huey-sqlite",
        title="Huey, SQLite",
        durability="power loss",
        queue="huey:SqliteHueyQueue",
        # It polls: as shipped each 100 ms and then ever less, which is 40 ms more for each task.
        command=(*_HUEY_REDIS.command, "-d", "0.005", "-m", "0.01"),
        broker="{folder}/huey.sqlite3",
        results="{folder}/huey.sqlite3",
        servers=(),
        packages=("huey",),
    ),
    _HUEY_REDIS,
    Contender(
        name="rq",
        title="RQ, Redis, simple workers",
        durability=_IN_MEMORY,
        queue="rq:RQQueue",
        command=(
            *("rq.cli", "worker-pool", QUEUE, "-u", REDIS_URL, "-q", "-n", str(CHILDREN)),
            # Without its fork for each job, which costs 25 ms.
            *("-w", "rq.worker.SimpleWorker"),
        ),
        broker=REDIS_URL,
        results=REDIS_URL,
        servers=("redis",),
        packages=("rq",),
        scale=0.1,
    ),
    Contender(
        name="dramatiq",
        title="Dramatiq, Redis",
        durability=_IN_MEMORY,
        queue="dramatiq:DramatiqQueue",
        command=("dramatiq", "benchmarks.apps.dramatiq_app", "-p", str(CHILDREN), "-t", "8"),
        broker=REDIS_URL,
        results=REDIS_URL,
        servers=("redis",),
        packages=("dramatiq", "redis"),
        scale=0.5,
    ),
    Contender(
        name="taskiq",
        title="TaskIQ, Redis stream",
        durability=_IN_MEMORY,
        queue="taskiq:TaskIQQueue",
        command=(
            *("taskiq", "worker", "benchmarks.apps.taskiq_app:broker", "-w", str(CHILDREN)),
            *("--no-parse", "--log-level", "WARNING"),
        ),
        broker=REDIS_URL,
        results=REDIS_URL,
        servers=("redis",),
        packages=("taskiq", "taskiq_redis"),
        scale=0.5,
    ),
    Contender(
        name="saq",
        title="SAQ, Redis",
        durability=_IN_MEMORY,
        queue="saq:SAQQueue",
        command=("saq", "benchmarks.apps.saq_app.settings", "-q"),
        broker=REDIS_URL,
        results=REDIS_URL,
        workers=CHILDREN,
        servers=("redis",),
        packages=("saq", "redis"),
        scale=0.5,
    ),
    Contender(
        name="procrastinate",
        title="Procrastinate, PostgreSQL (no results)",
        durability="power loss",
        queue="procrastinate:ProcrastinateQueue",
        command=(
            *("procrastinate", "--log-level", "warning"),
            *("--app", "benchmarks.apps.procrastinate_app.app", "worker", "--concurrency", "10"),
        ),
        broker=POSTGRESQL_URL,
        results="{folder}/answers",
        workers=CHILDREN,
        servers=("postgresql",),
        packages=("procrastinate", "psycopg"),
        scale=0.1,
    ),
    _limit("full", "power loss"),
    _limit("normal", "process death"),
)

BY_NAME = {contender.name: contender for contender in CONTENDERS}
