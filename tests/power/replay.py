"""What the disk may hold after a cut."""

from __future__ import annotations

import random
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

from power.recording import CONFIRMED
from power.recording import LOG
from power.recording import Operation
from power.recording import QUEUE

#: What a disk writes whole or not at all (bytes).
SECTOR = 512


class Cut(NamedTuple):
    """The moment of a cut, and what is left."""

    #: After how many operations.
    moment: int
    #: What became of the writes that no sync had covered.
    fate: str
    files: dict[str, bytes]
    #: What callers knew.
    confirmed: bytes


class _File:
    """A file's synced content, and what was done to it since."""

    def __init__(self) -> None:
        self.synced = bytearray()
        self.since: list[Operation] = []
        #: How many operations a process's sync will cover, told when it began.
        self._covers: dict[int, int] = {}
        self._dropped = 0

    def take(self, operation: Operation) -> None:
        if operation.kind == "s":
            self._covers[operation.offset] = self._dropped + len(self.since)
        elif operation.kind == "S":
            count = max(0, self._covers.pop(operation.offset) - self._dropped)
            for earlier in self.since[:count]:
                apply(earlier, self.synced)
            del self.since[:count]
            self._dropped += count
        else:
            self.since.append(operation)

    def after_cut(self, fate: str, rng: random.Random) -> bytes:
        content = bytearray(self.synced)
        for operation in surviving(self.since, fate, rng):
            apply(operation, content)
        return bytes(content)


#: What may become of writes that no sync covered: a cache is lost, or written in any order.
FATES = ("none", "all", "first", "some", "sectors")


def cuts(operations: Sequence[Operation], count: int, rng: random.Random) -> Iterator[Cut]:
    """Yield ``count`` cuts at random moments, in the order of time."""
    files = {QUEUE: _File(), LOG: _File()}
    confirmed = bytearray()
    moments = sorted(rng.sample(range(len(operations)), count))
    for moment, operation in enumerate(operations):
        if operation.file == CONFIRMED:
            if operation.kind == "w":
                apply(operation, confirmed)
        else:
            files[operation.file].take(operation)
        if moments and moments[0] == moment:
            del moments[0]
            fate = rng.choice(FATES)
            left = {name: file.after_cut(fate, rng) for name, file in files.items()}
            yield Cut(moment, fate, left, bytes(confirmed))


def surviving(
    operations: Sequence[Operation], fate: str, rng: random.Random
) -> Iterator[Operation]:
    """Yield those of the unsynced operations that reached the disk."""
    if fate == "all":
        yield from operations
    elif fate == "first":
        yield from operations[: rng.randint(0, len(operations))]
    elif fate == "some":
        yield from (operation for operation in operations if rng.random() < 0.5)
    elif fate == "sectors":
        for operation in operations:
            yield from (part for part in sectors(operation) if rng.random() < 0.5)


def sectors(operation: Operation) -> Iterator[Operation]:
    """Yield a write sector by sector."""
    if operation.kind != "w":
        yield operation
    for start in range(0, len(operation.data), SECTOR):
        data = operation.data[start : start + SECTOR]
        yield operation._replace(offset=operation.offset + start, data=data)


def apply(operation: Operation, content: bytearray) -> None:
    """Do to a content what was done to the file."""
    end = operation.offset + len(operation.data)
    if operation.kind == "t":
        del content[operation.offset :]
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if operation.kind == "w":
        content[operation.offset : end] = operation.data
