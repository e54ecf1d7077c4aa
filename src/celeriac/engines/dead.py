"""Dead letters: set aside, put back and deleted, within the transactions of those who do so.

A dead letter is a message like any other, in no queue. What it was set aside for, and how it is
shown to users, is in :mod:`celeriac.dead`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

from .base import Aside
from .base import Outcome


class Dead:
    """The dead letters of one queue file."""

    def __init__(self, sql: Mapping[str, str]) -> None:
        self._sql = sql

    def set_aside(self, db: sqlite3.Connection, outcomes: Iterable[Outcome], now: float) -> None:
        """Keep messages whose claims have ended, out of their queues."""
        for outcome in outcomes:
            tag, aside = outcome.delivery.tag, outcome.aside or Aside("", "null")
            tags = json.dumps([tag])
            db.execute(self._sql["insert_dead"], (tag, aside.reason, now))
            db.execute(self._sql["mark_redelivered"], (int(aside.died), tags))
            db.execute(self._sql["add_report"], (aside.report, tags))
            db.execute(self._sql["forget_expiry"], (tags,))

    def end(self, db: sqlite3.Connection, tags: Collection[int]) -> list[int]:
        """Take these from among the dead; return those that were there."""
        rows = db.execute(self._sql["end_dead"], (json.dumps(list(tags)),)).fetchall()
        return [tag for (tag,) in rows]

    def renew(
        self, db: sqlite3.Connection, tags: Collection[int], forget: Sequence[str]
    ) -> list[str]:
        """Let these begin anew, failures forgotten; return the queue that each is for."""
        listed = json.dumps(list(tags))
        db.execute(self._sql["renew"], (listed,))
        db.execute(self._sql["forget_failures"], (listed, json.dumps(list(forget))))
        return [queue for (queue,) in db.execute(self._sql["queues_of"], (listed,))]

    def delete(self, db: sqlite3.Connection, tags: Collection[int]) -> int:
        """Delete these; return how many there were."""
        ended = self.end(db, tags)
        db.execute(self._sql["delete_messages"], (json.dumps(ended),))
        return len(ended)

    def expire(self, db: sqlite3.Connection, before: float) -> int:
        """Delete a share of those that died before; return how many."""
        rows = db.execute(self._sql["expire_dead"], (before,)).fetchall()
        db.execute(self._sql["delete_messages"], (json.dumps([tag for (tag,) in rows]),))
        return len(rows)
