"""Dead letters as users see them: ``celery.dead_letters`` and ``celery dead``.

How they come to be is tested with real workers, in ``tests/lifecycle/test_dead_letters.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner
from click.testing import Result as Invocation
from flask import Flask

from celeriac import make_celery
from celeriac.aside import incident
from celeriac.aside import Reason
from celeriac.aside import set_aside
from celeriac.dead import DeadLetters
from celeriac.dead_commands import dead
from celeriac.engines import Engine
from celeriac.engines import open_engine
from celeriac.engines.base import Action
from celeriac.engines.base import Message
from celeriac.engines.base import Outcome
from celeriac.engines.base import Worker
from celeriac.explain import Cause


@pytest.fixture
def app(queue_url: str) -> Iterator[Celery]:
    app = Celery("shop", broker=queue_url, backend=queue_url, set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def engine(queue_url: str) -> Iterator[Engine]:
    engine = open_engine(queue_url)
    engine.register(Worker("w", "w@host", os.getpid(), ["celery"], ["shop.add"]))
    yield engine
    engine.deregister("w")


@pytest.fixture
def letters(app: Celery) -> DeadLetters:
    return DeadLetters(app)


@pytest.fixture
def bury(app: Celery, engine: Engine) -> Callable[..., str]:
    """Send a task and set it aside, as a worker does; return its id."""

    def bury(
        task_id: str,
        reason: Reason = Reason.SIGNATURE,
        task: str = "shop.add",
        queue: str = "celery",
        error: str = "TypeError: no",
        **details: Any,
    ) -> str:
        app.send_task(task, (1, "zwei"), {"three": 3}, task_id=task_id, queue=queue)
        (delivery,) = engine.claim([queue], 1, worker="w")
        aside = set_aside(reason, error, incident("w@host", 4711, "TypeError", **details))
        engine.complete([Outcome(delivery, Action.SET_ASIDE, aside=aside)])
        return task_id

    return bury


@pytest.fixture
def celery_dead(app: Celery) -> Callable[..., Invocation]:
    """Run ``celery dead …``."""
    return lambda *args, **kwargs: CliRunner().invoke(
        dead, args, obj=SimpleNamespace(app=app), prog_name="celery dead", **kwargs
    )


def test_a_dead_letter_tells_all_that_is_known(
    letters: DeadLetters, bury: Callable[..., str]
) -> None:
    bury("a", memory=512)

    (letter,) = letters.list()

    assert letter == letters.get("a")
    assert (letter.id, letter.task, letter.queue) == ("a", "shop.add", "celery")
    assert (letter.args, letter.kwargs) == ([1, "zwei"], {"three": 3})
    assert (letter.reason, letter.why) == ("signature", "the call does not fit the task")
    assert (letter.deaths, letter.error) == (0, "TypeError: no")
    assert letter.report[0]["memory"] == 512
    assert datetime.now(timezone.utc) - letter.died_at < timedelta(minutes=1)
    assert letter.sent_at <= letter.died_at
    assert letters.get("b") is None


def test_dead_letters_are_chosen_by_ids_or_by_filters(
    letters: DeadLetters, bury: Callable[..., str], engine: Engine
) -> None:
    bury("a", Reason.LOST)
    bury("b", task="shop.other")
    bury("c", queue="mail")
    bury("d")

    assert [letter.id for letter in letters.list(limit=2)] == ["a", "b"]
    assert [letter.id for letter in letters.list(task="shop.other")] == ["b"]
    assert [letter.id for letter in letters.list(queue="mail")] == ["c"]
    assert [letter.id for letter in letters.list(reason="lost", task="shop.add")] == ["a"]
    assert letters.retry([]) == 0
    assert letters.retry(["a", "unknown"], reason="signature") == 0
    assert letters.retry("a") == 1
    assert letters.discard(["b", "unknown"]) == 1
    assert letters.retry(queue="mail") == 1
    assert letters.discard() == 1
    assert letters.list() == []
    assert {info.task_id for info in engine.list_tasks()} == {"a", "c"}


def test_more_than_a_page_is_run_again(letters: DeadLetters, engine: Engine) -> None:
    aside = set_aside(Reason.LOST, "WorkerLostError: gone", incident("w@host", 1, "signal 9"))
    messages = [Message("celery", "{}", "[[], {}, {}]", "shop.add", str(n)) for n in range(1200)]
    engine.publish(messages)
    deliveries = engine.claim(["celery"], 2000, worker="w")
    engine.complete([Outcome(each, Action.SET_ASIDE, aside=aside) for each in deliveries])

    assert letters.retry() == 1200

    assert engine.queue_sizes() == {"celery": 1200}


def test_a_dead_letter_explains_itself(app: Celery, bury: Callable[..., str]) -> None:
    bury("a", Reason.REJECTED, error="Reject: no such customer")

    explanation = app.backend.explain("a")

    assert explanation.cause is Cause.SET_ASIDE
    assert explanation.in_vain
    assert " was set aside at " in str(explanation)
    assert str(explanation).endswith(
        " UTC, because the task rejected it (Reject: no such customer). Run it again with: "
        "celery -A shop.celery dead retry a"
    )


def test_a_task_that_was_sent_once_more_is_explained_first(
    app: Celery, bury: Callable[..., str]
) -> None:
    bury("a")

    app.send_task("shop.add", task_id="a")

    assert app.backend.explain("a").cause is Cause.WAITING


def test_calling_a_dead_letter_off_changes_nothing(
    letters: DeadLetters, bury: Callable[..., str], app: Celery, engine: Engine
) -> None:
    flask_app = Flask(__name__)
    flask_app.config["CELERY"] = {"broker_url": engine.url}
    celery = make_celery(flask_app)
    bury("a")

    celery.control.revoke("a")

    assert [letter.id for letter in celery.dead_letters.list()] == ["a"]
    assert app.AsyncResult("a").state == "PENDING"
    celery.close()


def test_other_brokers_are_told_what_to_use_instead() -> None:
    app = Celery("shop", broker="amqp://me:secret@127.0.0.1//", set_as_current=False)

    with pytest.raises(RuntimeError) as caught:
        DeadLetters(app).list()

    assert str(caught.value) == (
        "Dead letters are kept where the broker is a queue file, and the broker is "
        "amqp://me:**@127.0.0.1//. With RabbitMQ give the queue an x-dead-letter-exchange; with "
        "others look for failures in the result backend, and send these tasks again."
    )


# The command line


def test_listing_prints_a_table(
    celery_dead: Callable[..., Invocation], bury: Callable[..., str], letters: DeadLetters
) -> None:
    assert celery_dead("list").output == "No dead letters.\n"
    assert celery_dead("list", "--queue", "mail").output == "No dead letter matches.\n"
    bury("a")
    bury("b-longer", task="shop.other", error="ValueError: first\nsecond")
    first, second = (f"{each.died_at:%Y-%m-%d %H:%M:%S}" for each in letters.list())

    assert celery_dead("list").output.splitlines() == [
        "ID        TASK        QUEUE   WHEN (UTC)           DEATHS  WHY",
        f"a         shop.add    celery  {first}  0       signature: TypeError: no",
        f"b-longer  shop.other  celery  {second}  0       signature: ValueError: first",
    ]
    assert celery_dead("list", "--limit", "1").output.splitlines()[1:] == [
        f"a   shop.add  celery  {first}  0       signature: TypeError: no",
        "There are more: --limit 10",
    ]


def test_showing_prints_everything(
    celery_dead: Callable[..., Invocation], bury: Callable[..., str], letters: DeadLetters
) -> None:
    traceback = "Traceback (most recent call last):\n  …\nTypeError: no"
    bury("a", memory=512 * 2**20, memory_before=100 * 2**20, exit=9, traceback=traceback)
    (letter,) = letters.list()
    died = f"{letter.died_at:%Y-%m-%d %H:%M:%S} UTC"
    at = f"{datetime.fromtimestamp(letter.report[0]['at'], timezone.utc):%Y-%m-%d %H:%M:%S} UTC"

    assert celery_dead("show", "a").output.splitlines() == [
        "Task        shop.add",
        "Id          a",
        "Queue       celery",
        "Arguments   [1, 'zwei']",
        "            {'three': 3}",
        f"Sent        {letter.sent_at:%Y-%m-%d %H:%M:%S} UTC",
        f"Set aside   {died}, because the call does not fit the task",
        "Error       TypeError: no",
        "Deaths      0",
        f"Ended       {at} in process 4711 of w@host: TypeError, with 512 MB of memory "
        "(100 MB when it began), exit 9",
        "",
        "Traceback (most recent call last):",
        "  …",
        "TypeError: no",
        "",
        "Run it again with: celery -A shop.celery dead retry a",
    ]


def test_other_programs_read_json(
    celery_dead: Callable[..., Invocation], bury: Callable[..., str], letters: DeadLetters
) -> None:
    bury("a")
    (letter,) = letters.list()

    shown = json.loads(celery_dead("show", "a", "--json").output)
    (listed,) = json.loads(celery_dead("list", "--json").output)

    assert shown == listed
    assert shown["args"] == [1, "zwei"]
    assert datetime.fromisoformat(shown["died_at"]) == letter.died_at
    assert json.loads(celery_dead("list", "--json", "--task", "none").output) == []


def test_retrying_takes_ids_or_all(
    celery_dead: Callable[..., Invocation], bury: Callable[..., str], engine: Engine
) -> None:
    for each in "abcd":
        bury(each, Reason.LOST if each == "d" else Reason.SIGNATURE)

    one = celery_dead("retry", "a")
    some = celery_dead("retry", "--all", "--reason", "lost")
    rest = celery_dead("retry", "--all")

    assert one.output == "1 dead letter was put back to run again.\n"
    assert some.output == "1 dead letter was put back to run again.\n"
    assert rest.output == "2 dead letters were put back to run again.\n"
    assert engine.queue_sizes() == {"celery": 4}


def test_discarding_all_asks(
    celery_dead: Callable[..., Invocation], bury: Callable[..., str], letters: DeadLetters
) -> None:
    for each in "abc":
        bury(each)

    refused = celery_dead("discard", "--all", "--task", "shop.add", input="n\n")
    assert refused.output == (
        "Delete all dead letters with --task shop.add for good? [y/N]: n\nAborted!\n"
    )
    assert refused.exit_code == 1
    assert len(letters.list()) == 3

    assert celery_dead("discard", "a").output == "1 dead letter was deleted.\n"
    assert celery_dead("discard", "--all", "-y").output == "2 dead letters were deleted.\n"
    assert letters.list() == []


@pytest.mark.parametrize("command", ["show", "retry", "discard"])
def test_an_unknown_id_is_a_failure_to_the_shell(
    celery_dead: Callable[..., Invocation],
    bury: Callable[..., str],
    letters: DeadLetters,
    command: str,
) -> None:
    bury("a")

    done = celery_dead(command, "unknown")

    assert done.exit_code == 1
    assert done.output == (
        "Error: This is no dead letter: unknown. It may have been run again or discarded, or "
        "set aside more than 30 days ago. What became of a task is told by: celery -A shop.celery "
        "explain unknown\n"
    )
    assert len(letters.list()) == 1


def test_unknown_ids_are_all_named(
    celery_dead: Callable[..., Invocation], bury: Callable[..., str], letters: DeadLetters
) -> None:
    bury("a")

    done = celery_dead("retry", "a", "b", "c")

    assert done.output.startswith(
        "Error: These are no dead letters: b, c. They may have been run again or discarded, or "
    )
    assert len(letters.list()) == 1


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_a_limit_that_lists_nothing_is_refused(
    celery_dead: Callable[..., Invocation], bury: Callable[..., str], limit: str
) -> None:
    bury("a")

    done = celery_dead("list", "--limit", limit)

    assert done.exit_code == 2
    assert "Invalid value for '--limit'" in done.output


def test_what_is_asked_for_must_be_clear(
    celery_dead: Callable[..., Invocation], bury: Callable[..., str], letters: DeadLetters
) -> None:
    bury("a")

    for args, complaint in (
        (["retry"], "Name the ids of tasks, or --all: see the list command."),
        (["retry", "a", "--all"], "Name the ids of tasks, or --all: see the list command."),
        (["discard", "a", "--task", "x"], "The filters go with --all, not with ids."),
    ):
        done = celery_dead(*args)
        assert done.exit_code == 2
        assert f"Error: {complaint}\n" in done.output
    assert len(letters.list()) == 1


def test_without_a_queue_file_the_commands_say_so() -> None:
    app = Celery("shop", broker="redis://127.0.0.1/", set_as_current=False)

    done = CliRunner().invoke(dead, ["list"], obj=SimpleNamespace(app=app))

    assert done.exit_code == 2
    assert "the broker is redis://127.0.0.1/. With RabbitMQ" in done.output
