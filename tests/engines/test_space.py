"""How large a queue file becomes: its ``max_size``, and space that goes back to the disk."""

from __future__ import annotations

import fcntl
import logging
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from celeriac.engines import upkeep
from celeriac.engines.base import Message
from celeriac.engines.base import Result
from celeriac.engines.space import in_words
from celeriac.engines.sqlite import SQLiteEngine

MINUTE = 61.0


@pytest.fixture
def engine(queue_url: str) -> Iterator[SQLiteEngine]:
    """Return an engine over a file that may hold 5 MB."""
    with closing(SQLiteEngine(f"{queue_url}&max_size=5MB")) as engine:
        yield engine


def store(
    engine: SQLiteEngine,
    name: str,
    megabytes: float,
    expires_at: float | None = None,
    *,
    kilobytes: float = 4.0,
) -> list[str]:
    """Store results; return their ids."""
    ids = [f"{name}-{number}" for number in range(int(megabytes / kilobytes * 1000))]
    meta = bytes(int(kilobytes * 1000 - 100))
    engine.store_results([Result(id, "SUCCESS", meta, expires_at) for id in ids])
    return ids


def clean(engine: SQLiteEngine, now: float) -> None:
    """Clean up until there is nothing left to do."""
    while engine.maintain(now):
        pass


