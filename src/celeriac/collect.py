"""What a finishing task stores and sends, gathered so that one commit records all of it.

While a :class:`Collector` is in force, the result backend and the publishers put what they would
write into it, and whoever set it up hands it to :meth:`~celeriac.engines.base.Engine.complete`
or :meth:`~celeriac.engines.base.Engine.finish_chord`. It holds for one engine only: what goes to
another broker or backend is written at once, as ever.
"""

from __future__ import annotations

from contextvars import ContextVar

from .engines import Engine
from .engines.base import ChordPart
from .engines.base import Message
from .engines.base import Result

#: The end of an envelope whose body can be searched.
_PLAIN = '"application/json", "utf-8"]'


class Collector:
    """Gathers the results, messages and chord parts of one task.

    :param task_id: the running task, whose own final result is always collected.
    :param closing: collect everything. Set it once the task's function has returned or raised;
        until then, what the task stores and sends is written at once, as its author expects.
    """

    __slots__ = ("closing", "engine", "messages", "parts", "results", "sizes", "task_id")

    def __init__(self, engine: Engine, task_id: str = "", *, closing: bool = False) -> None:
        self.engine = engine
        self.task_id = task_id
        self.closing = closing
        self.results: list[Result] = []
        self.messages: list[Message] = []
        self.parts: list[ChordPart] = []
        self.sizes: list[tuple[str, int]] = []

    @property
    def collected(
        self,
    ) -> tuple[list[Result], list[Message], list[ChordPart], list[tuple[str, int]]]:
        """All that was gathered, in the order of :class:`~celeriac.engines.base.Outcome`."""
        sizes = self.sizes and [size for size in self.sizes if self._sends_chord(size[0])]
        return self.results, self.messages, self.parts, sizes

    def _sends_chord(self, group_id: str) -> bool:
        """Say whether a message may count in the chord.

        Of a group in a chord's header Celery tells the size as if that were a chord, while its
        members count in the chord around it. Nothing would ever remove such a chord.
        """
        return any(
            _is_opaque(message) or group_id in message.envelope or group_id in str(message.body)
            for message in self.messages
        )

    def fail(self) -> bool:
        """Collect everything from now on, for the task has failed; say if it had not succeeded.

        What was collected of callbacks is dropped: Celery sends them before it stores the
        result, and that is what failed. What goes under the task's own id is its retry, and
        what goes under none is an event.
        """
        if any(each.task_id == self.task_id and each.state == "SUCCESS" for each in self.results):
            return False
        if self.closing:
            kept = (self.task_id, "")
            self.messages = [each for each in self.messages if each.task_id in kept]
            self.sizes = []
        self.closing = True
        return True


_current: ContextVar[Collector | None] = ContextVar("celeriac_collector", default=None)


class collecting:
    """Put the collector in force in this thread, in place of any other.

    A class: a generator would take 1 µs more for each task.
    """

    __slots__ = ("_collector", "_token")

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def __enter__(self) -> Collector:
        self._token = _current.set(self._collector)
        return self._collector

    def __exit__(self, *exc_info: object) -> None:
        _current.reset(self._token)


def current(engine: Engine) -> Collector | None:
    """Return the collector in force for ``engine``."""
    collector = _current.get()
    return collector if collector is not None and collector.engine is engine else None


def _is_opaque(message: Message) -> bool:
    envelope = message.form or message.envelope
    is_plain = isinstance(message.body, str) and envelope.endswith(_PLAIN)
    return not is_plain or '"compression"' in envelope


def publish(engine: Engine, messages: list[Message]) -> None:
    """Publish through ``engine``: with the running task's outcome if it belongs to it, or now.

    What is sent once the task's function is done belongs to it, and so does what is sent under
    the task's own id (its retry, its replacement): that must not run before this run ended.
    """
    collector = current(engine)
    if collector is not None and (
        collector.closing
        or (collector.task_id and any(each.task_id == collector.task_id for each in messages))
    ):
        collector.messages += messages
    else:
        engine.publish(messages)
