"""Workers: who they are, who of them lives, and what the dead ones held.

A row of the queue file says what a worker is; that it lives is told by the machine's kernel
(:mod:`.presence`).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

from .base import Delivery
from .base import EngineError
from .base import ITSELF
from .base import Lost
from .base import Worker
from .connections import Connections
from .transactions import Transactions

#: A worker whose presence file somebody removed counts as dead after so long without a heartbeat
#: (seconds).
SILENCE = 60.0


class Workers:
    """The workers of one queue file."""

    def __init__(
        self, sql: Mapping[str, str], transactions: Transactions, connections: Connections
    ) -> None:
        self._sql = sql
        self._write, self._rows = transactions.write, transactions.rows
        self._connections = connections
        # Those that this process introduced, in case their rows get lost.
        self._introduced: dict[str, Worker] = {}

    def register(self, worker: Worker) -> None:
        """Make the calling process known as a worker."""
        fields = {
            "id": worker.id,
            "hostname": worker.hostname,
            "pid": worker.pid,
            "queues": json.dumps(list(worker.queues)),
            "tasks": json.dumps(sorted(worker.tasks)),
            "concurrency": worker.concurrency,
            "now": time.time(),
        }
        self._connections.presence().hold(worker.id)
        with self._write(durable=False) as db:
            self._touch_queues(db, worker.id)
            db.execute(self._sql["register"], fields)
        self._introduced[worker.id] = worker

    def heartbeat(self, worker_id: str) -> None:
        """Say that the worker lives."""
        with self._write(durable=False) as db:
            known = db.execute(self._sql["heartbeat"], (time.time(), worker_id)).rowcount
        worker = self._introduced.get(worker_id)
        if not known and worker is not None:  # The queue file was replaced, say.
            self.register(worker)

    def deregister(self, worker_id: str) -> None:
        """Forget the worker, unless it holds deliveries."""
        self._introduced.pop(worker_id, None)
        presence = self._connections.presence()
        presence.leave(worker_id)
        with self._write(durable=False) as db:
            self._touch_queues(db, worker_id)
            db.execute(self._sql["deregister"], (worker_id,))
            gone = not db.execute(self._sql["worker_number"], (worker_id,)).fetchall()
        if gone:
            # Until then it tells that those are dead whose claims wait to be judged.
            presence.remove(worker_id)

    def lost(self, worker_id: str | None, slot: int | None) -> list[Lost]:
        """Return the deliveries whose claimant is dead."""
        lost: list[Lost] = []
        for number, place, claimant, hostname, heartbeat_at in self._rows("claimants"):
            if worker_id is not None:
                dead = (claimant, place) == (worker_id, slot)
            else:
                dead = claimant is None or not self._is_alive(claimant, place, heartbeat_at)
            if dead:
                held = self._rows("held_by", (number, place))
                lost += [
                    Lost(delivery_of(row), claimant or "", place, hostname or "") for row in held
                ]
        return lost

    def known(self) -> list[Worker]:
        """Return the workers that are known."""
        return [
            _worker(row, self._is_alive(row[0], ITSELF, row[-1])) for row in self._rows("workers")
        ]

    def forget_dead(self) -> set[str]:
        """Forget the dead; return the queues that the living consume."""
        workers = self.known()
        # What a dead worker's child still runs, or nobody has taken over yet, keeps it known.
        claimants = {claimant for _, _, claimant, *_ in self._rows("claimants")}
        for worker in workers:
            if not worker.alive and worker.id not in claimants:
                self.deregister(worker.id)
        return {queue for worker in workers if worker.alive for queue in worker.queues}

    def remove_strays(self) -> None:
        """Remove the presence files of workers that died before they were known."""
        presence = self._connections.presence()
        for worker_id in set(presence.list()) - {worker.id for worker in self.known()}:
            if presence.is_alive(worker_id) is False:
                presence.remove(worker_id)

    def number(self, db: sqlite3.Connection, worker_id: str) -> int:
        """Return the number by which claims name the worker."""
        # Not kept in mind: claims of a worker whose row is gone would at once count as lost.
        rows = db.execute(self._sql["worker_number"], (worker_id,)).fetchall()
        if not rows:
            raise EngineError(f"Worker {worker_id} is not registered: call register() first.")
        return int(rows[0][0])

    def _is_alive(self, worker_id: str, slot: int, heartbeat_at: float) -> bool:
        alive = self._connections.presence().is_alive(worker_id, slot)
        # Somebody removed the file that would tell: killing a task that runs would be worse than
        # to find out late.
        return heartbeat_at > time.time() - SILENCE if alive is None else alive

    def _touch_queues(self, db: sqlite3.Connection, worker_id: str) -> None:
        """Note that the queues which the worker consumed until now were in use."""
        for (queues,) in db.execute(self._sql["worker_queues"], (worker_id,)).fetchall():
            db.execute(self._sql["touch_queues"], (time.time(), queues))


def delivery_of(row: Any) -> Delivery:
    """Return a row of ``celeriac_claimed`` as its claimant gets it."""
    return Delivery._make((*row[:9], bool(row[9]), *row[10:]))


def _worker(row: Any, alive: bool) -> Worker:
    id, hostname, pid, queues, tasks, concurrency, started_at, heartbeat_at = row
    known = (json.loads(queues), frozenset(json.loads(tasks)), concurrency)
    return Worker(id, hostname, pid, *known, started_at, heartbeat_at, alive)
