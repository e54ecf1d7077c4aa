"""What becomes of a canvas when one of its tasks fails: nothing waits for what can not come.

The shapes are those of Celery's issues on canvases that hang, by their numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import celery
import pytest
from celery import chain
from celery import chord
from celery import group
from celery.exceptions import ChordError
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from celery.result import GroupResult
from waiting import wait_until

# Celery leaves tasks of some of these PENDING for ever.
pytestmark = pytest.mark.differs("redis", "rabbitmq", row="A failure in a canvas")

SOON = 10

#: Canvases with a task that fails.
SHAPES: dict[str, Callable[[Any], Any]] = {
    "a chain (#3140)": lambda t: t.fail.si() | t.add.si(1, 1) | t.add.si(2, 2),
    "a group after it (#4004)": lambda t: t.fail.si() | group(t.add.si(1, 1), t.add.si(2, 2)),
    "a chain in a group, and one after it (#6029)": lambda t: chain(
        group(chain(t.add.si(1, 1), t.fail.si(), t.add.si(2, 2)), t.add.si(3, 3)), t.echo.si()
    ),
    "a chain in a chord's header (#6220)": lambda t: chord(
        [t.fail.si() | t.add.si(1, 1), t.add.si(2, 2)], t.echo.si()
    ),
    "a chord in a chain in a header (#9674)": lambda t: chord(
        [chain(t.fail.si(), group(t.add.si(1, 1), t.add.si(2, 2)), t.echo.si()), t.add.si(1, 1)],
        t.echo.si(),
    ),
    "groups after each other (#8786)": lambda t: chain(
        group(t.add.si(1, 1), t.fail.si()), group(t.add.si(2, 2), t.add.si(3, 3))
    ),
    "three groups (#8786)": lambda t: chain(
        group(t.add.si(1, 1), t.fail.si()),
        group(t.add.si(2, 2), t.add.si(3, 3)),
        group(t.add.si(4, 4), t.add.si(5, 5)),
    ),
    "a chord in a header": lambda t: chord(
        [chord([t.fail.si(), t.add.si(1, 1)], t.echo.si()), t.add.si(2, 2)], t.echo.si()
    ),
    "a chord as the callback": lambda t: chord(
        [t.fail.si()], chord([t.add.si(1, 1), t.add.si(2, 2)], t.echo.si())
    ),
    "a callback of several steps (#6792)": lambda t: chord(
        [t.fail.si(), t.add.si(1, 1)], chain(t.echo.si(), t.add.si(2, 2), t.add.si(3, 3))
    ),
    "a group at the end of a chain in a header": lambda t: chord(
        [chain(t.fail.si(), group(t.add.si(1, 1), t.add.si(2, 2))), t.add.si(3, 3)], t.echo.si()
    ),
    "a replaced task in a header": lambda t: chord(
        [t.replaced_by.si(by=t.add.si(1, 1) | t.fail.si()), t.add.si(2, 2)], t.echo.si()
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_task_of_a_broken_canvas_ends(tasks: Any, shape: str) -> None:
    result = SHAPES[shape](tasks).apply_async()

    with pytest.raises((ValueError, ChordError), match="no"):
        result.get(timeout=SOON)
    wait_until(
        lambda: all(each.ready() for each in _tree(result)),
        SOON,
        message=lambda: str([(each.id, each.state) for each in _tree(result)]),
    )


def test_callback_fails_while_the_rest_of_the_header_runs(tasks: Any, contract: Any) -> None:
    key = contract.new_key()
    # A worker with one hand runs the failing one first.
    result = chord([tasks.fail.si("early"), tasks.waiting.si(key)])(tasks.echo.s())
    try:
        with pytest.raises(ChordError, match="early"):
            AsyncResult(result.id, app=tasks.celery).get(timeout=SOON)
    finally:
        contract.let_go(key)
    assert result.parent.results[1].get(timeout=SOON) == key


def test_error_callbacks_are_called_once(tasks: Any, contract: Any) -> None:
    body, steps, member = (contract.new_key() for _ in range(3))
    callback = tasks.echo.s().on_error(tasks.note.si("failed", body))
    header = [tasks.fail.si().on_error(tasks.note.si("failed", member)), tasks.fail.si()]

    chord(header, callback).apply_async()
    chain(tasks.add.si(1, 1), tasks.fail.si(), tasks.add.si(2, 2)).apply_async(
        link_error=tasks.note.si("failed", steps)
    )

    for key in (body, steps, member):
        contract.wait_for("failed", key)
    # Whatever was sent with them has run when these have.
    assert group(tasks.add.si(1, n) for n in range(4)).delay().get(timeout=SOON)
    assert [len(contract.journal("failed", key)) for key in (body, steps, member)] == [1, 1, 1]


def test_error_callback_that_fails_does_not_stop_the_failure(tasks: Any) -> None:
    body = tasks.echo.s().on_error(tasks.on_bad_error.s())

    result = chord([tasks.fail.si("member"), tasks.add.si(1, 1)])(body)

    with pytest.raises(ChordError, match="member"):
        AsyncResult(result.id, app=tasks.celery).get(timeout=SOON)


@pytest.mark.parametrize("way", ["revoked", "expired"])
def test_steps_after_one_that_never_ran_are_revoked(tasks: Any, contract: Any, way: str) -> None:
    def called_off() -> Any:
        if way == "expired":
            return tasks.add.si(1, 1).set(expires=-60)
        signature = tasks.add.si(1, 1).set(task_id=contract.new_key())
        tasks.celery.control.revoke(signature.id)
        return signature

    result = chain(called_off(), tasks.add.si(2, 2), tasks.add.si(3, 3)).delay()
    in_chord = chord([called_off(), tasks.add.si(1, 1)])(tasks.echo.s())

    with pytest.raises(TaskRevokedError, match=way):
        AsyncResult(result.id, app=tasks.celery).get(timeout=SOON)
    assert [result.state, result.parent.state] == ["REVOKED", "REVOKED"]
    with pytest.raises(ChordError, match=way):
        AsyncResult(in_chord.id, app=tasks.celery).get(timeout=SOON)


def test_steps_after_one_that_is_rejected_fail(tasks: Any) -> None:
    result = chain(tasks.rejecting.si(False), tasks.add.si(1, 1)).delay()

    wait_until(lambda: result.ready(), SOON)
    assert [result.state, result.parent.state] == ["FAILURE", "FAILURE"]


def test_steps_after_one_that_called_itself_off_are_revoked(tasks: Any) -> None:
    result = chain(tasks.ignoring.si(), tasks.add.si(1, 1)).delay()
    in_chord = chord([tasks.ignoring.si(), tasks.add.si(1, 1)])(tasks.echo.s())

    with pytest.raises(TaskRevokedError, match="ignored"):
        result.get(timeout=SOON)
    assert result.parent.state == "CUSTOM"
    with pytest.raises(ChordError, match="ignored"):
        AsyncResult(in_chord.id, app=tasks.celery).get(timeout=SOON)


def test_result_that_can_not_be_stored_sends_no_next_step(tasks: Any, contract: Any) -> None:
    if celery.VERSION < (5, 7):
        pytest.skip("before 5.7 the next step is published on its own, before the result")
    key = contract.new_key()

    result = chain(tasks.unstorable.si(), tasks.note.si(key)).delay()

    with pytest.raises(Exception, match="JSON serializable"):
        result.get(timeout=SOON)
    assert result.state == "FAILURE"
    assert tasks.add.delay(1, 1).get(timeout=SOON) == 2
    assert not contract.journal(key)


def test_steps_after_one_whose_process_died_fail(tasks: Any, contract: Any) -> None:
    if contract.pool != "prefork":
        pytest.skip("its process is the worker itself")
    chained = chain(tasks.leaving.si(1), tasks.add.si(1, 1)).delay()
    limited = chord([tasks.hard.si(), tasks.add.si(1, 1)])(tasks.echo.s())

    wait_until(lambda: chained.ready(), SOON)
    assert chained.state == "FAILURE"
    with pytest.raises(ChordError, match="TimeLimitExceeded"):
        AsyncResult(limited.id, app=tasks.celery).get(timeout=SOON)


def _tree(result: Any) -> Iterator[AsyncResult[Any]]:
    """Yield the result of every task that a canvas has."""
    while result is not None:
        if isinstance(result, GroupResult):
            for member in result.results:
                yield from _tree(member)
        else:
            yield result
        result = result.parent
