"""Messages of Celery's protocol 1, which old programs send, and `task_protocol = 1`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain
from celery import chord
from celery.exceptions import TaskRevokedError

SOON = 10


@pytest.fixture(autouse=True)
def sent_by_protocol_1(tasks: Any) -> Iterator[None]:
    _send_by(tasks.celery, 1)
    yield
    _send_by(tasks.celery, 2)


def _send_by(celery: Any, protocol: int) -> None:
    celery.conf.task_protocol = protocol
    # Celery looks at the setting once.
    vars(celery.amqp).pop("create_task_message", None)


def test_task_runs_with_its_arguments_and_its_own_headers(tasks: Any) -> None:
    result = tasks.whoami.apply_async((1,), {"b": [2]}, headers={"custom": "mine"})

    found = result.get(timeout=SOON)

    assert (found["id"], found["args"], found["kwargs"]) == (result.id, [1], {"b": [2]})
    assert found["headers"]["custom"] == "mine"
    assert found["retries"] == 0


def test_canvas_goes_on(tasks: Any) -> None:
    header = [tasks.add.s(1, 1), chain(tasks.add.s(1, 1), tasks.add.s(1))]

    assert chain(tasks.add.s(1, 1), tasks.add.s(2)).delay().get(timeout=SOON) == 4
    assert chord(header)(tasks.total.s()).get(timeout=SOON) == 5


def test_countdown_and_expiry_are_kept(tasks: Any) -> None:
    sent = time.time()

    later = tasks.add.apply_async((1, 1), countdown=1)
    late = tasks.add.apply_async((1, 1), countdown=1, expires=0.5)

    assert later.get(timeout=SOON) == 2
    assert time.time() - sent >= 1
    with pytest.raises(TaskRevokedError):
        late.get(timeout=SOON)


def test_compressed_message_is_read(tasks: Any) -> None:
    assert tasks.add.apply_async((1, 1), compression="zlib").get(timeout=SOON) == 2
