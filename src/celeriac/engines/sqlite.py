"""The SQLite engine: one file, one writer at a time, connections that never cross a fork.

Reading order: :class:`SQLiteEngine` is the seam's operations, each a transaction
(:mod:`.transactions`) over the statements of ``sql/sqlite/queries.sql``; :mod:`.connections` is
how a thread gets its connection and how a fork is survived; :mod:`.group_commit` lets threads
commit together; :mod:`.choice` is what a claim takes, and :mod:`.lanes` what it takes from;
:mod:`.chords` counts, :mod:`.dead` sets aside, :mod:`.workers` knows who is there, and
:mod:`.upkeep` deletes what is over; and what belongs to the machine rather than the file, who
sleeps and who lives, is in :mod:`.bell` and :mod:`.presence`.
"""

from __future__ import annotations

import json
import math
import random
import sqlite3
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import Action
from .base import Binding
from .base import ChordPart
from .base import Completion
from .base import Delivery
from .base import Engine
from .base import Entry
from .base import FINISHED
from .base import ITSELF
from .base import Lost
from .base import Message
from .base import Outcome
from .base import Queue
from .base import Result
from .base import Revocations
from .base import TaskInfo
from .base import WITHDRAWN
from .base import Worker
from .bell import kind_of
from .bell import LOOK
from .bell import mask
from .bell import MESSAGES
from .bell import RESULTS
from .bell import UNLIKE
from .choice import Choice
from .chords import Chords
from .connections import Connections
from .dead import Dead
from .lanes import Intake
from .lanes import Lanes
from .place import parse_url
from .place import Place
from .statements import load_statements
from .transactions import Transactions
from .upkeep import Upkeep
from .workers import delivery_of
from .workers import Workers

#: The longest sleep without a look at the file (seconds): the floor under a lost wake-up.
FLOOR = 1.0
#: The number that no worker has.
NOBODY = 0


