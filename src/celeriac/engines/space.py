"""How large a queue file becomes: a limit on what it holds, and space that is given back.

What the file must not hold for its size is deleted here before it expires, the oldest first, and
said once in the log. Messages that wait are never among it. :mod:`.upkeep` calls.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import NamedTuple

from .connections import LOG_LIMIT
from .dead import Dead
from .place import Place
from .transactions import Transactions

logger = logging.getLogger(__name__)

#: Results are kept at least so long, whatever the size: somebody may be waiting for them (seconds).
YOUNG = 60.0
#: What exceeds the limit is deleted down to this part of it, so that the next task does not exceed
#: it again.
LOW = 0.9
#: Free pages that are kept for what comes next, 16 MB, or so large a part of the pages in use:
#: a queue that breathes does not shrink and grow all the time.
SLACK_PAGES = 4000
SLACK = 0.25
#: How many pages are given back in one transaction: 1 to 5 ms.
STEP = 256


class Pages(NamedTuple):
    """How many pages the file has."""

    used: int
    free: int
    #: In bytes.
    size: int
    #: 2 where free pages can be given back: SQLite's ``auto_vacuum = INCREMENTAL``.
    auto_vacuum: int


class Space:
    """The space that one queue file takes."""

    def __init__(
        self, place: Place, sql: Mapping[str, str], transactions: Transactions, dead: Dead
    ) -> None:
        self._place = place
        self._dead = dead
        self._sql = sql
        self._write = transactions.write
        self._read, self._rows = transactions.read, transactions.rows
        # The last result at several instants, the latest at the end.
        self._marks: list[tuple[float, int]] = []
        self._trims = False
        self._trimmed = 0
        self._told: set[str] = set()
        self._gave_back = False

    def look(self, now: float) -> None:
        """Note what is the newest result now, to know in a minute which ones are older."""
        last = self._rows("last_result")[0][0] or 0
        # A table that was emptied begins with low ids again; and clocks are set back.
        marks = [mark for mark in self._marks if mark[0] <= now and mark[1] <= last]
        old = [mark for mark in marks if mark[0] <= now - YOUNG][-1:]
        self._marks = [*old, *(mark for mark in marks if mark[0] > now - YOUNG), (now, last)]

    def trim(self, now: float) -> bool:
        """Delete a share of what is too much; say whether more is left."""
        excess = self._excess()
        self._trims = excess > 0 or (self._trims and excess > (LOW - 1) * self._place.max_size)
        noted_at, last = self._marks[0]
        if not self._trims or noted_at > now - YOUNG:
            return False
        with self._write(durable=False) as db:
            deleted = db.execute(self._sql["trim_results"], (last,)).rowcount
            # Somebody may still want these: only when no result is left to delete.
            deleted = deleted or self._dead.expire(db, now - YOUNG)
        self._trimmed += deleted
        self._trims = deleted > 0
        if not deleted and excess > 0:
            self._tell_of_messages(excess)
        return deleted > 0

    def give_back(self) -> bool:
        """Give some free pages back to the disk; say whether more is left."""
        pages = self._pages()
        spare = pages.free - self._slack(pages)
        if spare <= 0 or pages.auto_vacuum != 2:
            return False
        self._gave_back = True
        with self._write(durable=False) as db:
            for _ in range(min(spare, STEP)):
                # One page: Python takes but one step of a statement that returns no columns.
                db.execute(self._sql["give_back"])
        return spare > STEP

    def settle(self) -> None:
        """Tell what was deleted, and cut the file to its new size, or a log that has grown.

        Those who write carry the log over, now and then; in a queue that has become idle nobody
        does, and while somebody reads or writes it can not be cut. Then this does it next time.
        """
        if self._trimmed:
            self._tell_of_results()
        if self._gave_back or self._log_size() > LOG_LIMIT:
            # The first does most of it without keeping anybody from writing.
            self._rows("carry_over")
            ((is_busy, _, _),) = self._rows("truncate_log")
            self._gave_back = bool(is_busy)

    def _excess(self) -> float:
        pages = self._pages()
        return pages.used * pages.size - self._place.max_size

    def _slack(self, pages: Pages) -> int:
        """Return how many free pages are worth keeping."""
        room = self._place.max_size // pages.size - pages.used
        return max(0, min(room, max(SLACK_PAGES, int(pages.used * SLACK))))

    def _pages(self) -> Pages:
        return Pages(*self._rows("pages")[0])

    def _log_size(self) -> int:
        try:
            return os.stat(f"{self._place.path}-wal").st_size
        except FileNotFoundError:
            return 0

    def _tell_of_results(self) -> None:
        self._tell(
            "The queue file %s reached its max_size of %s: the %d oldest results were deleted "
            "before they expired, and more will be. Raise max_size in broker_url, lower "
            "result_expires, or set ignore_result for tasks whose results nobody reads.",
            self._trimmed,
        )
        self._trimmed = 0

    def _tell_of_messages(self, excess: float) -> None:
        held = in_words(self._place.max_size + excess)
        self._tell(
            "The queue file %s has a max_size of %s and holds %s, with nothing left to delete: it "
            "is messages that wait, and results of the last minute. Nothing is refused. Start "
            "more workers, or raise max_size in broker_url.",
            held,
        )

    def _tell(self, text: str, *facts: object) -> None:
        if text not in self._told:
            self._told.add(text)
            logger.warning(text, self._place.path, in_words(self._place.max_size), *facts)


def in_words(size: float) -> str:
    """Return a number of bytes as people write it."""
    for unit, bytes in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes:
            return f"{size / bytes:.3g} {unit}"
    return f"{size:.0f} bytes"
