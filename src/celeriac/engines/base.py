"""The seam: what one database must do to be broker and result backend.

Everything above (transport, backend, worker) is written once against :class:`Engine`;
everything below is one module per database, and its SQL. The operations are named after the
transitions they make, and each of them is one transaction: when it returns, all of it is
committed, and when it raises, none of it is.

An engine knows nothing of Flask, Celery or kombu. What a message *means* is in its
``envelope`` and ``body``, which an engine stores and returns without looking inside; what an
engine must know to route, order and delay it stands beside them in plain fields.

The definition of an engine is the suite it passes: ``tests/engines/conformance.py``.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple

from ..exceptions import EngineConfigurationError as EngineConfigurationError
from ..exceptions import EngineDamagedError as EngineDamagedError
from ..exceptions import EngineError as EngineError
from .routing import topic_matches

# The values below are named tuples rather than dataclasses: as immutable, and creating one
# costs 0.4 µs instead of 2.6 µs for a frozen dataclass of this size, several times per task.

#: The slot of a worker that claims without children.
ITSELF = -1
#: How many messages :meth:`Engine.withdraw` takes at most.
WITHDRAWN = 200
#: States in which a task stays: what :meth:`Engine.wait_for_results` waits for.
FINISHED = frozenset({"SUCCESS", "FAILURE", "REVOKED"})


class Message(NamedTuple):
    """A message on its way into one queue."""

    queue: str
    #: Headers, properties, content type and encoding as text; see :mod:`celeriac.envelope`.
    envelope: str
    body: str | bytes
    #: Name of the task, or ``""`` for a message that is no task (events, remote control).
    task: str = ""
    #: Id of the task, or ``""``.
    task_id: str = ""
    #: Higher first, as AMQP says.
    priority: int = 0
    #: Not to be claimed before this instant (Unix time, seconds).
    due_at: float | None = None
    #: Not to be claimed from this instant on (Unix time, seconds).
    expires_at: float | None = None
    #: Need not survive the loss of power (AMQP's delivery mode 1).
    transient: bool = False
    #: What its envelope leaves out, because many messages have it in common: an engine keeps one
    #: copy of it.
    form: str = ""


class Delivery(NamedTuple):
    """A message handed to a claimant, until the claimant completes or releases it."""

    #: Identifies the message while it is stored.
    tag: int
    #: Fences the completion: differs for each time that the message is claimed.
    token: int
    queue: str
    envelope: str
    body: str | bytes
    task: str
    task_id: str
    priority: int
    #: How many claimants died while they held it.
    deaths: int
    #: Whether it was handed out before and may have been started.
    redelivered: bool
    expires_at: float | None
    form: str = ""


class Result(NamedTuple):
    """The stored row about a task."""

    task_id: str
    state: str
    #: What the result backend encoded: an engine does not look inside.
    meta: bytes
    #: To be forgotten from this instant on (Unix time, seconds); ``None`` keeps it.
    expires_at: float | None = None


class ChordPart(NamedTuple):
    """One finished member of a chord's header."""

    group_id: str
    #: Tells the members apart: one that finishes twice is counted once.
    member: str
    #: Its place in the header. ``None`` comes last, in the order of finishing.
    place: int | None
    #: What the result backend encoded, as in :class:`Result`: a header whose results are
    #: ignored has them nowhere else.
    meta: bytes
    #: The chord's callback, kept so that a dead worker's chord can be taken up by another.
    callback: bytes
    #: The chord can not succeed any more: it is complete with this part, whatever is missing.
    failed: bool = False


class Action(enum.IntEnum):
    """What becomes of the message of a finished delivery."""

    ACKNOWLEDGE = 0
    #: Back into its queue, as redelivered.
    REQUEUE = 1
    #: Kept whole, and out of its queue, until it is revived or discarded: a dead letter.
    SET_ASIDE = 2


class Aside(NamedTuple):
    """Why a message is set aside."""

    #: A short word.
    reason: str
    #: What happened, as JSON: the last part of the message's report.
    report: str
    #: Count a death of its claimant against the message.
    died: bool = False


class Outcome(NamedTuple):
    """What a delivery ended in; :meth:`Engine.complete` records all of it at once."""

    delivery: Delivery
    action: Action = Action.ACKNOWLEDGE
    #: The task's own result, and those of others that it decided (a failed chain's).
    results: Sequence[Result] = ()
    #: What the task sent next: its callbacks, the next step of its chain, its retry.
    messages: Sequence[Message] = ()
    parts: Sequence[ChordPart] = ()
    #: Of the chords among the messages: the group's id, and how many parts complete it.
    sizes: Sequence[tuple[str, int]] = ()
    #: With :attr:`Action.SET_ASIDE`: why.
    aside: Aside | None = None


