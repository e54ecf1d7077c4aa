"""Two columns side by side: counts for each file, and each difference by name."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping

from . import known
from .column import Column
from .column import Outcome

OUTCOMES = ("passed", "failed", "skipped", "xfailed")


class Comparison:
    """What the two columns say, Redis first."""

    def __init__(self, redis: Column, sqlite: Column) -> None:
        self._columns = (redis, sqlite)
        self._redis = redis.outcomes
        self._sqlite = sqlite.outcomes

    def broken(self) -> list[str]:
        """Return the tests that pass on Redis and should on SQLite, and do not."""
        return [
            name
            for name, outcome in self._redis.items()
            if outcome.outcome == "passed"
            and known.file_of(name) in known.PROMISED
            and known.function_of(name) not in known.NOT_APPLICABLE
            and _outcome(self._sqlite, name) != "passed"
        ]

    def text(self) -> str:
        """Return all of it for reading."""
        return "\n".join([*self._table(), "", *self._differences(), "", *self._list()])

    def _table(self) -> Iterator[str]:
        titles = [f"{column.title:^32}" for column in self._columns]
        yield f"{'':38} {'  '.join(titles)}".rstrip()
        yield f"{'':38} {'  '.join([_row(OUTCOMES)] * 2)}"
        files = {known.file_of(name) for name in (*self._redis, *self._sqlite)}
        for file in sorted(files):
            yield self._line(file.removesuffix(".py"), {file})
        yield self._line("what is promised", {*known.PROMISED})
        yield self._line("all", files)

    def _line(self, title: str, files: set[str]) -> str:
        rows = []
        for outcomes in (self._redis, self._sqlite):
            here = (each for name, each in outcomes.items() if known.file_of(name) in files)
            counts = Counter(each.outcome for each in here)
            rows.append(_row(counts[outcome] for outcome in OUTCOMES))
        return f"{title:38} {'  '.join(rows)}"

    def _differences(self) -> Iterator[str]:
        names = [
            name
            for name in {**self._redis, **self._sqlite}
            if _outcome(self._redis, name) != _outcome(self._sqlite, name)
        ]
        yield f"Differences: {len(names)}"
        for name in sorted(names):
            yield f"  {name}"
            yield f"    {_outcome(self._redis, name)} on Redis, {_told(self._sqlite, name)}"

    def _list(self) -> Iterator[str]:
        yield "What can not apply to SQLite:"
        for name, reason in known.NOT_APPLICABLE.items():
            yield f"  {name}"
            yield textwrap.fill(reason, 90, initial_indent="    ", subsequent_indent="    ")


def _row(cells: Iterable[object]) -> str:
    return "".join(f"{cell:>8}" for cell in cells)


def _outcome(outcomes: Mapping[str, Outcome], name: str) -> str:
    return outcomes[name].outcome if name in outcomes else "missing"


def _told(outcomes: Mapping[str, Outcome], name: str) -> str:
    message = outcomes[name].message.strip().partition("\n")[0] if name in outcomes else ""
    return f"{_outcome(outcomes, name)} on SQLite{': ' if message else ''}{message}"
