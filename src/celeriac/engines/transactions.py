"""Reading and writing the queue file: one transaction, and errors that say what to do."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any
from typing import TypeVar

from .base import EngineError
from .connections import Connections
from .connections import explained
from .connections import patiently
from .place import Place

T = TypeVar("T")

_INTERRUPTED = (
    "A signal handler uses the queue in the midst of a transaction of the thread that it "
    "interrupts: let the handler only note what is to be done, and do it later."
)


class Transactions:
    """The ways into one queue file, for all who know its statements."""

    def __init__(self, place: Place, connections: Connections, sql: Mapping[str, str]) -> None:
        self._place = place
        self._connections = connections
        self._sql = sql

    @contextmanager
    def write(
        self, durable: bool = True, then: Callable[[], None] | None = None
    ) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the write lock from its first statement.

        What is not durable may be undone by a loss of power, which then undoes it whole: a
        claim, say, returns to its queue. Only the durable ones wait for the disk.

        :param then: called once it is committed, even if a time limit strikes at that moment, as
            most do that strike at all: that is where the disk is waited for.
        """
        connection = self._connections.get()
        came = time.monotonic()
        with self._connections.turn, connection.lock:
            if connection.is_writing:
                raise EngineError(_INTERRUPTED)
            begun = False
            # All of it inside: a time limit may interrupt at any point, and a transaction left
            # open would lock out everyone.
            try:
                connection.follow()
                connection.begin(durable and self._place.full, came)
                begun = True
                yield connection.db
                connection.commit()
                if then is not None:
                    then()
            except BaseException as exc:
                if isinstance(exc, sqlite3.Error):
                    connection.rollback()
                    raise explained(exc, self._place) from exc
                if then is not None and begun and not connection.is_writing:
                    then()
                connection.rollback()
                raise

    def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``read`` returns."""
        connection = self._connections.get()
        with connection.lock:
            try:
                connection.follow()
                # Readers wait as well: while another process closes the file as its last user,
                # or recovers it, it has it for itself.
                return patiently(self._place, lambda: read(connection.db))
            except sqlite3.Error as exc:
                raise explained(exc, self._place) from exc

    def rows(self, name: str, parameters: Any = ()) -> list[Any]:
        """Return the rows of a named statement."""
        return self.read(lambda db: db.execute(self._sql[name], parameters).fetchall())
