"""Waking those who wait, between the processes of one machine, without polling.

Who waits takes a slot: a state byte and a mask in a small file mapped by all processes, and a
named pipe to sleep on. Who has something to tell looks at the mapped bytes, and writes to the
pipes of those that wait for it. So a publisher under load pays 0.3 µs for finding nobody
asleep, and 5 µs for each sleeper that it wakes.

Of sleepers that would all do the same, as the children of one worker do, no more are woken than
there is to do: the others would look in vain, in the way of the one that works. Should that one
not come to it, the others look at their next turn, as for any lost wake-up.

Slots are held by a lock on one byte of the file, which the kernel gives up when the process
dies, however it dies. Where the platform has no named pipes, or all slots are taken, waiting
falls back to short sleeps.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path

SLOTS = 512
# The masks follow the state bytes, and then come the kinds. All fits in one page, so that on a full
# disk there is either room for it or not.
_MASKS = SLOTS
_KINDS = _MASKS + 4 * SLOTS
_SIZE = _KINDS + 2 * SLOTS
_MASK, _KIND = struct.Struct("=I"), struct.Struct("=H")

#: What a sleeper waits for, as the state byte of its slot; zero says that it is awake.
MESSAGES = 1
RESULTS = 2
_AWAKE = 0

#: How long to sleep between two looks when there is no slot to be had (seconds).
_POLL = 0.02

#: What a sleeper is told: that there is something, or to look whether there is.
NOW = b"!"
LOOK = b"?"

EVERY = 0xFFFFFFFF
#: The kind of those who are like no other.
UNLIKE = 0


def mask(names: Iterable[str]) -> int:
    """Return the bits of some names (queues, task ids); two names may share a bit."""
    bits = 0
    for name in names:
        bits |= 1 << (zlib.crc32(name.encode()) & 31)
    return bits


def kind_of(worker_id: str, queues: Sequence[str]) -> int:
    """Return the kind of those who take from these queues for one worker.

    Its parent, who waits for its mailbox, is of another than its children.
    """
    return zlib.crc32("\n".join((worker_id, *queues)).encode()) & 0xFFFF or 1


class Bell:
    """The bell of one queue file, in this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._free: list[Sleeper] = []
        self._sleeping = 0
        self._pipes: dict[int, int] = {}
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(folder / "bell", flags, 0o600)
        missing = _SIZE - os.fstat(self._file).st_size
        if missing > 0:
            # Written, not truncated: touching a page for which a full disk has no room would
            # kill the process.
            os.pwrite(self._file, bytes(missing), _SIZE - missing)
        self._map = mmap.mmap(self._file, _SIZE)
        self._used: set[int] = set()

    @property
    def in_use(self) -> bool:
        """Whether anybody of this process has a sleeper out."""
        return self._sleeping > 0

    def ring(self, state: int, bits: int = EVERY, count: int = SLOTS, word: bytes = NOW) -> None:
        """Wake those who wait for ``state`` and have a bit in common.

        :param count: how many of each kind to wake at most; of :data:`UNLIKE` all are woken.
        :param word: :data:`NOW`, or :data:`LOOK` if they may have to wait on.
        """
        woken: Counter[int] = Counter()
        find = self._map.find
        byte = bytes((state,))
        slot = find(byte, 0, SLOTS)
        while slot >= 0:
            (kind,) = _KIND.unpack_from(self._map, _KINDS + _KIND.size * slot)
            (wanted,) = _MASK.unpack_from(self._map, _MASKS + _MASK.size * slot)
            if wanted & bits and woken[kind] < count:
                self.ring_slot(slot, word)
                woken[kind] += kind != UNLIKE
            slot = find(byte, slot + 1, SLOTS)

    def anyone(self, state: int) -> bool:
        """Say whether anybody waits for ``state``."""
        return self._map.find(bytes((state,)), 0, SLOTS) >= 0

    def ring_slot(self, slot: int, word: bytes = LOOK) -> None:
        """Wake one sleeper. Waking one that is awake makes its next sleep short.

        Never fails: what there is to tell is committed already, and sleepers look by themselves
        now and then.
        """
        self._map[slot] = _AWAKE
        try:
            os.write(self._pipe(slot), word)
        except OSError:
            pass  # The pipe is full, or gone: its reader is awake, dead or polling.

    def sleeper(self) -> Sleeper:
        """Return a sleeper to wait with; give it back with :meth:`give_back`."""
        with self._lock:
            self._sleeping += 1
            if self._free:
                return self._free.pop()
            return Sleeper(self, self._take_slot())

    def give_back(self, sleeper: Sleeper) -> None:
        """Keep the sleeper for the next one who waits, if it has a slot to keep."""
        with self._lock:
            self._sleeping -= 1
            if sleeper.slot is not None:
                self._free.append(sleeper)

    def close(self) -> None:
        """Give up every slot of this process."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Close without the lock, which the thread of a process before the fork may hold."""
        for sleeper in self._free:
            sleeper.close()
        for pipe in self._pipes.values():
            os.close(pipe)
        self._free.clear()
        self._pipes.clear()
        self._map.close()
        os.close(self._file)
        self._file = -1

    def _take_slot(self) -> int | None:
        for slot in range(SLOTS):
            if slot in self._used:
                continue
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
            except OSError:
                continue
            self._used.add(slot)
            return slot
        return None

    def _pipe(self, slot: int) -> int:
        pipe = self._pipes.get(slot)
        if pipe is None:
            with self._lock:
                pipe = self._pipes.get(slot)
                if pipe is None:
                    # For reading, too: writing where nobody reads any more would send SIGPIPE,
                    # which kills programs that want it so.
                    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
                    pipe = self._pipes[slot] = os.open(self._folder / f"pipe-{slot}", flags)
        return pipe

    def _set(self, slot: int, state: int, bits: int, kind: int) -> None:
        _MASK.pack_into(self._map, _MASKS + _MASK.size * slot, bits)
        _KIND.pack_into(self._map, _KINDS + _KIND.size * slot, kind)
        self._map[slot] = state


