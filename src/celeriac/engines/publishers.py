"""Group commit: the threads of one process that publish at the same time share a transaction.

Who comes first commits for all who came until then, while the others wait; who comes during that
commit waits for the next one. So eight threads of a web process pay for two commits, and two
waits for the disk, rather than for eight. Nobody waits for others to come: a lone publisher
commits at once, and pays 3 µs for this.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable
from collections.abc import Sequence

from .base import EngineError
from .base import Message

#: How long to wait for a word from the leader, which an interrupt may have kept from saying it,
#: before looking again (seconds).
_FLOOR = 0.05

_INTERRUPTED = (
    "A signal handler publishes while it interrupts a thread that does so: let the handler only "
    "note what is to be sent, and send it later."
)

_ENDING = (
    "The program ends in the midst of another thread's publishing, which will not go on: publish "
    "before the main thread returns."
)


#: Stores messages in one transaction, and calls what it was given once that is committed.
Commit = Callable[[Sequence[Message], Callable[[], None]], None]


class Share:
    """What one caller brings, and what became of it."""

    __slots__ = ("error", "is_settled", "messages", "word")

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.is_settled = False
        self.error: EngineError | None = None
        #: Set when it is settled, or when nobody leads any more.
        self.word: threading.Event | None = None

    def tell(self) -> None:
        """Wake the caller, if it sleeps."""
        if self.word is not None:
            self.word.set()


class Publishers:
    """Those who publish, of whom one at a time leads.

    A new process begins with a new one of these: its parent's threads are not its own, and their
    messages are for the parent to publish.
    """

    def __init__(self) -> None:
        # The leader's. Whether anybody leads is told by this lock alone: `with` gives it back
        # whatever happens, while a time limit may keep a thread from setting anything else.
        self._turn = threading.Lock()
        self._leader = 0
        # In the order in which they came. A dictionary, because a thread that is interrupted
        # leaves while another one looks.
        self._waiting: dict[Share, None] = {}

    def __len__(self) -> int:
        """Return how many wait for others, or commit for them."""
        return len(self._waiting)

    def publish(self, messages: Sequence[Message], commit: Commit) -> None:
        """Return when these messages are committed, all or none, perhaps along with others'.

        :param commit: does it, in one transaction.
        """
        if self._waiting or self._turn.locked():
            self._publish_together(messages, commit)
            return
        try:
            with self._turn:
                self._commit_alone(messages, commit)
        finally:
            self._tell_next()

    def _commit_alone(self, messages: Sequence[Message], commit: Commit) -> None:
        self._leader = threading.get_ident()
        try:
            commit(messages, _nothing)
        finally:
            self._leader = 0

    def _publish_together(self, messages: Sequence[Message], commit: Commit) -> None:
        share = Share(messages)
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

    def _wait(self, share: Share) -> None:
        if self._leader == threading.get_ident():
            raise EngineError(_INTERRUPTED)
        if sys.is_finalizing():
            raise EngineError(_ENDING)
        word = share.word = threading.Event()
        # Once more: from here on it would be told.
        if self._turn.locked() and not share.is_settled:
            word.wait(_FLOOR)

    def _tell_next(self) -> None:
        """Let another one lead: the last to come, as one's own signal handler may be that."""
        if self._waiting and not self._turn.locked():
            for share in list(self._waiting)[-1:]:
                share.tell()

    def _lead(self, own: Share, commit: Commit) -> None:
        """Commit for all who wait. If that is interrupted, they wait on, for the next leader."""
        self._leader = threading.get_ident()
        shares = list(self._waiting)
        messages = [message for share in shares for message in share.messages]
        try:
            commit(messages, lambda: self._settle(shares))
        except EngineError as exc:
            # That of the file, which is locked or full: they would wait for it one after another.
            self._settle(shares, exc)
            raise
        except (sqlite3.Error, ValueError, OverflowError):
            # That of one message, which is not to be the others'.
            commit(own.messages, lambda: self._settle([own]))
        finally:
            self._leader = 0

    def _settle(self, shares: list[Share], error: EngineError | None = None) -> None:
        """Let the callers go. Nobody is to commit for them again."""
        for share in shares:
            self._waiting.pop(share, None)
            share.error = error
            share.is_settled = True
            share.tell()


def _nothing() -> None:
    """Nobody waits for the commit but who makes it."""
