"""SQL as files that hold nothing else: each statement under a ``-- name:`` line.

The loader is the whole of it. The idea is procrastinate's ``sql/queries.sql``.
"""

from __future__ import annotations

import re
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load_statements(dialect: str) -> dict[str, str]:
    """Return the statements of ``sql/<dialect>/queries.sql`` by name."""
    text = _read(dialect, "queries.sql")
    _, *parts = _NAME.split(text)
    return {name: _without_comments(sql) for name, sql in zip(parts[::2], parts[1::2], strict=True)}


def load_migrations(dialect: str) -> list[tuple[int, str, str]]:
    """Return the numbered migrations of a dialect, in order: number, name, SQL."""
    folder = resources.files(__package__) / "sql" / dialect
    names = sorted(entry.name for entry in folder.iterdir() if entry.name[:4].isdigit())
    return [(int(name[:4]), name, _read(dialect, name)) for name in names]


def _read(dialect: str, name: str) -> str:
    file = resources.files(__package__) / "sql" / dialect / name
    return file.read_text(encoding="utf-8")


def _without_comments(sql: str) -> str:
    lines = (line for line in sql.splitlines() if not line.startswith("--"))
    return "\n".join(lines).strip().removesuffix(";")