class Sleeper:
    """One who waits: a slot of the bell, and the pipe that it sleeps on."""

    def __init__(self, bell: Bell, slot: int | None) -> None:
        self._bell = bell
        self.slot = slot
        self._pipe = -1
        if slot is not None:
            try:
                self._open(bell._folder / f"pipe-{slot}")
            except OSError:
                self.slot = None  # No named pipes here.

    def wait(
        self,
        state: int,
        bits: int,
        timeout: float,
        outlook: Callable[[], float],
        *,
        kind: int = UNLIKE,
        sure: bool = False,
    ) -> bool:
        """Sleep until rung, at most ``timeout`` seconds; say whether there is anything.

        The order matters: the slot says "asleep" before ``outlook`` looks, so whoever changes
        anything after that look sees the sleeper and rings.

        :param outlook: returns in how many seconds there may be something; zero means now.
        :param kind: the same for all who would do the same; see :meth:`Bell.ring`.
        :param sure: take :data:`NOW` for an answer, and do not look once more.
        """
        if self.slot is None:
            return self._poll(timeout, outlook)
        self._bell._set(self.slot, state, bits, kind)
        try:
            nap = outlook()
            if nap <= 0:
                return True
            heard = self._sleep(min(timeout, nap))
        finally:
            self._bell._map[self.slot] = _AWAKE
        return (sure and NOW in heard) or outlook() <= 0

    def close(self) -> None:
        """Give the slot up."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _open(self, path: Path) -> None:
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:
            pass
        # Open for writing too, or the pipe would report a hang-up whenever no bell has it open.
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._drain()

    def _sleep(self, timeout: float) -> bytes:
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        return self._drain() if poll.poll(max(0, timeout) * 1000) else b""

    def _drain(self) -> bytes:
        """Return what was heard since the last time, or the beginning of it."""
        heard = b""
        try:
            while len(words := os.read(self._pipe, 512)) == 512:
                heard = words
        except BlockingIOError:
            return heard
        return heard + words

    @staticmethod
    def _poll(timeout: float, outlook: Callable[[], float]) -> bool:
        deadline = time.monotonic() + timeout
        while outlook() > 0:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(_POLL, left))
        return True