class Completion(NamedTuple):
    """What :meth:`Engine.complete` recorded."""

    #: Tags of the deliveries that were still held; of the others nothing was recorded.
    recorded: frozenset[int]
    #: Parts that completed their chord: the caller has its callback published, through
    #: :meth:`Engine.finish_chord`.
    chords: Sequence[ChordPart]


class Queue(NamedTuple):
    """A declared queue."""

    name: str
    #: Deleted when it was not used for so long (seconds).
    expires: float | None = None
    #: Messages in it expire after so long (seconds).
    message_ttl: float | None = None
    #: Deleted when its last consumer is gone.
    auto_delete: bool = False


class Binding(NamedTuple):
    """A queue bound to an exchange."""

    exchange: str
    #: ``direct``, ``topic`` or ``fanout``.
    type: str
    routing_key: str
    queue: str

    def matches(self, routing_key: str) -> bool:
        """Say whether a message published with ``routing_key`` goes to this queue."""
        if self.type == "topic":
            return topic_matches(self.routing_key, routing_key)
        return self.type == "fanout" or self.routing_key == routing_key


class Worker(NamedTuple):
    """A worker as it introduces itself, and as others see it."""

    #: Fresh at every start, so that a restarted worker is never taken for its predecessor.
    id: str
    hostname: str
    pid: int
    queues: Sequence[str]
    #: Names of the tasks that it can run.
    tasks: Collection[str]
    #: How many tasks it runs at once.
    concurrency: int = 1
    started_at: float = 0.0
    heartbeat_at: float = 0.0
    #: Whether the process lives. An engine that can not tell goes by the heartbeat.
    alive: bool = True


class TaskInfo(NamedTuple):
    """A stored message, as the reading operations show it."""

    tag: int
    task_id: str
    task: str
    queue: str
    #: ``ready``, ``scheduled``, ``claimed`` or ``dead``.
    status: str
    priority: int
    published_at: float
    due_at: float | None
    envelope: str
    body: str | bytes
    #: Id of the worker that claimed it, and the slot of its pool.
    worker: str | None = None
    slot: int | None = None
    deaths: int = 0
    claimed_at: float | None = None
    expires_at: float | None = None
    #: Of a dead letter: why and when it was set aside.
    reason: str | None = None
    died_at: float | None = None
    #: What :meth:`Engine.redeliver` and :class:`Aside` reported, as a JSON array.
    report: str | None = None
    form: str = ""


class Revocations(NamedTuple):
    """What was called off."""

    #: Ids of tasks.
    task_ids: Collection[str] = frozenset()
    #: Tasks with one of these values in one of these stamps. One object while it is the same.
    stamps: Mapping[str, Sequence[Any]] = {}
    #: By the ids of some of the tasks: the signal to end them with while they run.
    signals: Mapping[str, int] = {}

    def include(self, task_id: str, stamps: Mapping[str, Any] | None) -> bool:
        """Say whether a task with these stamps was called off."""
        return task_id in self.task_ids or any(
            value in self.stamps[name]
            for name, values in (stamps or {}).items()
            if name in self.stamps
            for value in (values if isinstance(values, (list, tuple)) else (values,))
        )


class Entry(NamedTuple):
    """An entry of a schedule, and when its task was sent last."""

    #: Whose schedule: several may stand in one database.
    schedule: str
    name: str
    #: Its last run, or the instant from which it counts while there was none (Unix time).
    last_run_at: float
    runs: int = 0


class Lost(NamedTuple):
    """A delivery whose claimant died."""

    delivery: Delivery
    worker_id: str
    slot: int
    #: The worker's node name, for the error that users see.
    hostname: str


