"""What happened, as one line an event, in a file that outlives whoever wrote to it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Event(NamedTuple):
    """One line."""

    #: Monotonic time (seconds): the same for all processes, also while the clock jumps.
    at: float
    #: Who wrote it.
    pid: int
    #: What happened: ``start``, ``end``, ``sent``, ``killed``, …
    what: str
    words: tuple[str, ...]


class Journal:
    """A file that many processes append to; one write a line, so that lines stay whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: str, *words: object) -> None:
        """Append an event."""
        line = " ".join(map(str, (f"{time.monotonic():.6f}", os.getpid(), what, *words)))
        os.write(self._file, line.encode() + b"\n")

    def read(self) -> Iterator[Event]:
        """Yield all events, in the order in which they were written."""
        with self._path.open() as lines:
            yield from map(_event, lines)

    def tail(self, size: int = 16384) -> Iterator[Event]:
        """Yield the last events, as many as were written in ``size`` bytes."""
        with self._path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            # The first line may be cut.
            yield from map(_event, file.read().decode().splitlines()[1:])


def _event(line: str) -> Event:
    at, pid, what, *words = line.split()
    return Event(float(at), int(pid), what, tuple(words))
