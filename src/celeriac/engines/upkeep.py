"""What deletes: queues, and by and by all that is over.

One worker of a machine does it at a time. It works in short transactions with pauses between, and
for a tenth of a second; when more is left then, it says so, and is to be called again soon. What
is deleted for its size, and how the file becomes smaller, is in :mod:`.space`.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager

from .chords import Chords
from .dead import Dead
from .place import Place
from .place import unwritable
from .space import Space
from .transactions import Transactions

#: How long an auto-delete queue may wait for its first consumer (seconds).
UNUSED = 60.0
#: How long a clean-up may go on, and how many rows each of its transactions deletes. The worker
#: that does it looks after its children between two.
CLEAN_UP = 0.1
SHARE = 1000
#: How long chords wait for their parts, revocations for their messages, and dead letters for
#: somebody to see to them (seconds).
KEEP = 30 * 86400.0


class Upkeep:
    """Deletes from one queue file."""

    def __init__(
        self,
        place: Place,
        sql: Mapping[str, str],
        transactions: Transactions,
        chords: Chords,
        dead: Dead,
    ) -> None:
        self._place = place
        self._sql = sql
        self._write = transactions.write
        self._chords = chords
        self._dead = dead
        self._space = Space(place, sql, transactions, dead)

    def clean(self, used: Collection[str], now: float) -> bool:
        """Delete what expired and what is too much; say whether more is left to delete.

        :param used: the queues that somebody consumes.
        """
        self._space.look(now)
        with self._alone() as alone:
            if not alone:
                return False
            self._clean_queues(used, now)
            more = self._clean_in_shares(now)
            self._space.settle()
            return more

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Say whether nobody else of this machine cleans up, and keep it so meanwhile."""
        try:
            path = self._place.folder / "upkeep"
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise unwritable(self._place, exc) from exc
        try:
            yield _is_ours(file)
        finally:
            os.close(file)

    def _clean_queues(self, used: Collection[str], now: float) -> None:
        with self._write(durable=False) as db:
            for name in ("expire_revoked", "expire_revoked_stamps"):
                db.execute(self._sql[name], (now - KEEP,))
            self._delete_unused(db, used, now)
            db.execute(self._sql["delete_stray_lanes"])

    def _clean_in_shares(self, now: float) -> bool:
        """Work a share at a time, so that nobody waits long for the lock; say if more is left."""
        deadline = time.monotonic() + CLEAN_UP
        while True:
            began = time.monotonic()
            # Each time all three: what expires all the time must not keep the file from shrinking.
            if not any([self._expire(now), self._space.trim(now), self._space.give_back()]):
                return False
            ended = time.monotonic()
            if ended > deadline:
                return True
            # The others' turn: as long as it took.
            time.sleep(ended - began)

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

    def _expire(self, now: float) -> bool:
        """Delete a share of what expired; say whether more is left."""
        with self._write(durable=False) as db:
            results = db.execute(self._sql["expire_results"], (now,)).rowcount
            groups = db.execute(self._sql["expire_groups"], (now,)).rowcount
            chords = db.execute(self._sql["expired_chords"], (now - KEEP,)).fetchall()
            for (group_id,) in chords:
                self._chords.drop(db, group_id)
            letters = self._dead.expire(db, now - KEEP)
        return max(results, groups, len(chords), letters) >= SHARE


def _is_ours(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
