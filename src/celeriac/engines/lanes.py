"""Lanes: one for each task in each queue, and which of them a claimant may choose from.

They are few and seldom change, so each process keeps them in mind and asks only whether they
are still the same.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple


class Lane(NamedTuple):
    """One task in one queue."""

    id: int
    queue: str
    task: str
    #: The queue's own time to live for messages (seconds).
    message_ttl: float | None


class Intake(NamedTuple):
    """What a claimant takes in."""

    queues: tuple[str, ...]
    #: ``None`` takes any.
    tasks: frozenset[str] | None
    #: Seconds between two starts of a task, over all workers.
    rates: Mapping[str, float]

    @classmethod
    def of(
        cls,
        queues: Sequence[str],
        tasks: Collection[str] | None,
        rates: Mapping[str, float] | None,
    ) -> Intake:
        """Return the intake that the arguments of :meth:`Engine.claim` describe."""
        if tasks is not None and not isinstance(tasks, frozenset):
            tasks = frozenset(tasks)
        return cls(tuple(queues), tasks, rates or {})


class Lanes:
    """This process's picture of the lanes."""

    def __init__(self, sql: Mapping[str, str]) -> None:
        self._sql = sql
        self.forget()

    def forget(self) -> None:
        """Read the lanes anew at the next use."""
        self._version: object = None
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._selections: dict[tuple[object, ...], list[Lane]] = {}

    def ensure(
        self, db: sqlite3.Connection, names: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], tuple[int, float | None]]:
        """Return id and time to live of lanes given by queue and task, creating missing ones."""
        self._refresh(db)
        lanes = self._lanes
        missing = [name for name in names if name not in lanes]
        if missing:
            self._create(db, missing)
            lanes = self._load(db)
            # What this transaction created may yet be undone: not to be kept in mind.
            self.forget()
        return {name: (lane.id, lane.message_ttl) for name, lane in lanes.items()}

    def select(self, db: sqlite3.Connection, intake: Intake) -> list[Lane]:
        """Return the lanes that a claimant may take from."""
        self._refresh(db)
        key = (intake.queues, intake.tasks)
        lanes = self._selections.get(key)
        if lanes is None:
            lanes = self._selections[key] = [
                lane
                for lane in self._lanes.values()
                if lane.queue in intake.queues
                and (intake.tasks is None or lane.task in intake.tasks)
            ]
        return lanes

    def _refresh(self, db: sqlite3.Connection) -> None:
        version = db.execute(self._sql["lanes_version"]).fetchone()
        if version != self._version:
            lanes = self._load(db)
            self._selections, self._lanes, self._version = {}, lanes, version

    def _load(self, db: sqlite3.Connection) -> dict[tuple[str, str], Lane]:
        rows = map(Lane._make, db.execute(self._sql["lanes"]).fetchall())
        return {(lane.queue, lane.task): lane for lane in rows}

    def _create(self, db: sqlite3.Connection, names: Iterable[tuple[str, str]]) -> None:
        for queue, task in names:
            db.execute(self._sql["create_queue"], {"name": queue, "now": time.time()})
            db.execute(self._sql["create_lane"], {"queue": queue, "task": task})
