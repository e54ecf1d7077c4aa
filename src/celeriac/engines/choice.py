"""What a claim takes: from which lanes, in which order, and when.

Within a queue the higher priority comes first, then the older message. Queues take turns, so
that a long one does not keep a short one waiting. What may not start yet is stepped over.
"""

from __future__ import annotations

import math
import random
import sqlite3
import time
from collections.abc import Iterator
from collections.abc import Mapping
from itertools import islice
from itertools import zip_longest

from .lanes import Intake
from .lanes import Lanes


class Choice:
    """Chooses what a claimant takes, within the transaction of its claim."""

    def __init__(self, sql: Mapping[str, str], lanes: Lanes) -> None:
        self._sql = sql
        self._lanes = lanes

    def take_due(self, db: sqlite3.Connection, now: float) -> None:
        """Let a share of the messages that have become due wait with the others."""
        ((due_at,),) = db.execute(self._sql["next_due"])
        if due_at is not None and due_at <= now:
            due = db.execute(self._sql["take_due"], (now,)).fetchall()
            db.executemany(self._sql["insert_ready"], due)

    def heads(
        self, db: sqlite3.Connection, intake: Intake, limit: int, now: float
    ) -> list[tuple[int, int, int]]:
        """Choose up to ``limit`` messages: queues take turns, the best of each first."""
        turns: dict[str, list[tuple[int, int, int]]] = {}
        held_back = self._held_back(db, intake, now)
        limited: dict[str, list[tuple[int, int, str, int]]] = {}
        busy = self._busy(db)
        for lane in self._lanes.select(db, intake):
            if lane.id not in busy or lane.task in held_back:
                continue
            if lane.task in intake.rates:
                rows = db.execute(self._sql["head"], (lane.id, 1)).fetchall()
                found = limited.setdefault(lane.task, [])
                found += [(rank, tag, lane.queue, lane.id) for rank, tag in rows]
                continue
            rows = db.execute(self._sql["head"], (lane.id, limit)).fetchall()
            turns.setdefault(lane.queue, []).extend((rank, tag, lane.id) for rank, tag in rows)
        # One start of each of these tasks, whichever of its queues it comes from.
        for rank, tag, queue, lane_id in (min(found) for found in limited.values() if found):
            turns.setdefault(queue, []).append((rank, tag, lane_id))
        heads = list(islice(_in_turns(turns), limit))
        if limited:
            heads = self._start_now(db, intake, heads, now)
        return [(lane, rank, tag) for rank, tag, lane in heads]

    def outlook(self, db: sqlite3.Connection, intake: Intake) -> float:
        """Return in how many seconds something may be claimed; zero means now."""
        lanes = self._lanes.select(db, intake)
        outlook = math.inf
        if not lanes:
            return outlook
        now = time.time()
        held_back = self._held_back(db, intake, now)
        busy = self._busy(db)
        for lane in lanes:
            if lane.id in busy:
                outlook = min(outlook, max(0.0, held_back.get(lane.task, now) - now))
            if not outlook:
                return outlook
        ((due_at,),) = db.execute(self._sql["next_due"])
        return outlook if due_at is None else min(outlook, max(0.0, due_at - now))

    def _busy(self, db: sqlite3.Connection) -> set[int]:
        """Return the ids of the lanes in which something waits."""
        return {lane for (lane,) in db.execute(self._sql["busy_lanes"])}

    # Rate limits: rows that say when a task may start next, whoever starts it

    def _held_back(self, db: sqlite3.Connection, intake: Intake, now: float) -> dict[str, float]:
        """Return the tasks that may not start now, and when they may.

        The last start is what is stored: a rate that is changed takes effect at once, and a
        clock that was set back holds nothing up.
        """
        if not intake.rates:
            return {}
        rows = db.execute(self._sql["rates"]).fetchall()
        starts = {
            task: at + intake.rates[task] for task, at in rows if at <= now and task in intake.rates
        }
        return {task: at for task, at in starts.items() if at > now}

    def _start_now(
        self,
        db: sqlite3.Connection,
        intake: Intake,
        heads: list[tuple[int, int, int]],
        now: float,
    ) -> list[tuple[int, int, int]]:
        """Note the starts of limited tasks, and put these first: they start when they are claimed.

        Behind others of the batch they would start later, and the next one too soon after them.
        """
        tasks = {lane.id: lane.task for lane in self._lanes.select(db, intake)}
        for task in {tasks[head[2]] for head in heads} & set(intake.rates):
            db.execute(self._sql["set_rate"], (task, now))
        return sorted(heads, key=lambda head: tasks[head[2]] not in intake.rates)


def _in_turns(
    turns: dict[str, list[tuple[int, int, int]]],
) -> Iterator[tuple[int, int, int]]:
    """Yield from each queue in turn, within a queue by rank and age.

    The first turn goes to a queue drawn by lot, so that claims of one are fair as well.
    """
    queues = [sorted(heads) for heads in turns.values() if heads]
    if len(queues) == 1:
        return iter(queues[0])
    random.shuffle(queues)
    return (head for turn in zip_longest(*queues) for head in turn if head is not None)
