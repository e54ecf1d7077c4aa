"""Sends tasks as fast as they are worked off, until told to stop, and notes what was confirmed.

Before a call its ids are noted as ``sending``; after it, as ``sent``. A call that raises is noted
as ``refused``. Ids that are only ``sending``, because this process was killed in between, may
have been sent or not.
"""

from __future__ import annotations

import random
import sys
import time
import uuid
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from celery import chain
from celery import chord
from celery import group
from celery import signature as signature_of

from celeriac.engines import EngineError
from celeriac.engines import open_engine
from faults.program import add
from faults.program import celery
from faults.program import deadly
from faults.program import early
from faults.program import exiting
from faults.program import failing
from faults.program import FOLDER
from faults.program import journal
from faults.program import late
from faults.program import retrying
from faults.program import total

#: With so many waiting there is no need for more.
ENOUGH = 200
#: Kinds of tasks that are called off, and how long after they were sent (seconds).
CALLED_OFF = {"revoked": 0.0, "terminated": 0.3}


Kind = Callable[[random.Random], Any]


def main(seed: int, sent: Mapping[Kind, int]) -> None:
    """Send, of each kind so often, until the file ``stop`` is there."""
    rng = random.Random(seed)
    engine = open_engine(celery.conf.broker_url)
    kinds, weights = list(sent), list(sent.values())
    # One by each producer: while nobody knows it, it waits, and too many would be enough.
    send("unknown", signature_of("faults.program.stranger", app=celery))
    while not (FOLDER / "stop").exists():
        try:
            if sum(engine.queue_sizes().values()) > ENOUGH:
                time.sleep(0.05)
                continue
        except EngineError:
            continue
        for kind in rng.choices(kinds, weights, k=20):
            send(kind.__name__, kind(rng))


def send(kind: str, signature: Any) -> None:
    """Send a signature whose ids are known before."""
    result = signature.freeze(str(uuid.uuid4()))
    ids = sorted(all_ids(result))
    if kind == "counted":
        ids.remove(result.id)
        journal.write("sending", "summed", result.id)
    journal.write("sending", kind, *ids)
    if not attempt(signature.apply_async):
        journal.write("refused", kind, *ids)
        return
    journal.write("sent", kind, *ids)
    if kind == "counted":
        journal.write("sent", "summed", result.id)
    if kind in CALLED_OFF:
        call_off(kind, result.id)


def call_off(kind: str, task_id: str) -> None:
    """Revoke a task, and note that this was confirmed."""
    time.sleep(CALLED_OFF[kind])
    terminate = kind == "terminated"
    if attempt(lambda: celery.control.revoke(task_id, terminate=terminate, signal="SIGKILL")):
        journal.write("revoked", task_id)


def attempt(call: Callable[[], Any]) -> bool:
    """Call; say whether that succeeded, and print why not."""
    try:
        call()
    except (EngineError, ConnectionError, OSError) as exc:
        print(f"refused: {exc}", flush=True)
        return False
    return True


def all_ids(result: Any) -> set[str]:
    """Return the ids of all tasks that a result stands for."""
    found: set[str] = set()
    while result is not None:
        members = getattr(result, "results", None)
        if members is None:
            found.add(result.id)
        else:
            found.update(*map(all_ids, members))
        result = result.parent
    return found


def quick_early(rng: random.Random) -> Any:
    return early.s(rng.uniform(0, 0.01))


def quick_late(rng: random.Random) -> Any:
    return late.s(rng.uniform(0, 0.01))


def slow_early(rng: random.Random) -> Any:
    return early.s(rng.uniform(0.1, 1))


def slow_late(rng: random.Random) -> Any:
    return late.s(rng.uniform(0.1, 1))


def long_early(rng: random.Random) -> Any:
    return early.s(rng.uniform(3, 6))


def long_late(rng: random.Random) -> Any:
    return late.s(rng.uniform(3, 6))


def later(rng: random.Random) -> Any:
    return late.s(0).set(countdown=rng.uniform(0.1, 3))


def steps(rng: random.Random) -> Any:
    return chain(add.s(1, 1), add.s(1), add.s(1))


def counted(rng: random.Random) -> Any:
    return chord(group(add.s(i, 1) for i in range(3)), total.s())


def tries(rng: random.Random) -> Any:
    return retrying.s()


def fails(rng: random.Random) -> Any:
    return failing.s()


def exits(rng: random.Random) -> Any:
    return exiting.s()


def kills(rng: random.Random) -> Any:
    return deadly.s()


def soft(rng: random.Random) -> Any:
    return early.s(8).set(soft_time_limit=0.3)


def hard(rng: random.Random) -> Any:
    return early.s(8).set(time_limit=0.3)


def revoked(rng: random.Random) -> Any:
    return late.s(0).set(countdown=rng.uniform(0.3, 1))


def terminated(rng: random.Random) -> Any:
    return early.s(rng.uniform(0.1, 3))


def expiring(rng: random.Random) -> Any:
    return early.s(0).set(expires=rng.uniform(0.02, 0.5))


#: Kinds of work, and how often each is sent.
KINDS: dict[Kind, int] = {
    quick_early: 400,
    quick_late: 400,
    slow_early: 20,
    slow_late: 20,
    long_early: 1,
    long_late: 1,
    later: 40,
    steps: 60,
    counted: 40,
    tries: 30,
    fails: 15,
    exits: 1,
    kills: 1,
    soft: 1,
    hard: 1,
    revoked: 10,
    terminated: 1,
    expiring: 10,
}


if __name__ == "__main__":
    main(int(sys.argv[1]), KINDS)
