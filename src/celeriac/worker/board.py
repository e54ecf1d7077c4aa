"""The board: what each child is doing, in memory that parent and children share.

A child writes what it starts; its parent reads it, without a word between them and without a
commit per task. When a child dies, the board says which of its deliveries had been started. It
is a mapped file beside the queue file, so it outlives the whole worker: another one reads it
when parent and children died together.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

#: How many children a worker may have, unless it starts with more.
SLOTS = 256
#: The slot under which the parent is woken, beyond those of children.
PARENT = 10_000
#: How many deliveries a child may have started and not completed.
STARTED = 256

# Per slot: process id; whether it runs a task now; the batch that it is to start no more of;
# how many deliveries it holds; how many it has started since the last completion; the number of
# its batch; when it began the current task, and when its soft and hard time limits end (monotonic
# seconds, 0 for none); how many tasks it has run. Then, beyond what a new child clears, the tag of
# the delivery in which somebody wants the soft time limit raised; and the tags that it has started.
_HEAD = struct.Struct("=IIIIIIdddQ")
_TAGS = 64
_SLOT = _TAGS + 8 * STARTED
_PID, _RUNNING, _HALT, _HELD, _COUNT, _BATCH, _BEGAN, _DONE = 0, 4, 8, 12, 16, 20, 24, 48
_SOFTENED = 56
#: The byte of "runs a task" that is not zero.
_RUNNING_BYTE = _RUNNING + struct.pack("=I", 1).index(1)
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")


class Watch(IntEnum):
    """How often the parent looks at the board."""

    #: It must be woken to notice a long task in time that others wait behind.
    SELDOM = 0
    OFTEN = 1
    #: So seldom that it must be woken to notice any task in time.
    RESTING = 2


class Activity(NamedTuple):
    """What one child is doing."""

    pid: int
    running: bool
    halted: bool
    held: int
    #: Grows whenever the child looks for work, claims, and is through with what it claimed.
    batch: int
    began: float
    soft_deadline: float
    hard_deadline: float
    done: int
    #: Tags of the deliveries started and not yet completed, the current one last.
    started: tuple[int, ...]


class Board:
    """The board of one worker.

    :param names: the tasks that can be counted; fixed when the board is made, as the slots are.
    """

    def __init__(self, path: Path | str, names: Sequence[str] = (), slots: int = SLOTS) -> None:
        self.path = Path(path)
        # Between the thread that runs tasks and the one that records their outcomes.
        self._lock = threading.Lock()
        self.slots = slots
        self.names = list(names)
        self._index = {name: place for place, name in enumerate(self.names)}
        size = slots * (_SLOT + 8 * len(self.names)) + 2 * _U32.size
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            missing = size - os.fstat(file).st_size
            if missing > 0:
                # Written, not truncated: touching a page for which a full disk has no room would
                # kill the process.
                os.pwrite(file, bytes(missing), size - missing)
            self._map = mmap.mmap(file, 0)
        finally:
            os.close(file)
        # What is written for each task goes through these: 40 ns a number instead of 130.
        whole = memoryview(self._map)[: len(self._map) // 8 * 8]
        self._u32, self._u64, self._f64 = whole.cast("I"), whole.cast("Q"), whole.cast("d")
        #: Where it says whether the parent looks often, and whether the worker ends. Counted from
        #: the end, where those find it who do not know the names.
        self._watch = len(self._map) - 2 * _U32.size
        self._stop = len(self._map) - _U32.size

    @staticmethod
    def is_whole(path: Path) -> bool:
        """Say whether a board is there, and nobody cut it off."""
        return path.exists() and path.stat().st_size >= SLOTS * _SLOT

    # The child's side

    def enter(self, slot: int, pid: int) -> None:
        """Say that a new child works in this slot."""
        done = self.read(slot).done
        _HEAD.pack_into(self._map, slot * _SLOT, pid, 0, 0, 0, 0, 1, 0.0, 0.0, 0.0, done)

    def hold(self, slot: int, count: int) -> None:
        """Say how many deliveries the child claimed, or with 0 that it is through with them."""
        base = slot * _SLOT
        (batch,) = _U32.unpack_from(self._map, base + _BATCH)
        _U32.pack_into(self._map, base + _BATCH, (batch + 1) & 0xFFFFFFFF or 1)
        _U32.pack_into(self._map, base + _HELD, count)

    def begin(self, slot: int, tag: int, began: float, soft: float, hard: float) -> bool:
        """Say that the child starts a delivery; return whether it may.

        The tag is written before the halt is read, and the parent halts before it reads the
        tags: so of a delivery that is started at that very moment at least one side knows.
        """
        base = slot * _SLOT
        u32, here = self._u32, base // 4
        with self._lock:
            count = u32[here + _COUNT // 4]
            self._u64[(base + _TAGS) // 8 + count] = tag
            u32[here + _COUNT // 4] = count + 1
            if u32[here + _HALT // 4] == u32[here + _BATCH // 4] or u32[self._stop // 4]:
                u32[here + _COUNT // 4] = count
                return False
        times, f64 = (base + _BEGAN) // 8, self._f64
        f64[times], f64[times + 1], f64[times + 2] = began, soft, hard
        u32[here + _RUNNING // 4] = 1
        return True

    def end(self, slot: int, task: str) -> None:
        """Say that the child is done with the current delivery."""
        base = slot * _SLOT
        self._u32[(base + _RUNNING) // 4] = 0
        self._u64[(base + _DONE) // 8] += 1
        place = self._index.get(task)
        if place is not None:
            self._u64[self._counter(slot, place) // 8] += 1

    def is_softened(self, slot: int) -> bool:
        """Say whether somebody wants the soft time limit raised in what runs now."""
        (tag,) = _U64.unpack_from(self._map, slot * _SLOT + _SOFTENED)
        activity = self.read(slot)
        return activity.running and activity.started[-1:] == (tag,)

    def is_to_wake(self, count: int) -> bool:
        """Say whether the parent is to be woken by who claimed so many deliveries."""
        watch = self._u32[self._watch // 4]
        return watch == Watch.RESTING or (count > 1 and watch != Watch.OFTEN)

    def is_stopping(self) -> bool:
        """Say whether the worker was told to end; no task begins then."""
        return bool(_U32.unpack_from(self._map, self._stop)[0])

    def recorded(self, slot: int, count: int) -> None:
        """Say that the first ``count`` of those that were started are recorded."""
        base = slot * _SLOT
        with self._lock:
            (started,) = _U32.unpack_from(self._map, base + _COUNT)
            rest = base + _TAGS + 8 * count
            self._map[base + _TAGS : rest - 8 * count + 8 * (started - count)] = self._map[
                rest : rest + 8 * (started - count)
            ]
            _U32.pack_into(self._map, base + _COUNT, started - count)

    # The parent's side

    def watch(self, watch: Watch) -> None:
        """Say how often the parent looks from now on."""
        self._u32[self._watch // 4] = watch

    def stop(self) -> None:
        """Let no task begin any more. Takes no lock, so that a signal's handler may call it."""
        _U32.pack_into(self._map, self._stop, 1)

    def halt(self, slot: int, batch: int) -> None:
        """Tell the child to start no more of this batch; its next one is not concerned."""
        _U32.pack_into(self._map, slot * _SLOT + _HALT, batch)

    def soften(self, slot: int, tag: int) -> None:
        """Have the soft time limit raised in this delivery, whatever its limit is."""
        _U64.pack_into(self._map, slot * _SLOT + _SOFTENED, tag)

    def read(self, slot: int) -> Activity:
        """Return what the child of a slot is doing."""
        base = slot * _SLOT
        head = _HEAD.unpack_from(self._map, base)
        pid, running, halt, held, count, batch, began, soft, hard, done = head
        tags = (base + _TAGS) // 8
        started = tuple(self._u64[tags : tags + min(count, STARTED)]) if count else ()
        halted = halt == batch
        return Activity(pid, bool(running), halted, held, batch, began, soft, hard, done, started)

    def running(self) -> list[int]:
        """Return the slots in which a task runs: a look that costs little, however many there are.

        It may be the last one of a child that is no more.
        """
        flags = self._map[_RUNNING_BYTE : self.slots * _SLOT : _SLOT]
        return [slot for slot, flag in enumerate(flags) if flag] if any(flags) else []

    def done(self) -> int:
        """Return how many tasks were run."""
        return sum(self._u64[_DONE // 8 : self.slots * _SLOT // 8 : _SLOT // 8])

    def totals(self) -> dict[str, int]:
        """Return how often each task was run."""
        totals = {}
        slots = [slot for slot in range(self.slots) if self.read(slot).done]
        for place, name in enumerate(self.names):
            total = sum(
                _U64.unpack_from(self._map, self._counter(slot, place))[0] for slot in slots
            )
            if total:
                totals[name] = total
        return totals

    def close(self) -> None:
        """Unmap the board and delete its file."""
        for view in (self._u32, self._u64, self._f64):
            view.release()
        self._map.close()
        self.path.unlink(missing_ok=True)

    def _counter(self, slot: int, place: int) -> int:
        return self.slots * _SLOT + 8 * (slot * len(self.names) + place)
