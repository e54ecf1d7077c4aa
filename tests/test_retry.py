"""Retries: when they run again, what they keep, and where they wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import MaxRetriesExceededError
from celery.exceptions import Retry
from flask import Flask
from programs import Program
from waiting import wait_until

from celeriac import Celeriac
from celeriac import make_celery
from celeriac.envelope import Envelope

SOON = 10

PROGRAM = """
from flask import Flask
from celeriac import make_celery

flask_app = Flask(__name__)
flask_app.config["CELERY_BROKER_URL"] = {url!r}
celery = make_celery(flask_app)

@celery.task(bind=True, retry_backoff=1000, retry_jitter=False)
def backing_off(self):
    raise self.retry(exc=ValueError("no"))

@celery.task(bind=True)
def plain(self):
    self.retry(exc=ValueError("no"))

@celery.task(bind=True, default_retry_delay=0.01)
def giving_up(self, exc):
    self.retry(exc=ValueError("no") if exc else None)

@celery.task(bind=True, max_retries=None)
def stubborn(self):
    if self.request.retries < 10:
        raise self.retry(countdown=0)
    return self.request.retries

@celery.task(autoretry_for=(ValueError,), retry_backoff=1000, retry_jitter=False)
def automatic():
    raise ValueError("no")
"""


@pytest.fixture(params=["sqlite:///unused.sqlite3", "redis://127.0.0.1:1/0"], ids=["file", "redis"])
def celery(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Celeriac:
    """Return an app that is asked only when it would retry; nothing is sent."""
    monkeypatch.chdir(tmp_path)
    app = Flask("program")
    app.config["CELERY_BROKER_URL"] = request.param
    return make_celery(app)


def delay_of(task: Any, retries: int = 0, **options: Any) -> Any:
    """Return in how many seconds the task wants to run again."""
    task.push_request(id="id", args=(), kwargs={}, retries=retries, is_eager=True)
    task.request.called_directly = False
    try:
        with pytest.raises(Retry) as raised:
            task.retry(**options)
        return raised.value.when
    finally:
        task.pop_request()


# When


def test_retry_backs_off(celery: Celeriac) -> None:
    @celery.task(retry_backoff=True, retry_backoff_max=5, retry_jitter=False, max_retries=None)
    def backing_off() -> None: ...

    assert [delay_of(backing_off, retries) for retries in range(5)] == [1, 2, 4, 5, 5]


def test_retry_backs_off_by_a_factor_and_with_jitter(celery: Celeriac) -> None:
    @celery.task(retry_backoff=10)
    def backing_off() -> None: ...

    delays = [delay_of(backing_off, retries=2) for _ in range(50)]

    assert len(set(delays)) > 1
    assert all(0 <= delay <= 40 for delay in delays)


def test_what_the_call_of_retry_says_goes_first(celery: Celeriac) -> None:
    @celery.task(retry_backoff=True, retry_jitter=False)
    def backing_off() -> None: ...

    tomorrow = datetime.now(timezone.utc) + timedelta(days=1)

    assert delay_of(backing_off, 2, countdown=0.5) == 0.5
    assert delay_of(backing_off, 2, countdown=0) == 0
    assert delay_of(backing_off, 2, eta=tomorrow) == tomorrow


def test_retry_without_back_off_waits_as_long_as_celery_says(celery: Celeriac) -> None:
    @celery.task
    def plain() -> None: ...

    @celery.task(default_retry_delay=7)
    def slower() -> None: ...

    assert (delay_of(plain), delay_of(slower, 2)) == (180, 7)


def test_task_class_of_celery_keeps_its_own_retry() -> None:
    stock = Celery("stock", broker="memory://", set_as_current=False)

    @stock.task(retry_backoff=True)
    def plain() -> None: ...

    assert delay_of(plain) == 180


def test_retry_of_a_task_that_is_called_raises_the_error(celery: Celeriac) -> None:
    @celery.task(bind=True, retry_backoff=True)
    def failing(self: Any) -> None:
        raise self.retry(exc=ValueError("no"))

    with pytest.raises(ValueError, match="no"):
        failing()


# In a worker


@pytest.fixture
def retrying(
    tmp_path: Path, queue_url: str, worker: Callable[..., Program], monkeypatch: pytest.MonkeyPatch
) -> Celeriac:
    (tmp_path / "retrying.py").write_text(PROGRAM.format(url=queue_url))
    monkeypatch.chdir(tmp_path)
    worker("-A", "retrying.celery", "-P", "solo", "-Q", "celery,special", cwd=tmp_path)
    app = Flask("caller")
    app.config["CELERY_BROKER_URL"] = queue_url
    return make_celery(app)


def test_retries_wait_in_the_store_with_all_that_they_had(retrying: Celeriac) -> None:
    engine = retrying.amqp.engine
    expires = datetime.now(timezone.utc) + timedelta(hours=10)
    signature = retrying.signature(
        "retrying.backing_off",
        queue="special",
        priority=7,
        expires=expires,
        time_limit=50,
        soft_time_limit=40,
        headers={"custom": "yes"},
        shadow="name",
    )
    signature.stamp(customer="c")
    result = signature.apply_async()
    plain = retrying.send_task("retrying.plain")
    automatic = retrying.send_task("retrying.automatic")
    for each in (result, plain, automatic):
        wait_until(lambda each=each: each.state == "RETRY", SOON)

    now = time.time()
    infos = {info.task_id: info for info in engine.list_tasks(status="scheduled")}
    info = infos[result.id]
    headers = Envelope.of(info).headers
    delays = [infos[each.id].due_at - now for each in (result, plain, automatic)]
    assert delays == pytest.approx([600, 180, 600], abs=SOON)
    assert (info.queue, info.priority) == ("special", 7)
    assert info.expires_at == pytest.approx(expires.timestamp(), abs=0.001)
    assert (headers["retries"], headers["timelimit"]) == (1, [50, 40])
    assert (headers["custom"], headers["shadow"]) == ("yes", "name")
    assert (headers["stamps"], headers["stamped_headers"]) == ({"customer": "c"}, ["customer"])
    assert result.explain().startswith(
        f"Task retrying.backing_off[{result.id}] failed, and will run again at 20"
    )

    result.revoke()
    assert result.state == "REVOKED"


def test_retries_end(retrying: Celeriac) -> None:
    given_up = retrying.send_task("retrying.giving_up", (False,))
    failed = retrying.send_task("retrying.giving_up", (True,))
    stubborn = retrying.send_task("retrying.stubborn")

    with pytest.raises(MaxRetriesExceededError, match=r"Can't retry retrying\.giving_up"):
        given_up.get(timeout=SOON)
    with pytest.raises(ValueError, match="no"):
        failed.get(timeout=SOON)
    assert stubborn.get(timeout=SOON) == 10