class Engine(abc.ABC):
    """One database that plays broker and result backend.

    Safe to share between threads. After a fork the child may go on using it: connections are
    opened anew in each process, and none is ever used across a fork.

    Every operation may raise :exc:`EngineError`, within the engine's busy timeout.
    """

    #: The URL that it was opened with, without a password.
    url: str

    @property
    @abc.abstractmethod
    def folder(self) -> Path:
        """A folder on this machine for what its workers share outside the database."""

    # Messages

    @abc.abstractmethod
    def publish(self, messages: Sequence[Message]) -> None:
        """Store the messages, all or none. Queues that do not exist are created."""

    @abc.abstractmethod
    def claim(
        self,
        queues: Sequence[str],
        limit: int,
        *,
        worker: str,
        slot: int = ITSELF,
        tasks: Collection[str] | None = None,
        rates: Mapping[str, float] | None = None,
        look: bool = True,
    ) -> list[Delivery]:
        """Take up to ``limit`` due messages out of ``queues``.

        Within a queue the higher priority comes first, then the older message; queues take
        turns. Expired messages are claimed as well, for the caller to record as revoked; it
        tells them by their ``expires_at``.

        :param worker: id given to :meth:`register`.
        :param slot: which of the worker's children claims, said before by :meth:`attend`.
        :param tasks: claim only these tasks, and leave others waiting; ``None`` claims all.
        :param rates: seconds between two starts of a task, over all workers.
        :param look: look first whether there is anything, so as to be in nobody's way in vain. Who
            was just told that there is may leave it out.
        """

    @abc.abstractmethod
    def complete(self, outcomes: Sequence[Outcome]) -> Completion:
        """Record outcomes: acknowledge, store results, publish what was sent, count chords.

        A delivery that is held no more, because it was given to another, is left out whole.
        """

    @abc.abstractmethod
    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give back deliveries that were not started; they return to their place."""

    @abc.abstractmethod
    def purge(self, queue: str) -> int:
        """Delete the waiting and future messages of a queue; return how many."""

    @abc.abstractmethod
    def revive(self, tags: Collection[int], forget: Sequence[str] = ()) -> int:
        """Put dead letters back into their queues, as if they had never died; return how many.

        They are redelivered under their ids, and what is stored under these is forgotten, but for
        a ``SUCCESS``.

        :param forget: ids of tasks whose results are forgotten with theirs.
        """

    @abc.abstractmethod
    def discard(self, tags: Collection[int]) -> int:
        """Delete dead letters; return how many. What is stored of their results stays."""

    @abc.abstractmethod
    def wait_for_messages(
        self,
        queues: Sequence[str],
        timeout: float,
        *,
        tasks: Collection[str] | None = None,
        rates: Mapping[str, float] | None = None,
        place: tuple[str, int] | None = None,
    ) -> bool:
        """Sleep until :meth:`claim`, called the same way, should find a message; say so.

        It need not: what came may be a task that is not claimed. May return early. Returns at the
        latest after ``timeout`` seconds.

        :param place: worker id and slot, under which :meth:`wake` finds the caller.
        """

    @abc.abstractmethod
    def wake(self, worker_id: str, slot: int) -> None:
        """Make the wait of one of this machine's pool children return at once."""

    # Queues and exchanges

    @abc.abstractmethod
    def declare_queue(self, queue: Queue) -> None:
        """Create the queue if it does not exist, and note that it is used."""

    @abc.abstractmethod
    def delete_queue(self, queue: str) -> None:
        """Delete the queue, its messages and its bindings; what is claimed or dead stays."""

    @abc.abstractmethod
    def bind(self, binding: Binding) -> None:
        """Bind a queue to an exchange; binding twice changes nothing."""

    @abc.abstractmethod
    def unbind(self, binding: Binding) -> None:
        """Undo :meth:`bind`."""

    @abc.abstractmethod
    def bindings(self, exchange: str) -> list[Binding]:
        """Return the bindings of one exchange."""

    # Results

    @abc.abstractmethod
    def store_results(self, results: Sequence[Result]) -> None:
        """Store results. One in state ``SUCCESS`` is never overwritten."""

    @abc.abstractmethod
    def get_results(self, task_ids: Sequence[str]) -> dict[str, Result]:
        """Return the stored results among ``task_ids``."""

    @abc.abstractmethod
    def wait_for_results(self, task_ids: Sequence[str], timeout: float) -> dict[str, Result]:
        """Return the finished ones (``SUCCESS``, ``FAILURE``, ``REVOKED``) as soon as any is.

        Returns an empty mapping after ``timeout`` seconds, and may do so earlier.
        """

    @abc.abstractmethod
    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete results."""

    @abc.abstractmethod
    def save_group(self, group_id: str, meta: bytes, expires_at: float | None) -> None:
        """Store a group's members, encoded."""

    @abc.abstractmethod
    def get_group(self, group_id: str) -> bytes | None:
        """Return what :meth:`save_group` stored."""

    @abc.abstractmethod
    def delete_group(self, group_id: str) -> None:
        """Delete a group; its members' results stay."""

    # Chords

    @abc.abstractmethod
    def set_chord_size(self, group_id: str, size: int) -> bool:
        """Say how many parts complete the chord; say whether they have all come already."""

    @abc.abstractmethod
    def add_to_chord(self, group_id: str) -> None:
        """Expect one part more, whether the size is known yet or not."""

    @abc.abstractmethod
    def join_chord(self, part: ChordPart) -> bool:
        """Count one part outside :meth:`complete`; say whether it completes the chord.

        The last part does, or the first that failed.
        """

    @abc.abstractmethod
    def chord_parts(self, group_id: str) -> list[ChordPart]:
        """Return the parts that came so far, in the header's order; none of a finished chord."""

    @abc.abstractmethod
    def finish_chord(
        self,
        group_id: str,
        messages: Sequence[Message] = (),
        results: Sequence[Result] = (),
        sizes: Sequence[tuple[str, int]] = (),
    ) -> bool:
        """End the chord, publishing its callback in the same transaction.

        Says whether it was this call that did so. If another one did before, nothing is
        published and nothing stored: of several dispatchers one wins. Of a chord that failed,
        parts may still come; they do nothing any more, and the last of them is its very end.
        """

    @abc.abstractmethod
    def ready_chords(self, before: float) -> list[ChordPart]:
        """Return one part of each unfinished chord that was complete before this (Unix time).

        Whoever was to finish them is dead.
        """

    # Revocation

    @abc.abstractmethod
    def revoke(
        self,
        task_ids: Collection[str] = (),
        stamps: Mapping[str, Iterable[Any]] | None = None,
        *,
        signal: int | None = None,
    ) -> None:
        """Call tasks off, by their ids or by what they are stamped with, once and for all.

        Nothing else happens to them: whoever claims them asks, and does not run them.

        :param signal: what ends those that run by now, and are known by their ids.
        """

    @abc.abstractmethod
    def revocations(self, task_ids: Collection[str] | None = None) -> Revocations:
        """Return what was called off: those among ``task_ids``, or all; and every stamp.

        Costs next to nothing as long as nothing was called off.
        """

    @abc.abstractmethod
    def withdraw(self, task_ids: Collection[str] | None = None) -> list[Delivery]:
        """Claim what waits and is not to run, due or not: these tasks, or what has expired.

        At most :data:`WITHDRAWN` of them; an expired message that is no task is deleted. They
        are held in nobody's name: what the caller does not complete returns to its queue.
        """

    # Schedules

    @abc.abstractmethod
    def save_entries(self, schedule: str, starts: Mapping[str, float]) -> dict[str, Entry]:
        """Make these the entries of a schedule, and return what is stored of each.

        Entries that it had before keep their last run, and those that it has no more are deleted.

        :param starts: the names, and the instant from which each counts if it is new.
        """

    @abc.abstractmethod
    def get_entries(self, schedule: str, names: Sequence[str]) -> dict[str, Entry]:
        """Return the stored entries among ``names``."""

    @abc.abstractmethod
    def record_run(self, entry: Entry, now: float, messages: Sequence[Message]) -> bool:
        """Publish what a due entry sends, and note ``now`` as its last run.

        Says whether it was this call that did so. If the stored last run is not that of
        ``entry``, another one was first, and nothing is published: of several beats one wins.
        """

    # Workers

    @abc.abstractmethod
    def register(self, worker: Worker) -> None:
        """Make the calling process known as a worker, or update what it said of itself."""

    @abc.abstractmethod
    def attend(self, worker_id: str, slot: int) -> None:
        """Say that the calling process works in ``slot`` of the worker, for as long as it lives."""

    @abc.abstractmethod
    def heartbeat(self, worker_id: str) -> None:
        """Say that the worker lives."""

    @abc.abstractmethod
    def deregister(self, worker_id: str) -> None:
        """Forget the worker. Deliveries that it still holds count as lost."""

    @abc.abstractmethod
    def lost(self, worker_id: str | None = None, slot: int | None = None) -> list[Lost]:
        """Return the deliveries whose claimant is dead.

        :param worker_id: with ``slot``: return what this slot holds, known to be dead.
        """

    @abc.abstractmethod
    def redeliver(
        self, deliveries: Sequence[Delivery], *, died: bool, report: str | None = None
    ) -> None:
        """Give back deliveries of a dead claimant, as redelivered.

        :param died: count the death against the message.
        :param report: how it died, as JSON; kept with the message.
        """

    @abc.abstractmethod
    def maintain(self, now: float) -> bool:
        """Delete what is over: results, groups, queues, revocations, dead letters and workers.

        Of what the database must not hold for its size, the oldest results go early, then dead
        letters, never those of the last minute, and no messages that wait. Takes a tenth of a
        second at most; says whether more is left to delete. While one of several workers is at
        it, the others have nothing to do.
        """

    # Reading

    @abc.abstractmethod
    def queue_sizes(self, queues: Sequence[str] | None = None) -> dict[str, int]:
        """Return how many messages wait in each queue, those not yet due left out.

        Queues that do not exist are left out.
        """

    @abc.abstractmethod
    def list_workers(self) -> list[Worker]:
        """Return the workers that are known, the dead ones with ``alive`` false."""

    @abc.abstractmethod
    def list_tasks(
        self,
        *,
        task_ids: Sequence[str] | None = None,
        worker: str | None = None,
        tasks: Sequence[str] | None = None,
        queues: Sequence[str] | None = None,
        status: str | None = None,
        reason: str | None = None,
        limit: int = 1000,
    ) -> list[TaskInfo]:
        """Return stored messages that match all that is given, oldest first.

        Dead letters are left out unless they are asked for: by id, status or reason.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close the connections of this process. The engine opens them again when used."""