def pages(path: Path) -> tuple[int, int]:
    """Return how many pages the file has, and how many of them are free."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT * FROM pragma_page_count, pragma_freelist_count").fetchone()


def megabytes(path: Path) -> float:
    return path.stat().st_size / 1e6


# By size


def test_the_oldest_results_are_deleted_when_the_file_holds_too_much(engine: SQLiteEngine) -> None:
    now = time.time()
    old, new = store(engine, "old", 4, now + 9000), store(engine, "new", 4, now + 100)
    engine.maintain(now)

    clean(engine, now + MINUTE)

    assert engine.get_results(old) == {}
    kept = engine.get_results(new)
    assert kept and set(kept) == set(new[-len(kept) :])


def test_results_of_the_last_minute_stay(engine: SQLiteEngine, queue_path: Path) -> None:
    now = time.time()
    ids = store(engine, "r", 8)
    engine.maintain(now)

    clean(engine, now + 50)
    assert len(engine.get_results(ids)) == len(ids)

    young = store(engine, "young", 8)
    clean(engine, now + MINUTE)
    assert engine.get_results(ids) == {}
    assert len(engine.get_results(young)) == len(young)


def test_a_result_is_as_old_as_its_last_storing(engine: SQLiteEngine) -> None:
    now = time.time()
    engine.store_results([Result("a", "STARTED", b"")])
    store(engine, "r", 8)
    engine.maintain(now)
    engine.store_results([Result("a", "SUCCESS", b"")])

    clean(engine, now + MINUTE)

    assert engine.get_results(["a"])["a"].state == "SUCCESS"


def test_a_file_that_holds_less_keeps_all(engine: SQLiteEngine) -> None:
    now = time.time()
    ids = store(engine, "r", 4)
    engine.maintain(now)

    clean(engine, now + MINUTE)

    assert len(engine.get_results(ids)) == len(ids)


def test_a_table_that_was_emptied_begins_anew(engine: SQLiteEngine) -> None:
    now = time.time()
    engine.forget(store(engine, "old", 8))
    engine.maintain(now)
    store(engine, "a", 8, now)
    engine.maintain(now)  # Ids begin with 1 again.
    young = store(engine, "young", 8)

    clean(engine, now + 50)

    assert len(engine.get_results(young)) == len(young)


def test_what_is_deleted_early_is_said_once(
    engine: SQLiteEngine, queue_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = time.time()
    for round in range(3):
        store(engine, str(round), 4)
        engine.maintain(now + round * MINUTE)

    clean(engine, now + 3 * MINUTE)

    assert [re.sub(r"the \d+ ", "the … ", each.getMessage()) for each in caplog.records] == [
        f"The queue file {queue_path} reached its max_size of 5 MB: the … oldest results were "
        "deleted before they expired, and more will be. Raise max_size in broker_url, lower "
        "result_expires, or set ignore_result for tasks whose results nobody reads."
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_messages_that_wait_are_never_deleted_but_spoken_of(
    engine: SQLiteEngine, queue_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = time.time()
    engine.publish([Message("q", "{}", bytes(3900), "t", str(n)) for n in range(2000)])

    for round in range(4):
        clean(engine, now + round * MINUTE)

    assert engine.queue_sizes() == {"q": 2000}
    with closing(sqlite3.connect(queue_path)) as db:
        ((size,),) = db.execute(
            "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        )
    held = in_words(size)
    assert [record.getMessage() for record in caplog.records] == [
        f"The queue file {queue_path} has a max_size of 5 MB and holds {held}, with nothing left "
        "to delete: it is messages that wait, and results of the last minute. Nothing is refused. "
        "Start more workers, or raise max_size in broker_url."
    ]


@pytest.mark.parametrize(
    ("size", "words"),
    [(999, "999 bytes"), (1e3, "1 kB"), (1.5e6, "1.5 MB"), (4e9, "4 GB"), (2e12, "2 TB")],
)
def test_sizes_are_said_as_people_write_them(size: float, words: str) -> None:
    assert in_words(size) == words


# Space given back


def test_the_file_shrinks_when_what_was_in_it_is_gone(queue_url: str, queue_path: Path) -> None:
    now = time.time()
    with closing(SQLiteEngine(queue_url)) as engine:
        store(engine, "r", 40, now, kilobytes=40)
        clean(engine, now - 1)
        before = pages(queue_path)[0]

        clean(engine, now)

        # Some is kept for what comes next: a queue that breathes does not shrink and grow.
        total, free = pages(queue_path)
        assert before > 10_000
        assert (free, total < 4100) == (4000, True)
        assert megabytes(queue_path) < 17
        assert megabytes(queue_path.with_name(f"{queue_path.name}-wal")) == 0


def test_a_file_never_keeps_free_space_beyond_its_limit(
    engine: SQLiteEngine, queue_path: Path
) -> None:
    now = time.time()
    store(engine, "old", 12)
    engine.maintain(now)

    clean(engine, now + MINUTE)

    assert megabytes(queue_path) <= 5


def test_a_file_from_before_works_but_keeps_its_size(queue_url: str, queue_path: Path) -> None:
    with closing(sqlite3.connect(queue_path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    now = time.time()
    with closing(SQLiteEngine(queue_url)) as engine:
        store(engine, "r", 40, now, kilobytes=40)

        clean(engine, now)

        total, free = pages(queue_path)
        assert free > 10_000
        store(engine, "new", 30, kilobytes=40)
        assert pages(queue_path)[0] == total


def test_what_the_documentation_says_lets_a_file_from_before_shrink(
    queue_url: str, queue_path: Path
) -> None:
    with closing(sqlite3.connect(queue_path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    with closing(SQLiteEngine(queue_url)) as engine:
        ids = store(engine, "r", 1)

    with closing(sqlite3.connect(queue_path)) as db:
        db.executescript("PRAGMA auto_vacuum = INCREMENTAL; VACUUM")

    with closing(SQLiteEngine(queue_url)) as engine:
        assert len(engine.get_results(ids)) == len(ids)
        assert engine._rows("pages")[0][-1] == 2


def test_a_log_that_grew_while_somebody_read_is_cut_back(queue_url: str, queue_path: Path) -> None:
    log = queue_path.with_name(f"{queue_path.name}-wal")
    with closing(SQLiteEngine(queue_url)) as engine:
        store(engine, "first", 0.1)
        with closing(sqlite3.connect(queue_path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM celeriac_results").fetchone()
            for name in map(str, range(10)):
                store(engine, name, 4, kilobytes=40)
            assert megabytes(log) > 33
            engine.maintain(time.time())
            assert megabytes(log) > 33

        engine.maintain(time.time())

        assert megabytes(log) == 0


# Who cleans up


def test_one_at_a_time_cleans_up(queue_url: str, queue_path: Path) -> None:
    now = time.time()
    with closing(SQLiteEngine(queue_url)) as engine:
        ids = store(engine, "r", 1, now - 1)
        with (engine.folder / "upkeep").open("w") as another:
            fcntl.flock(another, fcntl.LOCK_EX)
            assert engine.maintain(now) is False
            assert len(engine.get_results(ids)) == len(ids)

        engine.maintain(now)

        assert engine.get_results(ids) == {}


def test_a_clean_up_that_took_its_time_says_when_more_is_left(
    queue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(upkeep, "CLEAN_UP", 0.0)
    with closing(SQLiteEngine(queue_url)) as engine:
        store(engine, "r", 10, now)

        assert [engine.maintain(now) for _ in range(3)] == [True, True, False]

        assert engine._rows("last_result") == [(None,)]
