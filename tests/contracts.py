"""A program with a task for each promise that Celery makes, and its workers."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import kombu.pools
from celery import _state
from kombu import Connection
from programs import celery_command
from programs import Program
from waiting import wait_until

HERE = Path(__file__).parent / "contract"
#: By what the scheme of its URL says, the broker of a contract.
BROKERS = {"sqlite": "sqlite", "redis": "redis", "amqp": "rabbitmq"}


class Contract:
    """The program as its caller sees it, with what it wrote into its journal.

    :param results: where they are kept, if not in the broker.
    :param queue: begins the name of every queue and exchange, for brokers that tests share.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        pool: str,
        *,
        results: str | None = None,
        queue: str = "celery",
    ) -> None:
        self.folder, self.url, self.pool, self.queue = folder, url, pool, queue
        self.broker = BROKERS[url.partition("://")[0]]
        self.env = {
            "CONTRACT_FOLDER": str(folder),
            "CONTRACT_URL": url,
            "CONTRACT_RESULTS": results or url,
            "CONTRACT_QUEUE": queue,
            # Celery refuses to take pickles as root otherwise, and containers have no other user.
            "C_FORCE_ROOT": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        }
        #: The one that was started last.
        self.worker: Program | None = None
        self._started = 0
        self._new_queues: list[str] = []
        self.program: Any = self._load()

    def start(
        self,
        *options: str,
        name: str = "worker",
        conf: Mapping[str, Any] | None = None,
        ready: Path | None = None,
    ) -> Program:
        """Start a worker and wait until it is ready.

        :param conf: more settings.
        :param ready: the file that says so, if that is not its output.
        """
        command = celery_command(
            "-A", "contract_program", "worker", "-n", f"{name}@contract", "-l", "INFO", *options
        )
        log_path = self.folder / f"{name}-{self._started}.out"
        self._started += 1
        env = {**self.env, "CONTRACT_CONF": json.dumps(conf or {})}
        started = Program(command, log_path=log_path, cwd=self.folder, env=env)
        self.worker = started
        if ready is None:
            started.wait_for_log(" ready.")
        else:
            wait_until(lambda: ready.exists() and " ready." in ready.read_text())
        return started

    def journal(self, *words: object) -> list[list[str]]:
        """Return the words of each line of the journal that has all of ``words``."""
        path = self.folder / "journal"
        lines = path.read_text().splitlines() if path.exists() else []
        wanted = set(map(str, words))
        return [line.split() for line in lines if wanted <= set(line.split())]

    def new_key(self) -> str:
        """Return the name of something that no other test waits for or writes."""
        return uuid.uuid4().hex[:8]

    def new_queue(self) -> str:
        """Return the name of a queue that no other test uses, and no worker yet."""
        self._new_queues.append(f"{self.queue}-{self.new_key()}")
        return self._new_queues[-1]

    def let_go(self, key: str) -> None:
        """Let the tasks that wait for ``key`` end."""
        (self.folder / key).touch()

    def wait_for(self, *words: object, timeout: float = 5.0) -> list[str]:
        """Wait for a line with all of ``words`` in the journal, and return its words."""
        return wait_until(
            lambda: self.journal(*words), timeout, message=lambda: f"{words} in the journal"
        )[0]

    def close(self) -> None:
        """Close the program's connections, and delete what it declared on a broker of others."""
        app = self.program.celery
        if self.broker != "sqlite":
            app.backend.result_consumer.stop()
            app.backend.client.close()
            kombu.pools.reset()
        app.close()
        if self.broker == "rabbitmq":
            queues = [queue.name for queue in app.amqp.queues.values()]
            exchanges = [queue.exchange.name for queue in app.amqp.queues.values()]
            exchanges += [f"{self.queue}ev", f"{self.queue}.pidbox", f"reply.{self.queue}.pidbox"]
            with Connection(self.url) as connection:
                for queue in [*queues, *self._new_queues]:
                    connection.default_channel.queue_delete(queue)
                for name in [*exchanges, *self._new_queues]:
                    connection.default_channel.exchange_delete(name)

    def _load(self) -> ModuleType:
        shared = set(_state._on_app_finalizers)
        names = [name for name in self.env if name.startswith("CONTRACT_")]
        os.environ.update({name: self.env[name] for name in names})
        try:
            path = HERE / "contract_program.py"
            spec = importlib.util.spec_from_file_location("contract_program", path)
            assert spec is not None and spec.loader is not None
            program = importlib.util.module_from_spec(spec)
            sys.modules["contract_program"] = program
            spec.loader.exec_module(program)
            program.celery.finalize()
            return program
        finally:
            # Or the next app of this process would have the tasks of this one.
            _state._on_app_finalizers.intersection_update(shared)
            for name in names:
                del os.environ[name]


def make_contract(folder: Path, pool: str, **options: Any) -> Contract:
    """Return a contract over a queue file of its own."""
    return Contract(folder, f"sqlite:///{folder}/queue.sqlite3?durability=normal", pool, **options)
