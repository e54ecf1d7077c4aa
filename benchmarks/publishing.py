"""Enqueuing against the bare limit: ``python -m benchmarks.publishing``.

Celeriac and raw ``sqlite3`` (:mod:`benchmarks.limit`) take turns of a few calls each in one
process, so that whatever else the machine does falls on both alike: the ratios are the figures.
Then one thread and eight take turns, and last come many calls in one transaction.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import limit
from benchmarks.contenders import BY_NAME

#: Calls in a turn, of each thread.
_TURN = 20
_THREADS = 8
_MANY = 100_000


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publishing", description=__doc__)
    parser.add_argument("--durability", choices=["full", "normal"], default="full")
    parser.add_argument("--turns", type=int, default=100, help="of each; default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="for the files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as name:
        folder = Path(name)
        contender = BY_NAME[f"celeriac-{options.durability}"]
        os.environ.update(contender.environment(folder))
        (folder / "bare").mkdir()
        bare = Bare(folder / "bare", options.durability)
        _measure(bare, options.durability, options.turns)


class Bare:
    """The limit: one row in one transaction, or many."""

    def __init__(self, folder: Path, durability: str) -> None:
        self._db = limit.open_queue(folder, durability)
        limit.create_tables(self._db)
        self._ids = itertools.count(1)

    def publish(self, count: int = 1) -> None:
        """Store ``count`` messages in one transaction."""
        rows = ((id, json.dumps([id, id])) for id in itertools.islice(self._ids, count))
        limit.publish(self._db, rows)


def _measure(bare: Bare, durability: str, turns: int) -> None:
    from benchmarks.apps.celeriac_app import add_together

    def delay() -> None:
        add_together.delay(1, 2)

    def delay_many() -> None:
        add_together.delay_many((x, x) for x in range(_MANY))

    print(f"| `{durability}`, load {os.getloadavg()[0]:.1f} | µs each | raw `sqlite3` | ratio |")
    print("| --- | ---: | ---: | ---: |")
    ours, raw = _in_turns([lambda: _repeat(delay), lambda: _repeat(bare.publish)], turns)
    _row("`delay()`, one by one", ours / _TURN, raw / _TURN)
    # Threads that live on, as those of a web server do, each with its connection.
    with ThreadPoolExecutor(_THREADS) as pool:

        def in_threads() -> None:
            list(pool.map(_repeat, [delay] * _THREADS))

        one, all_together = _in_turns([lambda: _repeat(delay), in_threads], turns // 4)
    eight = all_together / _THREADS
    print(f"| `delay()`, {_THREADS} threads | {eight / _TURN * 1e6:.1f} | | |")
    print(f"| … as many as by one | | | {one / eight:.2f} |")
    ours, raw = _in_turns([delay_many, lambda: bare.publish(_MANY)], 3)
    _row(f"`delay_many()`, {_MANY:,}", ours / _MANY, raw / _MANY)


def _row(title: str, ours: float, raw: float) -> None:
    print(f"| {title} | {ours * 1e6:.1f} | {raw * 1e6:.1f} | {raw / ours:.2f} |")


def _in_turns(actions: list[Callable[[], None]], turns: int) -> list[float]:
    """Do each action once to warm up and then in turns; return the median seconds of each."""
    seconds: list[list[float]] = [[] for _ in actions]
    for turn in range(turns + 1):
        for action, measured in zip(actions, seconds, strict=True):
            began = time.perf_counter()
            action()
            if turn:
                measured.append(time.perf_counter() - began)
    return [statistics.median(each) for each in seconds]


def _repeat(action: Callable[[], Any]) -> None:
    for _ in range(_TURN):
        action()


if __name__ == "__main__":
    main()
