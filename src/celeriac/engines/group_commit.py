"""Group commit: threads of one process that write the same at the same time share a transaction.

They publish, or they complete what they ran. Who comes first commits for all who came until then,
while the others wait; who comes during that commit waits for the next one. So eight threads of a
web process pay for two commits, and two waits for the disk, rather than for eight; and a thousand
tasks that waited for the same thing end in a few. Nobody waits for others to come: a lone one
commits at once, and pays 3 µs for this.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Generic
from typing import TypeVar

from .base import EngineError

#: What callers bring, and what the transaction says.
T = TypeVar("T")
R = TypeVar("R")

#: How long to wait for a word from the leader, which an interrupt may have kept from saying it,
#: before looking again (seconds); as many as _CROWD then look in that time, however many wait.
_FLOOR = 0.05
_CROWD = 8
#: So many items together, and no more shares are added: other processes want to write, too.
_ENOUGH = 200

_INTERRUPTED = (
    "A signal handler publishes while it interrupts a thread that does so: let the handler only "
    "note what is to be sent, and send it later."
)

_ENDING = (
    "The program ends in the midst of another thread's publishing, which will not go on: publish "
    "before the main thread returns."
)

#: Writes items in one transaction, and calls what it was given once that is committed.
Commit = Callable[[Sequence[T], Callable[[R], None]], None]


class Share(Generic[T, R]):
    """What one caller brings, and what became of it."""

    __slots__ = ("answer", "error", "is_settled", "items", "word")

    def __init__(self, items: Sequence[T]) -> None:
        self.items = items
        self.is_settled = False
        self.answer: R | None = None
        self.error: EngineError | None = None
        #: Set when it is settled, or when nobody leads any more.
        self.word: threading.Event | None = None

    def tell(self) -> None:
        """Wake the caller, if it sleeps."""
        if self.word is not None:
            self.word.set()


class GroupCommit(Generic[T, R]):
    """Those who write the same, of whom one at a time leads.

    A new process begins with a new one of these: its parent's threads are not its own, and what
    they bring is for the parent to write.

    :param pause: lets others come before each commit, where these can not come during it: while a
        greenlet waits for the disk, no other runs.
    """

    def __init__(self, pause: Callable[[], object] | None = None) -> None:
        self._pause = pause
        # The leader's. Whether anybody leads is told by this lock alone: `with` gives it back
        # whatever happens, while a time limit may keep a thread from setting anything else.
        self._turn = threading.Lock()
        self._leader = 0
        # In the order in which they came. A dictionary, because a thread that is interrupted
        # leaves while another one looks.
        self._waiting: dict[Share[T, R], None] = {}

    def __len__(self) -> int:
        """Return how many wait for others, or commit for them."""
        return len(self._waiting)

    def commit(self, items: Sequence[T], commit: Commit[T, R]) -> R:
        """Return when these items are committed, all or none, perhaps along with others'.

        :param commit: does it, in one transaction.
        :return: what the transaction said, of all items that were in it.
        """
        if self._waiting or self._turn.locked() or self._pause is not None:
            return self._commit_together(items, commit)
        try:
            with self._turn:
                return self._commit_alone(items, commit)
        finally:
            self._tell_next()

    def _commit_alone(self, items: Sequence[T], commit: Commit[T, R]) -> R:
        answers: list[R] = []
        self._leader = threading.get_ident()
        try:
            commit(items, answers.append)
        finally:
            self._leader = 0
        return answers[0]

    def _commit_together(self, items: Sequence[T], commit: Commit[T, R]) -> R:
        share: Share[T, R] = Share(items)
        self._waiting[share] = None
        try:
            while not share.is_settled:
                if self._turn.locked():
                    self._wait(share)
                    continue
                with self._turn:
                    if not share.is_settled:
                        self._lead(share, commit)
        finally:
            self._waiting.pop(share, None)
            self._tell_next()
        if share.error is not None:
            raise type(share.error)(*share.error.args) from share.error
        return share.answer  # type: ignore[return-value]  # It is settled.

    def _wait(self, share: Share[T, R]) -> None:
        if self._leader == threading.get_ident():
            raise EngineError(_INTERRUPTED)
        if sys.is_finalizing():
            raise EngineError(_ENDING)
        word = share.word = threading.Event()
        # Once more: from here on it would be told.
        if self._turn.locked() and not share.is_settled:
            word.wait(_FLOOR * max(1.0, len(self._waiting) / _CROWD))

    def _tell_next(self) -> None:
        """Let another one lead: the last to come, as one's own signal handler may be that."""
        if self._waiting and not self._turn.locked():
            for share in list(self._waiting)[-1:]:
                share.tell()

    def _lead(self, own: Share[T, R], commit: Commit[T, R]) -> None:
        """Commit for all who wait. If that is interrupted, they wait on, for the next leader."""
        if self._pause is not None:
            self._pause()
        self._leader = threading.get_ident()
        shares = list(self._enough())
        items = [item for share in shares for item in share.items]
        try:
            commit(items, lambda answer: self._settle(shares, answer))
        except EngineError as exc:
            # That of the file, which is locked or full: they would wait for it one after another.
            self._settle(shares, error=exc)
            raise
        except (sqlite3.Error, ValueError, OverflowError):
            # That of one item, which is not to be the others'.
            commit(own.items, lambda answer: self._settle([own], answer))
        finally:
            self._leader = 0

    def _enough(self) -> Iterator[Share[T, R]]:
        """Yield the shares of those who wait longest."""
        count = 0
        for share in list(self._waiting):
            if count and count + len(share.items) > _ENOUGH:
                return
            count += len(share.items)
            yield share

    def _settle(
        self,
        shares: list[Share[T, R]],
        answer: R | None = None,
        error: EngineError | None = None,
    ) -> None:
        """Let the callers go. Nobody is to commit for them again."""
        for share in shares:
            self._waiting.pop(share, None)
            share.answer, share.error = answer, error
            share.is_settled = True
            share.tell()
