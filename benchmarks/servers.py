"""The servers that contenders need: are they there, what they cost, and leaving them clean.

Environment variables name others than those on this machine. What a server costs is known only
of one on this machine; Redis tells it itself.
"""

from __future__ import annotations

import abc
import contextlib
import os
import socket
from typing import Any
from urllib.parse import urlsplit

import psutil

REDIS_URL = os.environ.get("BENCHMARK_REDIS_URL", "redis://127.0.0.1:6379/7")
RABBITMQ_URL = os.environ.get("BENCHMARK_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")
#: The database is created for each trial, and dropped.
POSTGRESQL_URL = os.environ.get(
    "BENCHMARK_POSTGRESQL_URL", "postgresql://postgres@127.0.0.1:5432/celeriac_benchmark"
)

#: The name of the queue, and of the exchange, of contenders that share a server with others.
QUEUE = "benchmark"


class Server(abc.ABC):
    """A server on this machine, most likely."""

    #: What to say if it is not there.
    variable: str
    port: int

    def __init__(self, url: str) -> None:
        self.url = url

    def missing(self) -> str:
        """Return why it can not be used, or nothing."""
        address = urlsplit(self.url)
        place = address.hostname or "127.0.0.1", address.port or self.port
        try:
            socket.create_connection(place, timeout=2).close()
        except OSError as error:
            where = f"{place[0]}:{place[1]}"
            why = error.strerror or error
            return f"no server at {where} ({why}): name one in {self.variable}"
        return ""

    @abc.abstractmethod
    def describe(self) -> str:
        """Return its version, and what decides how durable it is."""

    @abc.abstractmethod
    def refuse_used(self) -> None:
        """Raise :exc:`ValueError` if emptying it would destroy what is somebody's."""

    @abc.abstractmethod
    def empty(self) -> None:
        """Delete all that a trial leaves."""

    @abc.abstractmethod
    def processes(self) -> list[psutil.Process]:
        """Return its processes, as far as they are on this machine."""

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used."""
        return sum(times.user + times.system for times in _of_living(self.processes(), "cpu_times"))

    def memory(self) -> float:
        """Return its memory in MB, each shared page divided among its users if that is known."""
        return sum(map(_memory, self.processes()))


class Redis(Server):
    """One database of it, which must be nobody else's."""

    variable = "BENCHMARK_REDIS_URL"
    port = 6379

    def describe(self) -> str:
        client = connect_redis(self.url)
        settings = {name: client.config_get(name)[name] for name in ("appendonly", "save")}
        return _described(client.info("server")["redis_version"], settings)

    def refuse_used(self) -> None:
        if connect_redis(self.url).dbsize():
            raise ValueError(
                f"{self.url} is not empty, and this benchmark empties the database it uses: "
                f"name an empty one in {self.variable}"
            )

    def empty(self) -> None:
        connect_redis(self.url).flushdb()

    def processes(self) -> list[psutil.Process]:
        return _named("redis-server")

    def cpu_seconds(self) -> float:
        info = connect_redis(self.url).info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    def memory(self) -> float:
        return float(connect_redis(self.url).info("memory")["used_memory_rss"]) / 1e6


class RabbitMQ(Server):
    """One queue and its exchange."""

    variable = "BENCHMARK_AMQP_URL"
    port = 5672

    def describe(self) -> str:
        from kombu import Connection

        with Connection(self.url) as connection:
            return _described(connection.connection.server_properties["version"], {})

    def refuse_used(self) -> None:
        return

    def empty(self) -> None:
        from kombu import Connection

        with Connection(self.url) as connection, connection.channel() as channel:
            channel.queue_delete(QUEUE)
            channel.exchange_delete(QUEUE)

    def processes(self) -> list[psutil.Process]:
        return _named("beam.smp")


class PostgreSQL(Server):
    """A database that lives as long as a trial."""

    variable = "BENCHMARK_POSTGRESQL_URL"
    port = 5432

    def describe(self) -> str:
        with self._administer() as connection:
            settings = {
                name: connection.execute(f"SHOW {name}").fetchone()[0]
                for name in ("server_version", "fsync", "synchronous_commit")
            }
        return _described(settings.pop("server_version"), settings)

    def refuse_used(self) -> None:
        with self._administer() as connection:
            found = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(found, (self._database,)).fetchone():
                raise ValueError(
                    f"{self.url} exists, and this benchmark drops the database it uses: "
                    f"name one that does not exist in {self.variable}"
                )

    def empty(self) -> None:
        with self._administer() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{self._database}" WITH (FORCE)')

    def create(self) -> None:
        """Create the database."""
        with self._administer() as connection:
            connection.execute(f'CREATE DATABASE "{self._database}"')

    def processes(self) -> list[psutil.Process]:
        return _named("postgres")

    @property
    def _database(self) -> str:
        return urlsplit(self.url).path.removeprefix("/")

    def _administer(self) -> Any:
        import psycopg

        return psycopg.connect(self.url, dbname="postgres", autocommit=True)


SERVERS: dict[str, Server] = {
    "redis": Redis(REDIS_URL),
    "rabbitmq": RabbitMQ(RABBITMQ_URL),
    "postgresql": PostgreSQL(POSTGRESQL_URL),
}


def connect_redis(url: str) -> Any:
    """Return a client for one Redis database."""
    import redis

    return redis.Redis.from_url(url)


def _described(version: str, settings: dict[str, str]) -> str:
    return " ".join(
        [version, *(f"({name} {value or 'never'})" for name, value in settings.items())]
    )


def _named(name: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["name"]) if process.info["name"] == name]


def _of_living(processes: list[psutil.Process], method: str) -> list[Any]:
    values = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            values.append(getattr(process, method)())
    return values


def _memory(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 1e6
    except psutil.AccessDenied:
        return float(process.memory_info().rss) / 1e6
    except psutil.NoSuchProcess:
        return 0.0
