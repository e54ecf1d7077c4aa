"""From a CSV file to a SQLite table, and from the table to its summary.

Nothing in here knows of Flask or Celery. What a person can have done wrong raises
:exc:`BadFile`, whose message is written for that person.
"""

from __future__ import annotations

import codecs
import csv
import re
import sqlite3
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import closing
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

#: How the files that people have write "no value".
MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-"})
DELIMITERS = ",;\t|"
MAX_COLUMNS = 200
#: A column with at most so many different texts can group the rows.
MAX_GROUPS = 20
BATCH = 1000

# A leading zero makes a code (a postcode, a phone number), not a number.
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
_DATE = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*"

Value = int | float | str | None
Progress = Callable[[int, int], None]


class BadFile(Exception):
    """The file is not one that can be summarised; the message says why."""


def check_start(path: Path) -> None:
    """Refuse at once what its first bytes show to be no CSV file."""
    with path.open("rb") as file:
        start = file.read(65536)
    if b"\0" in start:
        raise BadFile("The file holds binary data, not text.")
    try:
        # Incrementally, because the last character read may be cut in two.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start)
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from error
    if not text.strip():
        raise BadFile("The file is empty.")
    _delimiter(text.splitlines()[0])


def load(source: Path, target: Path, progress: Progress) -> int:
    """Read a CSV file into a SQLite file and return how many rows it has.

    :param progress: called now and then with the rows read and the rows expected.
    """
    expected = _count_lines(source) - 1
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            return _load(file, target, lambda rows: progress(rows, max(rows, expected)))
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from error


def summarize(table: Path) -> dict[str, Any]:
    """Describe each column of a loaded table, and each group of its rows where there are any."""
    with closing(sqlite3.connect(table)) as database:
        (rows,) = database.execute("SELECT count(*) FROM data").fetchone()
        names = database.execute("SELECT name FROM header ORDER BY position").fetchall()
        columns = [_describe(database, i, name) for i, (name,) in enumerate(names)]
        return {"rows": rows, "columns": columns, "groups": _group(database, columns)}


# Reading


def _load(file: Any, target: Path, progress: Callable[[int], None]) -> int:
    lines = csv.reader(file, delimiter=_delimiter(file.readline()), strict=True)
    file.seek(0)
    try:
        header = _header(next(lines))
        with closing(sqlite3.connect(target)) as database:
            _create(database, header)
            rows = _fill(database, _rows(lines, len(header)), len(header), progress)
            database.commit()
    except csv.Error as error:
        raise BadFile(f"Line {lines.line_num} is not CSV: {error}.") from error
    if not rows:
        raise BadFile("The file has a header but no rows.")
    return rows


def _delimiter(header: str) -> str:
    delimiter = max(DELIMITERS, key=header.count)
    if delimiter not in header:
        raise BadFile(
            "The first line has no comma, semicolon or tab: this does not look like a CSV file."
        )
    return delimiter


def _header(names: Sequence[str]) -> list[str]:
    if len(names) > MAX_COLUMNS:
        raise BadFile(f"The file has {len(names)} columns; at most {MAX_COLUMNS} are read.")
    return [name.strip()[:100] or f"column {i}" for i, name in enumerate(names, start=1)]


def _create(database: sqlite3.Connection, header: Sequence[str]) -> None:
    # The file replaces another only when it is complete, so it needs no journal.
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    database.execute("CREATE TABLE header (position INTEGER PRIMARY KEY, name TEXT)")
    database.executemany("INSERT INTO header VALUES (?, ?)", enumerate(header))
    database.execute(f"CREATE TABLE data ({', '.join(f'c{i}' for i in range(len(header)))})")


def _fill(
    database: sqlite3.Connection,
    rows: Iterator[list[Value]],
    width: int,
    progress: Callable[[int], None],
) -> int:
    insert = f"INSERT INTO data VALUES ({', '.join('?' * width)})"
    count = 0
    while batch := list(islice(rows, BATCH)):
        database.executemany(insert, batch)
        count += len(batch)
        progress(count)
    return count


def _rows(lines: Any, width: int) -> Iterator[list[Value]]:
    for fields in lines:
        if not fields:
            continue
        if len(fields) != width:
            found = f"{len(fields)} field{'s' if len(fields) > 1 else ''}"
            raise BadFile(f"Line {lines.line_num} has {found}, but the header has {width}.")
        yield [_value(field) for field in fields]


# Values repeat in most files: with the cache, a file loads three times as fast.
@lru_cache(maxsize=65536)
def _value(text: str) -> Value:
    text = text.strip()
    if text in MISSING:
        return None
    if _INTEGER.fullmatch(text):
        return int(text)
    if len(text) <= 40 and _NUMBER.fullmatch(text):
        return float(text)
    return text


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def _not_utf8(error: UnicodeDecodeError) -> BadFile:
    return BadFile(f"The file is not text in UTF-8 (byte {error.object[error.start]:#04x}).")


# Summarising


def _describe(database: sqlite3.Connection, position: int, name: str) -> dict[str, Any]:
    column = f"c{position}"
    count, missing, distinct, integers, reals, dates = database.execute(
        f"""
        SELECT count({column}), count(*) - count({column}), count(DISTINCT {column}),
               coalesce(sum(typeof({column}) = 'integer'), 0),
               coalesce(sum(typeof({column}) = 'real'), 0),
               coalesce(sum({column} GLOB ?), 0)
        FROM data
        """,
        (_DATE,),
    ).fetchone()
    kind = _kind(count, integers, integers + reals, dates)
    bounds = column if kind in ("integer", "number") else f"CAST({column} AS TEXT)"
    mean = f"avg({column})" if kind in ("integer", "number") else "NULL"
    low, average, high = database.execute(
        f"SELECT min({bounds}), {mean}, max({bounds}) FROM data"
    ).fetchone()
    return {
        "name": name,
        "type": kind,
        "count": count,
        "missing": missing,
        "distinct": distinct,
        "min": low,
        "mean": average,
        "max": high,
    }


def _kind(count: int, integers: int, numbers: int, dates: int) -> str:
    """Name the narrowest type that every value of a column has."""
    if not count:
        return "empty"
    if integers == count:
        return "integer"
    if numbers == count:
        return "number"
    return "time" if dates == count else "text"


def _group(database: sqlite3.Connection, columns: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Average the measurements over each value of the first column that groups the rows."""
    grouping = next((i for i, column in enumerate(columns) if _groups(column)), None)
    # Measurements have fractions; whole numbers are mostly years, hours and identifiers.
    measured = [i for i, column in enumerate(columns) if column["type"] == "number"]
    if grouping is None:
        return None
    means = "".join(f", avg(c{i})" for i in measured)
    rows = database.execute(
        f"SELECT c{grouping}, count(*){means} FROM data GROUP BY c{grouping} ORDER BY c{grouping}"
    )
    return {
        "by": columns[grouping]["name"],
        "measured": [columns[i]["name"] for i in measured],
        "rows": [{"value": v, "count": n, "means": m} for v, n, *m in rows],
    }


def _groups(column: dict[str, Any]) -> bool:
    few: bool = 2 <= column["distinct"] <= MAX_GROUPS and column["distinct"] < column["count"]
    is_text: bool = column["type"] == "text"
    return few and is_text
