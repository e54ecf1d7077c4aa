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

#: With so many waiting there is no need for more.
ENOUGH = 200


Kind = Callable[[random.Random], Any]


def main(seed: int, sent: Mapping[Kind, int]) -> None:
    """Send, of each kind so often, until the file ``stop`` is there."""
    rng = random.Random(seed)
    engine = open_engine(celery.conf.broker_url)
    kinds, weights = list(sent), list(sent.values())
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
    journal.write("sending", kind, *ids)
    try:
        signature.apply_async()
    except (EngineError, ConnectionError, OSError) as exc:
        journal.write("refused", kind, *ids)
        print(f"refused: {exc}", flush=True)
    else:
        journal.write("sent", kind, *ids)


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


def later(rng: random.Random) -> Any:
    return late.s(0).set(countdown=rng.uniform(0.1, 3))


def steps(rng: random.Random) -> Any:
    return chain(add.s(1, 1), add.s(1), add.s(1))


def counted(rng: random.Random) -> Any:
    return chord(group(add.s(i, 1) for i in range(3)), add.s(1))


def tries(rng: random.Random) -> Any:
    return retrying.s()


def fails(rng: random.Random) -> Any:
    return failing.s()


def exits(rng: random.Random) -> Any:
    return exiting.s()


def kills(rng: random.Random) -> Any:
    return deadly.s()


#: Kinds of work, and how often each is sent.
KINDS: dict[Kind, int] = {
    quick_early: 400,
    quick_late: 400,
    slow_early: 6,
    slow_late: 6,
    later: 40,
    steps: 60,
    counted: 40,
    tries: 30,
    fails: 15,
    exits: 1,
    kills: 1,
}


if __name__ == "__main__":
    main(int(sys.argv[1]), KINDS)
