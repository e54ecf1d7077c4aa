"""How a chord is counted, within the transactions of those who bring its parts.

Parts may come before the size is known. A chord is complete with its last part, or with the first
that failed; it is over when its callback was sent and all its parts have come.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from collections.abc import Sequence

from .base import ChordPart


class Chords:
    """Counts chords."""

    def __init__(self, sql: Mapping[str, str]) -> None:
        self._sql = sql

    def size(self, db: sqlite3.Connection, sizes: Sequence[tuple[str, int]]) -> None:
        """Say how many parts complete each of these."""
        now = time.time()
        db.executemany(self._sql["set_chord_size"], [(*size, now) for size in sizes])

    def size_one(self, db: sqlite3.Connection, group_id: str, size: int) -> bool:
        """Say how many parts complete a chord; say whether it is complete with that."""
        self.size(db, [(group_id, size)])
        self._drop_if_over(db, group_id)
        done = db.execute(self._sql["complete_chord_of_size"], (time.time(), group_id))
        return done.rowcount > 0

    def join(self, db: sqlite3.Connection, part: ChordPart) -> bool:
        """Count a part; say whether it completes its chord."""
        now = time.time()
        fields = (part.group_id, part.member, part.place, part.meta)
        if not db.execute(self._sql["insert_part"], fields).rowcount:
            return False
        counted = (part.group_id, part.callback, now)
        ((completed_at, all_came, finished),) = db.execute(self._sql["count_part"], counted)
        if finished and all_came:
            self.drop(db, part.group_id)
        if completed_at is not None or not (all_came or part.failed):
            return False
        db.execute(self._sql["complete_chord"], (now, part.group_id))
        return True

    def finish(self, db: sqlite3.Connection, group_id: str) -> bool:
        """End a chord; say whether it was this call that did so."""
        now = time.time()
        if not db.execute(self._sql["finish_chord"], (now, group_id)).rowcount:
            return False
        self._drop_if_over(db, group_id)
        return True

    def drop(self, db: sqlite3.Connection, group_id: str) -> None:
        """Delete a chord and its parts."""
        db.execute(self._sql["delete_parts"], (group_id,))
        db.execute(self._sql["drop_chord"], (group_id,))

    def _drop_if_over(self, db: sqlite3.Connection, group_id: str) -> None:
        if db.execute(self._sql["is_chord_over"], (group_id,)).fetchone():
            self.drop(db, group_id)
