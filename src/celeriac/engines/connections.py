"""How a thread gets its SQLite connection, and how a fork is survived.

Each thread has one connection, used under that connection's own lock. The greenlets of a thread
share it, and so do threads where there are many: a thousand connections are two thousand open
files, and 90 MB. Who writes takes a turn first: SQLite's lock is asked for again and again, and a
thousand who do that leave no time for the one that has it. A fork takes all these locks, closes
all connections, and only then happens: SQLite's bookkeeping of file locks is a process's own, and
a child that inherits it believes to hold what only its parent holds.
"""

from __future__ import annotations

import functools
import os
import random
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from typing import TypeVar

from .base import Completion
from .base import EngineConfigurationError
from .base import EngineDamagedError
from .base import EngineError
from .base import Message
from .base import Outcome
from .bell import Bell
from .bell import Sleeper
from .group_commit import GroupCommit
from .migrations import migrate
from .migrations import verify
from .place import no_room
from .place import Place
from .place import prepare
from .place import unwritable
from .presence import Presence

T = TypeVar("T")

#: How many pages the log may hold before a commit carries them over into the file: 16 MB. With
#: SQLite's 4 MB, every tenth batch of a busy worker waits for a checkpoint.
_CHECKPOINT_PAGES = 4000
#: A log that grew larger, while somebody read for long, is cut back to this (bytes).
LOG_LIMIT = 2 * _CHECKPOINT_PAGES * 4096


#: How many connections a process has at most. Further threads share them.
MOST = 16

#: The longest sleep between two looks at the lock (seconds). With eight producers and eight
#: workers on two processors, at most 1 ms instead of 5 halved the 99th percentile of ``delay()``
#: (1,307 → 739 ms and 813 → 463 ms on a machine ten times overloaded) and the longest of all, at
#: the same throughput: who slept longer kept coming too late.
_NAP = 0.001
#: After so long it is no crowd of ours that holds the lock, but another program: looking less
#: often then spares the processor.
_CROWD, _LONG_NAP = 1.0, 0.005


class Connection:
    """One thread's connection."""

    def __init__(self, place: Place) -> None:
        self.lock = threading.RLock()
        self._place = place
        self._path = os.fspath(place.path)
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._full: bool | None = None

    @property
    def db(self) -> sqlite3.Connection:
        """The open connection."""
        if self._db is None:
            self._db = _open(self._place)
            self._file = _identity(self._path)
            self._full = None
        return self._db

    def follow(self) -> None:
        """Open the file, and open it anew if another one stands in its place.

        What is written into a file that somebody removed, nobody would ever read.
        """
        if self._db is not None and _identity(self._path) != self._file:
            self.close()
        self.db  # noqa: B018  (opens it)

    def begin(self, full: bool, since: float) -> None:
        """Take the write lock, waiting for it at most the busy timeout.

        :param since: from when on that counts (monotonic seconds).
        """
        patiently(self._place, lambda: self._begin(full), since)

    def commit(self) -> None:
        """Commit; when that fails, the transaction is still to be rolled back."""
        self.db.execute("COMMIT")

    @property
    def is_writing(self) -> bool:
        """Whether a transaction is open."""
        return self._db is not None and self._db.in_transaction

    def rollback(self) -> None:
        """Undo the transaction, if it is still open: SQLite ends it itself on a full disk."""
        try:
            if self.is_writing:
                self.db.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()  # Undoes it, too; and the error that led here is the one to be told.

    def close(self) -> None:
        """Close; the connection opens anew when used."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def __del__(self) -> None:
        self.close()

    def _begin(self, full: bool) -> None:
        if full is not self._full:
            self.db.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self._full = full
        self.db.execute("BEGIN IMMEDIATE")


class Connections:
    """The connections of one queue file in this process, and what is shared beside the file."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._reset()
        _watch_forks(self)

    def get(self) -> Connection:
        """Return the calling thread's connection, to be used under its lock."""
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            # A fork holds this lock: none is opened that it would not close.
            with self._lock:
                connection = self._local.connection = self._another()
        return connection

    @contextmanager
    def sleeper(self) -> Iterator[Sleeper]:
        """Give the caller a place to sleep."""
        bell = self.bell()
        sleeper = bell.sleeper()
        try:
            yield sleeper
        finally:
            bell.give_back(sleeper)

    def bell(self) -> Bell:
        """Return the bell of this file."""
        return _beside(self._place)[0]

    def presence(self) -> Presence:
        """Return the presence files of this file."""
        return _beside(self._place)[1]

    def close(self) -> None:
        """Close every connection; threads that use one are waited for.

        Bell and presence stay open while somebody sleeps, or this process is a worker.
        """
        for connection in self._list():
            with connection.lock:
                connection.close()
        _close_beside(self._place)

    def _another(self) -> Connection:
        """Return a new connection, or one that others have as well."""
        if len(self._all) >= MOST:
            return random.choice(list(self._all))
        connection = Connection(self._place)
        self._all.add(connection)
        return connection

    def _list(self) -> list[Connection]:
        with self._lock:
            return list(self._all)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._local = _thread_local()
        #: Held by the one of this process who writes. Taken before the lock of a connection.
        self.turn = threading.RLock()
        #: Those of this process who publish, and those who complete what they ran.
        self.publishers: GroupCommit[Message, None] = GroupCommit()
        #: The latter hear, too, of how many outcomes that is.
        self.completers: GroupCommit[Outcome, tuple[int, Completion]] = GroupCommit(_pause())
        self._all: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._held: list[Connection] = []

    def _before_fork(self) -> None:
        self._lock.acquire()
        self._held = list(self._all)
        for connection in self._held:
            connection.lock.acquire()
            connection.close()

    def _after_fork_in_parent(self) -> None:
        while self._held:
            self._held.pop().lock.release()
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        self._reset()


