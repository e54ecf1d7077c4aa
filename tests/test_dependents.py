"""What can never run because something before it failed, found in signatures."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from celery import chain
from celery import chord
from celery import group

from celeriac.dependents import errbacks
from celeriac.dependents import find_dependents


@pytest.fixture
def app() -> Celery:
    return Celery("proj", broker="memory://", set_as_current=False)


def task(app: Celery, name: str) -> Any:
    """Return a signature whose id is its name."""
    return app.signature("proj.task", app=app).set(task_id=name)


def found(signature: Any) -> dict[str, bool]:
    """Return the ids of the tasks in a signature as a message holds it, and which count."""
    plain = json.loads(json.dumps(signature))
    return {
        each.task_id: each.counts
        for each in find_dependents([plain])
        if each.signature["task"] == "proj.task"
    }


def test_all_tasks_of_nested_signatures_are_found(app: Celery) -> None:
    header = [task(app, "a"), chain(task(app, "b"), group(task(app, "c"), task(app, "d")))]
    nested = chord(header, chord([task(app, "e")], group(task(app, "f"), task(app, "g")), app=app))

    assert set(found(nested)) == set("abcdefg")


def test_only_what_ends_a_signature_counts_in_the_chord_around_it(app: Celery) -> None:
    steps = chain(task(app, "a"), task(app, "b"))
    inner = chord([task(app, "c")], group(task(app, "d"), task(app, "e")), app=app)
    around = app.signature("proj.callback", app=app)
    for member in (steps, inner):
        member.freeze(group_id="outer", chord=around)

    assert found(steps) == {"a": False, "b": True}
    assert found(inner) == {"c": False, "d": True, "e": True}


def test_a_callback_that_has_an_id_is_found(app: Celery) -> None:
    linked = task(app, "a")
    linked.link(task(app, "b"))

    assert set(found(linked)) == {"a", "b"}


def test_a_thousand_nested_chords_are_found(app: Celery) -> None:
    signature = task(app, "last")
    for n in range(1000):
        signature = {
            "task": "celery.chord",
            "subtask_type": "chord",
            "options": {},
            "kwargs": {"header": [task(app, str(n))], "body": signature},
        }

    assert len({each.task_id for each in find_dependents([signature])}) == 1001


def test_errbacks_are_those_of_what_would_begin(app: Celery) -> None:
    first, second = task(app, "a"), task(app, "b")
    first.link_error(task(app, "of a"))
    second.link_error(task(app, "of b"))

    def ids(signature: Any) -> list[str]:
        return [each["options"]["task_id"] for each in errbacks(signature)]

    assert ids(chain(first, second)) == ["of a"]
    assert ids(group(first, second)) == ["of a", "of b"]
    assert ids(chord([first], second, app=app)) == ["of b"]
