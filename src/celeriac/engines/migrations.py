"""Numbered migrations: applied in order, each once, and verified at every opening.

The number of the last one is the file's ``user_version``. A migration never changes once it
was released; ``schema`` questions have one answer, all of them applied in order.
"""

from __future__ import annotations

import sqlite3

from .base import EngineConfigurationError
from .statements import load_migrations

#: Marks a SQLite file as a queue file of ours ("Clrc").
APPLICATION_ID = 0x436C7263

#: The first SQLite that knows RETURNING.
OLDEST_SQLITE = (3, 35, 0)


def verify(db: sqlite3.Connection, path: str) -> None:
    """See that the file is a queue file, or empty, and that this version can read it.

    :raises EngineConfigurationError: when the file belongs to another program, or was written
        by a newer version of this one.
    """
    _refuse_old_sqlite()
    version, newest = _version(db, path), load_migrations("sqlite")[-1][0]
    if version > newest:
        raise EngineConfigurationError(
            f"The queue file {path} has schema version {version}, and this version of "
            f"Celeriac knows up to {newest}. Upgrade Celeriac, or use another queue file."
        )


def migrate(db: sqlite3.Connection, path: str) -> None:
    """Bring the file to the newest version, all at once or not at all.

    :raises EngineConfigurationError: as :func:`verify` does.
    """
    migrations = load_migrations("sqlite")
    if _version(db, path) == migrations[-1][0]:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        verify(db, path)  # Another process may have been quicker.
        version = _version(db, path)
        for number, _, sql in migrations:
            if number > version:
                _apply(db, number, sql)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite ends it itself on a full disk.
            db.execute("ROLLBACK")
        raise


def _refuse_old_sqlite() -> None:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise EngineConfigurationError(
            f"This Python has SQLite {sqlite3.sqlite_version}, and the queue needs {oldest} or "
            "newer. Use a newer build of Python, or another broker."
        )


def _version(db: sqlite3.Connection, path: str) -> int:
    owner, version, objects = _marks(db)
    if owner == APPLICATION_ID:
        return version
    if owner or objects:
        raise EngineConfigurationError(
            f"{path} is a SQLite database of another program. The queue needs a file of its "
            "own: name another one in broker_url, for example sqlite:///celeriac.sqlite3."
        )
    return 0


def _marks(db: sqlite3.Connection) -> tuple[int, int, int]:
    """Return whose file it is, its version, and how much there is in it.

    All as of one moment: while another process makes the file, its tables must not be seen
    without its mark.
    """
    alone = not db.in_transaction
    if alone:
        db.execute("BEGIN")
    try:
        (owner,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (objects,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    finally:
        if alone and db.in_transaction:
            db.execute("ROLLBACK")
    return owner, version, objects


def _apply(db: sqlite3.Connection, number: int, sql: str) -> None:
    # executescript() would commit first, and with it give up the lock.
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {number}")