# Bell and presence are one per file and process, whatever URLs name the file: closing one file
# descriptor gives up all locks that the process holds on that file.
_shared: dict[Path, tuple[Bell, Presence]] = {}
_shared_lock = threading.Lock()
_forkable: weakref.WeakSet[Connections] = weakref.WeakSet()


def _beside(place: Place) -> tuple[Bell, Presence]:
    both = _shared.get(place.folder)
    if both is None:
        with _shared_lock:
            both = _shared.get(place.folder)
            if both is None:
                prepare(place)
                both = _shared[place.folder] = _open_beside(place)
    return both


def _open_beside(place: Place) -> tuple[Bell, Presence]:
    try:
        return Bell(place.folder), Presence(place.folder)
    except OSError as exc:
        raise unwritable(place, exc) from exc


def _close_beside(place: Place) -> None:
    with _shared_lock:
        bell, presence = _shared.get(place.folder, (None, None))
        if bell is not None and presence is not None and not (bell.in_use or presence.in_use):
            del _shared[place.folder]
            bell.close()
            presence.close()


def _start_over_in_child() -> None:
    """Let go of the parent's bells and presence files, without waiting for its threads."""
    global _shared_lock
    _shared_lock = threading.Lock()
    for bell, presence in _shared.values():
        bell.abandon()
        presence.abandon()
    _shared.clear()


def _watch_forks(connections: Connections) -> None:
    _forkable.add(connections)
    _register_at_fork()


@functools.cache
def _register_at_fork() -> None:
    def each(name: str) -> None:
        for connections in list(_forkable):
            getattr(connections, name)()

    def start_over() -> None:
        each("_after_fork_in_child")
        _start_over_in_child()

    os.register_at_fork(
        before=lambda: each("_before_fork"),
        after_in_parent=lambda: each("_after_fork_in_parent"),
        after_in_child=start_over,
    )


def _pause() -> Callable[[], None] | None:
    """Return what lets other greenlets run, where gevent has put these in the place of threads."""
    monkey = sys.modules.get("gevent.monkey")
    is_patched = monkey is not None and monkey.is_module_patched("threading")
    return functools.partial(time.sleep, 0) if is_patched else None


