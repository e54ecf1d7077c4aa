"""The thread that stands by to record outcomes: it ends whenever it is told to."""

from __future__ import annotations

import threading
import time

import pytest

from celeriac.engines import open_engine
from celeriac.engines.base import Delivery
from celeriac.engines.base import Outcome
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