class SQLiteEngine(Engine):
    """One queue file. See :class:`~celeriac.engines.base.Engine` for what each operation promises.

    :param url: ``sqlite:///relative.sqlite3``, ``sqlite:////absolute.sqlite3``, with the
        options ``durability=full|normal``, ``busy_timeout=<seconds>``, ``max_size=<bytes>``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.place: Place = parse_url(url)
        self._connections = Connections(self.place)
        self._sql = load_statements("sqlite")
        transactions = Transactions(self.place, self._connections, self._sql)
        self._write, self._read = transactions.write, transactions.read
        self._rows = transactions.rows
        self._chords = Chords(self._sql)
        self._dead = Dead(self._sql)
        self._workers = Workers(self._sql, transactions, self._connections)
        self._upkeep = Upkeep(self.place, self._sql, transactions, self._chords, self._dead)
        self._lanes = Lanes(self._sql)
        self._choice = Choice(self._sql, self._lanes)
        # The revoked stamps as of one version of them.
        self._stamps: tuple[tuple[Any, ...], dict[str, list[Any]]] = ((None, None), {})

    @property
    def folder(self) -> Path:
        self._connections.bell()  # Makes the folder, if this is its first use.
        return self.place.folder

    # Messages

    def publish(self, messages: Sequence[Message]) -> None:
        self._connections.publishers.commit(messages, self._publish)
        self._ring_queues(messages)

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
        if limit < 1:
            return []
        intake = Intake.of(queues, tasks, rates)
        # Looking costs no lock, so idle workers do not stand in the way of those who write.
        if look and self._read(lambda db: self._choice.outlook(db, intake)) > 0:
            return []
        with self._write(durable=False) as db:
            now = time.time()
            self._choice.take_due(db, now)
            heads = self._choice.heads(db, intake, limit, now)
            return self._claim(db, heads, self._workers.number(db, worker), slot, now)

    def complete(self, outcomes: Sequence[Outcome]) -> Completion:
        if not outcomes:
            return Completion(frozenset(), ())
        count, completion = self._connections.completers.commit(outcomes, self._complete)
        return completion if count == len(outcomes) else _own(completion, outcomes)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        with self._write(durable=False) as db:
            self._restore(db, self._end_claims(db, deliveries))
        self._ring_queues(deliveries)

    def redeliver(
        self, deliveries: Sequence[Delivery], *, died: bool, report: str | None = None
    ) -> None:
        with self._write() as db:
            held = self._end_claims(db, deliveries)
            tags = json.dumps(list(held))
            db.execute(self._sql["mark_redelivered"], (int(died), tags))
            if report is not None:
                db.execute(self._sql["add_report"], (report, tags))
            self._restore(db, held)
        self._ring_queues(deliveries)

    def purge(self, queue: str) -> int:
        with self._write() as db:
            return self._upkeep.purge(db, queue)

    def revive(self, tags: Collection[int], forget: Sequence[str] = ()) -> int:
        with self._write() as db:
            ended = self._dead.end(db, tags)
            queues = self._dead.renew(db, ended, forget)
            self._restore(db, ended)
        self._ring(queues)
        return len(ended)

    def discard(self, tags: Collection[int]) -> int:
        with self._write() as db:
            return self._dead.delete(db, tags)

    def wait_for_messages(
        self,
        queues: Sequence[str],
        timeout: float,
        *,
        tasks: Collection[str] | None = None,
        rates: Mapping[str, float] | None = None,
        place: tuple[str, int] | None = None,
    ) -> bool:
        intake = Intake.of(queues, tasks, rates)

        def outlook() -> float:
            return self._read(lambda db: self._choice.outlook(db, intake))

        kind = UNLIKE if place is None else kind_of(place[0], queues)
        with self._connections.sleeper() as sleeper:
            if place is not None:
                self._connections.presence().sleeps_on(*place, sleeper.slot)
            nap = min(timeout, FLOOR)
            return sleeper.wait(MESSAGES, mask(queues), nap, outlook, kind=kind, sure=True)

    def wake(self, worker_id: str, slot: int) -> None:
        bell_slot = self._connections.presence().bell_slot(worker_id, slot)
        if bell_slot is not None:
            self._connections.bell().ring_slot(bell_slot)

    # Queues and exchanges

    def declare_queue(self, queue: Queue) -> None:
        fields = {**queue._asdict(), "auto_delete": int(queue.auto_delete), "now": time.time()}
        with self._write(durable=False) as db:
            db.execute(self._sql["declare_queue"], fields)

    def delete_queue(self, queue: str) -> None:
        with self._write() as db:
            self._upkeep.delete_queue(db, queue)

    def bind(self, binding: Binding) -> None:
        with self._write(durable=False) as db:
            db.execute(self._sql["bind"], binding)

    def unbind(self, binding: Binding) -> None:
        with self._write(durable=False) as db:
            key = (binding.exchange, binding.routing_key, binding.queue)
            db.execute(self._sql["unbind"], key)

    def bindings(self, exchange: str) -> list[Binding]:
        rows = self._rows("bindings", (exchange,))
        return [Binding(*row) for row in rows]

    # Results

    def store_results(self, results: Sequence[Result]) -> None:
        with self._write() as db:
            self._store(db, results)
        self._ring_results(results)

    def get_results(self, task_ids: Sequence[str]) -> dict[str, Result]:
        rows = self._rows("get_results", (json.dumps(list(task_ids)),))
        return {row[0]: Result(*row) for row in rows}

    def wait_for_results(self, task_ids: Sequence[str], timeout: float) -> dict[str, Result]:
        found: dict[str, Result] = {}

        def outlook() -> float:
            for task_id, result in self.get_results(task_ids).items():
                if result.state in FINISHED:
                    found[task_id] = result
            return 0.0 if found else math.inf

        deadline = time.monotonic() + timeout
        with self._connections.sleeper() as sleeper:
            while not sleeper.wait(
                RESULTS, mask(task_ids), min(deadline - time.monotonic(), FLOOR), outlook
            ):
                if time.monotonic() >= deadline:
                    break
        return found

    def forget(self, task_ids: Sequence[str]) -> None:
        with self._write(durable=False) as db:
            db.execute(self._sql["forget"], (json.dumps(list(task_ids)),))

    def save_group(self, group_id: str, meta: bytes, expires_at: float | None) -> None:
        with self._write() as db:
            db.execute(self._sql["save_group"], (group_id, meta, expires_at))

    def get_group(self, group_id: str) -> bytes | None:
        rows = self._rows("get_group", (group_id,))
        return rows[0][0] if rows else None

    def delete_group(self, group_id: str) -> None:
        with self._write(durable=False) as db:
            db.execute(self._sql["delete_group"], (group_id,))

    # Chords

    def set_chord_size(self, group_id: str, size: int) -> bool:
        with self._write() as db:
            return self._chords.size_one(db, group_id, size)

    def add_to_chord(self, group_id: str) -> None:
        with self._write() as db:
            db.execute(self._sql["add_to_chord"], (group_id, time.time()))

    def join_chord(self, part: ChordPart) -> bool:
        with self._write() as db:
            return self._chords.join(db, part)

    def chord_parts(self, group_id: str) -> list[ChordPart]:
        return [ChordPart(*row) for row in self._rows("chord_parts", (group_id,))]

    def finish_chord(
        self,
        group_id: str,
        messages: Sequence[Message] = (),
        results: Sequence[Result] = (),
        sizes: Sequence[tuple[str, int]] = (),
    ) -> bool:
        with self._write() as db:
            if not self._chords.finish(db, group_id):
                return False
            self._insert(db, messages)
            self._store(db, results)
            self._chords.size(db, sizes)
        self._ring_results(results)
        self._ring_queues(messages)
        return True

    def ready_chords(self, before: float) -> list[ChordPart]:
        return [ChordPart(*row) for row in self._rows("ready_chords", (before, time.time()))]

    # Revocation

    def revoke(
        self,
        task_ids: Collection[str] = (),
        stamps: Mapping[str, Iterable[Any]] | None = None,
        *,
        signal: int | None = None,
    ) -> None:
        now = time.time()
        pairs = [
            (stamp, json.dumps(value), now)
            for stamp, values in (stamps or {}).items()
            for value in values
        ]
        with self._write() as db:
            db.executemany(self._sql["revoke"], [(task_id, now, signal) for task_id in task_ids])
            db.executemany(self._sql["revoke_stamp"], pairs)

    def revocations(self, task_ids: Collection[str] | None = None) -> Revocations:
        any_ids, *version = self._rows("any_revoked")[0]
        if any_ids and task_ids is None:
            rows = self._rows("all_revoked")
        else:
            rows = self._rows("revoked", (json.dumps(list(task_ids or ())),)) if any_ids else []
        if tuple(version) != self._stamps[0]:
            self._stamps = (tuple(version), self._load_stamps())
        signals = {task_id: signal for task_id, signal in rows if signal is not None}
        return Revocations([row[0] for row in rows], self._stamps[1], signals)

    def withdraw(self, task_ids: Collection[str] | None = None) -> list[Delivery]:
        name = "waiting_expired" if task_ids is None else "waiting_tasks"
        parameters: dict[str, Any] = {
            "now": time.time(),
            "task_ids": json.dumps(list(task_ids or ())),
            "limit": WITHDRAWN,
        }
        if not self._rows(name, parameters):
            return []
        with self._write(durable=False) as db:
            rows = db.execute(self._sql[name], parameters).fetchall()
            db.executemany(self._sql["delete_scheduled"], [(row[3], row[2]) for row in rows])
            return self._claim(db, [row[:3] for row in rows], NOBODY, ITSELF, parameters["now"])

    def _load_stamps(self) -> dict[str, list[Any]]:
        stamps: dict[str, list[Any]] = {}
        for stamp, value in self._rows("revoked_stamps"):
            stamps.setdefault(stamp, []).append(json.loads(value))
        return stamps

    # Schedules

    def save_entries(self, schedule: str, starts: Mapping[str, float]) -> dict[str, Entry]:
        new = [(schedule, name, start) for name, start in starts.items()]
        with self._write() as db:
            db.executemany(self._sql["add_entry"], new)
            db.execute(self._sql["keep_entries"], (schedule, json.dumps(list(starts))))
        return self.get_entries(schedule, list(starts))

    def get_entries(self, schedule: str, names: Sequence[str]) -> dict[str, Entry]:
        rows = self._rows("get_entries", (schedule, json.dumps(list(names))))
        return {row[1]: Entry(*row) for row in rows}

    def record_run(self, entry: Entry, now: float, messages: Sequence[Message]) -> bool:
        with self._write() as db:
            fields = {**entry._asdict(), "now": now}
            if not db.execute(self._sql["record_run"], fields).rowcount:
                return False
            self._insert(db, messages)
        self._ring_queues(messages)
        return True

    # Workers

    def register(self, worker: Worker) -> None:
        self._workers.register(worker)

    def attend(self, worker_id: str, slot: int) -> None:
        self._connections.presence().hold(worker_id, slot)

    def heartbeat(self, worker_id: str) -> None:
        self._workers.heartbeat(worker_id)

    def deregister(self, worker_id: str) -> None:
        self._workers.deregister(worker_id)

    def lost(self, worker_id: str | None = None, slot: int | None = None) -> list[Lost]:
        return self._workers.lost(worker_id, slot)

    def maintain(self, now: float) -> bool:
        used = self._workers.forget_dead()
        self._workers.remove_strays()
        return self._upkeep.clean(used, now)

    # Reading

    def queue_sizes(self, queues: Sequence[str] | None = None) -> dict[str, int]:
        return dict(self._rows("queue_sizes", {"queues": _listed(queues)}))

    def list_workers(self) -> list[Worker]:
        return self._workers.known()

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
        status = "dead" if reason is not None else status
        name = "list_tasks"
        if task_ids is not None:
            name = "list_tasks_by_id"
        elif status in ("claimed", "scheduled", "dead"):
            name = f"list_{status}_tasks"
        parameters = {
            "task_ids": _listed(task_ids),
            "worker": worker,
            "tasks": _listed(tasks),
            "queues": _listed(queues),
            "status": status,
            "reason": reason,
            "limit": limit,
        }
        # A newer version may have added columns meanwhile, while this worker goes on.
        known = len(TaskInfo._fields)
        return [TaskInfo(*row[:known]) for row in self._rows(name, parameters)]

    def close(self) -> None:
        self._connections.close()

    # Steps of the transactions above

    def _publish(self, messages: Sequence[Message], then: Callable[[None], None]) -> None:
        durable = any(not message.transient for message in messages)
        with self._write(durable, lambda: then(None)) as db:
            self._insert(db, messages)

    def _complete(
        self, outcomes: Sequence[Outcome], then: Callable[[tuple[int, Completion]], None]
    ) -> None:
        completion = Completion(frozenset(), ())
        with self._write(then=lambda: then((len(outcomes), completion))) as db:
            held = self._end_claims(db, [outcome.delivery for outcome in outcomes])
            recorded = [outcome for outcome in outcomes if outcome.delivery.tag in held]
            self._settle(db, recorded)
            results = [result for outcome in recorded for result in outcome.results]
            messages = [message for outcome in recorded for message in outcome.messages]
            parts = [part for outcome in recorded for part in outcome.parts]
            self._store(db, results)
            self._insert(db, messages)
            self._chords.size(db, [size for outcome in recorded for size in outcome.sizes])
            chords = [part for part in parts if self._chords.join(db, part)]
            completion = Completion(held, chords)
        self._ring_results(results)
        self._ring_queues(messages)
        self._ring_queues([each.delivery for each in recorded if each.action is Action.REQUEUE])

    def _insert(self, db: sqlite3.Connection, messages: Sequence[Message]) -> None:
        if not messages:  # As of most batches that are completed.
            return
        now = time.time()
        names = {(message.queue, message.task, message.form) for message in messages}
        lanes = self._lanes.ensure(db, names)
        # Numbered here, so that each table takes its rows in one go.
        ((first,),) = db.execute(self._sql["next_tag"])
        rows, ready, scheduled = [], [], []
        for tag, message in enumerate(messages, first):
            queue, envelope, body, task, task_id, priority, due_at, expires_at, _, form = message
            lane, *_, ttl = lanes[queue, task, form]
            if ttl is not None:
                expires_at = now + ttl if expires_at is None else min(now + ttl, expires_at)
            rows.append((tag, lane, -priority, task_id, now, due_at, expires_at, envelope, body))
            if due_at is None or due_at <= now:
                ready.append((lane, -priority, tag))
            else:
                scheduled.append((due_at, tag, lane, -priority))
        db.executemany(self._sql["insert_message"], rows)
        db.executemany(self._sql["insert_ready"], ready)
        if scheduled:
            db.executemany(self._sql["insert_scheduled"], scheduled)

    def _claim(
        self,
        db: sqlite3.Connection,
        heads: list[tuple[int, int, int]],
        number: int,
        slot: int,
        now: float,
    ) -> list[Delivery]:
        token = random.getrandbits(62)
        tags = [head[2] for head in heads]
        db.executemany(self._sql["delete_ready"], heads)
        claims = [(tag, token, number, slot, now) for tag in tags]
        db.executemany(self._sql["insert_claim"], claims)
        rows = db.execute(self._sql["claimed_messages"], (json.dumps(tags),)).fetchall()
        found = {row[0]: delivery_of(row) for row in rows}
        deliveries = [found[tag] for tag in tags]
        # A task that expired is somebody's to revoke; of any other message nobody hears again.
        stale = [item for item in deliveries if not item.task and _is_expired(item, now)]
        if stale:
            gone = self._end_claims(db, stale)
            db.execute(self._sql["delete_messages"], (json.dumps(sorted(gone)),))
            deliveries = [item for item in deliveries if item.tag not in gone]
        return deliveries

    def _end_claims(self, db: sqlite3.Connection, deliveries: Sequence[Delivery]) -> frozenset[int]:
        """End the claims that are still held; return their tags."""
        by_token: dict[int, list[int]] = {}
        for delivery in deliveries:
            by_token.setdefault(delivery.token, []).append(delivery.tag)
        held: list[int] = []
        for token, tags in by_token.items():
            rows = db.execute(self._sql["end_claims"], (token, json.dumps(tags))).fetchall()
            held += [tag for (tag,) in rows]
        return frozenset(held)

    def _settle(self, db: sqlite3.Connection, outcomes: Sequence[Outcome]) -> None:
        done: list[int] = []
        again: list[int] = []
        dead: list[Outcome] = []
        for outcome in outcomes:
            if outcome.action is Action.ACKNOWLEDGE:
                done.append(outcome.delivery.tag)
            elif outcome.action is Action.REQUEUE:
                again.append(outcome.delivery.tag)
            else:
                dead.append(outcome)
        if done:
            db.execute(self._sql["delete_messages"], (json.dumps(done),))
        if again:
            tags = json.dumps(again)
            db.execute(self._sql["mark_redelivered"], (0, tags))
            self._restore(db, again)
        self._dead.set_aside(db, dead, time.time())

    def _restore(self, db: sqlite3.Connection, tags: Collection[int]) -> None:
        """Put messages whose claims have ended back to their places."""
        listed = json.dumps(list(tags))
        db.execute(self._sql["restore_ready"], (listed,))
        db.execute(self._sql["restore_queues"], (time.time(), listed))

    def _store(self, db: sqlite3.Connection, results: Sequence[Result]) -> None:
        db.executemany(self._sql["store_result"], results)

    # Waking

    def _ring_queues(self, messages: Sequence[Message] | Sequence[Delivery]) -> None:
        bell = self._connections.bell()
        if not messages or not bell.anyone(MESSAGES):
            return
        due: list[str] = []
        later: list[str] = []
        for message in messages:
            is_due = getattr(message, "due_at", None) is None
            (due if is_due else later).append(message.queue)
        self._ring(due)
        if later:
            # All are to know until when they may sleep.
            bell.ring(MESSAGES, mask(later), word=LOOK)

    def _ring(self, queues: Collection[str]) -> None:
        """Wake who takes from these queues: of those who are alike, one for each message."""
        if queues:
            self._connections.bell().ring(MESSAGES, mask(queues), len(queues))

    def _ring_results(self, results: Sequence[Result]) -> None:
        bell = self._connections.bell()
        if results and bell.anyone(RESULTS):
            bell.ring(RESULTS, mask(result.task_id for result in results))


def _listed(values: Sequence[str] | None) -> str | None:
    return None if values is None else json.dumps(list(values))


def _own(completion: Completion, outcomes: Sequence[Outcome]) -> Completion:
    """Return what concerns some of the outcomes that were recorded together."""
    tags = {outcome.delivery.tag for outcome in outcomes}
    parts = {part for outcome in outcomes for part in outcome.parts}
    chords = [part for part in completion.chords if part in parts]
    return Completion(completion.recorded & tags, chords)


def _is_expired(delivery: Delivery, now: float) -> bool:
    return delivery.expires_at is not None and delivery.expires_at <= now
