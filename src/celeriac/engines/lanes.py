"""Lanes: one for each form of each task in each queue, and from which of them a claimant takes.

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

#: What tells lanes apart: queue, task and form.
Name = tuple[str, str, str]


class Lane(NamedTuple):
    """Messages of one form, of one task, in one queue."""

    id: int
    queue: str
    task: str
    form: str
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


class Picture(NamedTuple):
    """The lanes as of one version. Threads share it: it is replaced as a whole."""

    version: int | None
    lanes: dict[Name, Lane]
    selections: dict[tuple[object, ...], list[Lane]]


class Lanes:
    """This process's picture of the lanes."""

    def __init__(self, sql: Mapping[str, str]) -> None:
        self._sql = sql
        self._picture = Picture(None, {}, {})

    def ensure(self, db: sqlite3.Connection, names: Iterable[Name]) -> Mapping[Name, Lane]:
        """Return the lanes, among them these, creating missing ones."""
        lanes = self._current(db).lanes
        missing = {name for name in names if name not in lanes}
        if not missing:
            return lanes
        self._create(db, missing)
        # What this transaction created may yet be undone: not to be kept in mind.
        return self._load(db)

    def select(self, db: sqlite3.Connection, intake: Intake) -> list[Lane]:
        """Return the lanes that a claimant may take from."""
        picture = self._current(db)
        key = (intake.queues, intake.tasks)
        lanes = picture.selections.get(key)
        if lanes is None:
            lanes = picture.selections[key] = [
                lane
                for lane in picture.lanes.values()
                if lane.queue in intake.queues
                and (intake.tasks is None or lane.task in intake.tasks)
            ]
        return lanes

    def _current(self, db: sqlite3.Connection) -> Picture:
        """Return the picture of what ``db`` sees, whose transaction must not have changed it."""
        picture = self._picture
        (version,) = db.execute(self._sql["lanes_version"]).fetchone()
        if version != picture.version:
            # Read in this order: outside of a transaction the lanes may be newer than the
            # version, never older, and are then read again at the next use.
            picture = self._picture = Picture(version, self._load(db), {})
        return picture

    def _load(self, db: sqlite3.Connection) -> dict[Name, Lane]:
        rows = map(Lane._make, db.execute(self._sql["lanes"]).fetchall())
        return {(lane.queue, lane.task, lane.form): lane for lane in rows}

    def _create(self, db: sqlite3.Connection, names: Iterable[Name]) -> None:
        for queue, task, form in names:
            db.execute(self._sql["create_queue"], {"name": queue, "now": time.time()})
            db.execute(self._sql["create_lane"], {"queue": queue, "task": task, "form": form})
