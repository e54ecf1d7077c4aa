"""Many outcomes in one transaction.

A commit costs more than a small task. So a child collects the outcomes of what it claimed
together and records them together: when the batch is through, when the oldest has waited for
:data:`WINDOW`, or when there are :data:`LIMIT`. A thread stands by for the case that the next
task of the batch takes long: the finished ones must not wait for it.

The price: when a child is killed between the end of a task and the commit, its result is
missing. What happens then is told in :mod:`celeriac.worker.redelivery`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence

from celery.utils.log import get_logger

from celeriac.engines import Engine
from celeriac.engines import EngineError
from celeriac.engines.base import ChordPart
from celeriac.engines.base import Outcome

from .trouble import tell

logger = get_logger(__name__)

#: How long a finished task may wait for its commit (seconds). The thread that stands by looks
#: this often, and only while something waits.
WINDOW = 0.01
#: How many outcomes are recorded at once at most; also bounds the memory that they take.
LIMIT = 200


class Completer:
    """Records the outcomes of one child.

    :param on_recorded: called after each commit, with the number of outcomes recorded and the
        chords that they completed.
    """

    def __init__(
        self, engine: Engine, on_recorded: Callable[[int, Sequence[ChordPart]], None]
    ) -> None:
        self._engine = engine
        self._on_recorded = on_recorded
        self._lock = threading.Lock()
        self._pending: list[Outcome] = []
        self._oldest = 0.0
        self._waiting = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, outcome: Outcome) -> None:
        """Take an outcome in; it is recorded soon, or now if there are many."""
        if not self._pending:
            self._oldest = time.monotonic()
        self._pending.append(outcome)
        if len(self._pending) >= LIMIT or self._is_late():
            self._try_flush()

    def flush(self) -> None:
        """Record all outcomes now. If that fails they stay, and the error is raised."""
        with self._lock:
            outcomes = self._pending[:LIMIT]
            while outcomes:
                completion = self._engine.complete(outcomes)
                del self._pending[: len(outcomes)]
                self._on_recorded(len(outcomes), completion.chords)
                outcomes = self._pending[:LIMIT]

    def stand_by(self) -> None:
        """Have finished outcomes recorded even while the caller is busy with the next task."""
        if self._pending and not self._waiting.is_set():
            self._start_thread()
            self._waiting.set()

    def close(self) -> None:
        """Record what is left, and stop."""
        self.flush()
        self._closed = True
        self._waiting.set()
        if self._thread is not None:
            self._thread.join()

    def waiting(self) -> list[str]:
        """Return the ids of the tasks whose outcomes are not recorded."""
        return [outcome.delivery.task_id for outcome in self._pending]

    def _is_late(self) -> bool:
        return time.monotonic() - self._oldest > WINDOW

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._watch, name="celeriac-completer", daemon=True
            )
            self._thread.start()

    def _watch(self) -> None:
        # Asked after each clear(), which may have swallowed the call of close().
        while not self._closed:
            self._waiting.wait()
            time.sleep(self._left())
            if self._pending and not self._is_late():
                # Of a batch after the one that this was called for, which its child records.
                continue
            self._waiting.clear()
            if self._pending:
                self._try_flush()

    def _left(self) -> float:
        """Return how long the oldest may still wait (seconds)."""
        left = self._oldest + WINDOW - time.monotonic()
        return min(max(left, 0.0), WINDOW) if self._pending else WINDOW

    def _try_flush(self) -> None:
        try:
            self.flush()
        except EngineError as exc:
            # The outcomes are kept, and the child claims nothing more before they are recorded.
            tell(logger, "Outcomes wait to be recorded: %s", exc)
