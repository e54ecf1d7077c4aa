"""The thread that stands by to record outcomes: when it does, and that it ends when told to."""

from __future__ import annotations

import threading
import time

import pytest
from waiting import wait_until

from celeriac.engines import open_engine
from celeriac.engines.base import Delivery
from celeriac.engines.base import Outcome
from celeriac.worker import completion
from celeriac.worker.completion import Completer
from celeriac.worker.completion import WINDOW

DELIVERY = Delivery(1, 1, "celery", "[]", "", "task", "id", 0, 0, False, None)


@pytest.mark.parametrize("after", [0.0, 0.5, 0.9, 1.0, 1.1])
def test_close_ends_the_thread_that_stands_by(queue_url: str, after: float) -> None:
    for _ in range(10):
        completer = Completer(open_engine(queue_url), lambda count, chords: None)
        completer.add(Outcome(DELIVERY))
        completer.stand_by()
        time.sleep(after * WINDOW)

        closing = threading.Thread(target=completer.close, daemon=True)
        closing.start()
        closing.join(5)

        assert not closing.is_alive()


def test_the_thread_records_what_waits_too_long(queue_url: str) -> None:
    recorded = []
    completer = Completer(
        open_engine(queue_url), lambda count, chords: recorded.append(threading.get_ident())
    )
    completer.add(Outcome(DELIVERY))
    completer.stand_by()

    wait_until(lambda: recorded and recorded[0] != threading.get_ident())
    completer.close()


def test_the_thread_leaves_young_outcomes_to_their_batch(
    queue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for a machine where nobody comes to run in time.
    monkeypatch.setattr(completion, "WINDOW", 1.0)
    threads = set()
    completer = Completer(
        open_engine(queue_url), lambda count, chords: threads.add(threading.get_ident())
    )
    ends = time.monotonic() + 2.5
    while time.monotonic() < ends:
        completer.add(Outcome(DELIVERY))
        completer.stand_by()
        time.sleep(0.1)
        completer.flush()
    completer.close()

    assert threads == {threading.get_ident()}
