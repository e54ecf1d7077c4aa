"""What deletes: queues, and by and by all that is over."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection
from collections.abc import Mapping

from .chords import Chords
from .dead import Dead
from .transactions import Transactions

#: How long an auto-delete queue may wait for its first consumer (seconds).
UNUSED = 60.0
#: How long a clean-up may go on, and how many rows each of its transactions deletes.
CLEAN_UP = 2.0
SHARE = 1000
#: How long chords wait for their parts, revocations for their messages, and dead letters for
#: somebody to see to them (seconds).
KEEP = 30 * 86400.0


class Upkeep:
    """Deletes from one queue file."""

    def __init__(
        self, sql: Mapping[str, str], transactions: Transactions, chords: Chords, dead: Dead
    ) -> None:
        self._sql = sql
        self._write = transactions.write
        self._chords = chords
        self._dead = dead

    def clean(self, used: Collection[str], now: float) -> None:
        """Delete what expired.

        :param used: the queues that somebody consumes.
        """
        with self._write(durable=False) as db:
            for name in ("expire_revoked", "expire_revoked_stamps"):
                db.execute(self._sql[name], (now - KEEP,))
            self._delete_unused(db, used, now)
            db.execute(self._sql["delete_stray_lanes"])
        self._expire(now)

    def purge(self, db: sqlite3.Connection, queue: str) -> int:
        """Delete the waiting and future messages of a queue; return how many."""
        tags = [
            tag
            for name in ("purge_ready", "purge_scheduled")
            for (tag,) in db.execute(self._sql[name], (queue,)).fetchall()
        ]
        db.execute(self._sql["delete_messages"], (json.dumps(tags),))
        return len(tags)

    def delete_queue(self, db: sqlite3.Connection, queue: str) -> None:
        """Delete a queue, its messages and its bindings."""
        self.purge(db, queue)
        for name in ("delete_queue", "delete_queue_bindings", "delete_lanes"):
            db.execute(self._sql[name], (queue,))

    def _delete_unused(self, db: sqlite3.Connection, used: Collection[str], now: float) -> None:
        """Delete the reply queues and mailboxes whose consumers are gone, and what expired."""
        idle = db.execute(self._sql["auto_delete_queues"], (now - UNUSED,)).fetchall()
        idle += db.execute(self._sql["idle_queues"], (now,)).fetchall()
        for queue in {name for (name,) in idle}.difference(used):
            self.delete_queue(db, queue)

    def _expire(self, now: float) -> None:
        """Delete what expired, a share at a time, so that nobody waits long for the lock."""
        deadline = time.monotonic() + CLEAN_UP
        more = True
        while more and time.monotonic() < deadline:
            with self._write(durable=False) as db:
                results = db.execute(self._sql["expire_results"], (now,)).rowcount
                groups = db.execute(self._sql["expire_groups"], (now,)).rowcount
                chords = db.execute(self._sql["expired_chords"], (now - KEEP,)).fetchall()
                for (group_id,) in chords:
                    self._chords.drop(db, group_id)
                letters = self._dead.expire(db, now - KEEP)
            more = max(results, groups, len(chords), letters) >= SHARE
            if more:
                time.sleep(0.001)