def _thread_local() -> Any:
    """Return storage of each thread's own, where gevent has made it each greenlet's as well."""
    monkey = sys.modules.get("gevent.monkey")
    local = threading.local if monkey is None else monkey.get_original("threading", "local")
    return local()


def _open(place: Place) -> sqlite3.Connection:
    prepare(place)
    # Now, so that what is wrong with it shows before a transaction and not after it.
    _beside(place)
    db = sqlite3.connect(
        place.path,
        isolation_level=None,
        timeout=0,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        # Before anything is changed in what may be another program's file.
        patiently(place, lambda: verify(db, str(place.path)))
        patiently(place, lambda: _let_shrink(db))
        patiently(place, lambda: _set_wal(db, place))
        db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")
        patiently(place, lambda: migrate(db, str(place.path)))
    except BaseException:
        db.close()
        raise
    return db


def _identity(path: str) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _let_shrink(db: sqlite3.Connection) -> None:
    """Have a new file keep the notes by which it can give pages back to the disk later.

    They cost nothing that could be measured: publishing one by one 0.98 to 1.04 of the processor
    time without them, claiming and completing 0.99 to 1.02, in alternating blocks of one run.
    """
    if db.execute("PRAGMA page_count").fetchone() == (0,):
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")


def _set_wal(db: sqlite3.Connection, place: Place) -> None:
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise EngineConfigurationError(
            f"SQLite can not keep a write-ahead log for the queue file {place.path}: its file "
            "system has no shared memory. Put the queue file on a local disk."
        )


def patiently(place: Place, action: Callable[[], T], since: float = 0.0) -> T:
    """Do something, again while another process holds the lock, at most the busy timeout.

    SQLite's own waiting sleeps up to 100 ms between two looks, where our transactions take less
    than one; so we look more often.

    :param since: from when on the busy timeout counts (monotonic seconds), if not from now.
    """
    began, nap = since, 0.0001
    while True:
        try:
            return action()
        except sqlite3.OperationalError as exc:
            now = time.monotonic()
            began = began or now
            if not is_busy(exc) or now - began >= place.busy_timeout:
                raise
        time.sleep(nap * random.uniform(0.5, 1.5))
        nap = min(nap * 1.5, _NAP if now - began < _CROWD else _LONG_NAP)


def is_busy(exc: sqlite3.Error) -> bool:
    """Say whether another process holds the lock."""
    return "locked" in str(exc) or "busy" in str(exc)


def explained(exc: sqlite3.Error, place: Place) -> EngineError:
    """Return an error that says what to do about SQLite's."""
    if isinstance(exc, (sqlite3.ProgrammingError, sqlite3.InterfaceError)):
        raise exc  # A mistake of ours: no user can mend it, and no retry will help.
    text = str(exc)
    path = place.path
    if is_busy(exc):
        return EngineError(
            f"The queue file {path} stayed locked for {place.busy_timeout:g} s. Another program "
            "holds a transaction open on it: only Celeriac should write to this file."
        )
    if "full" in text:
        return no_room(path)
    if "not a database" in text or "malformed" in text:
        return EngineDamagedError(
            f"The queue file {path} is damaged ({text}). Stop the workers, keep a copy, and try "
            f"'sqlite3 {path} .recover | sqlite3 recovered.sqlite3'; or move it away, and an "
            "empty one is made."
        )
    if "I/O error" in text:
        return EngineError(
            f"The disk refused to read or write the queue file {path} ({text}). Nothing was "
            "written. See whether its disk is full or failing (df, dmesg)."
        )
    if "readonly" in text or "unable to open" in text:
        return EngineConfigurationError(
            f"The queue file {path} can not be written ({text}). Give the user that runs the "
            "application and its workers write access to it and to its folder."
        )
    return EngineError(f"The queue file {path}: {text}.")
