"""Tasks that are replaced, stamped, or join a chord; and what a result knows of its canvas."""

from __future__ import annotations

from typing import Any

import celery
import pytest
from celery import chain
from celery import chord
from celery import group
from celery.canvas import StampingVisitor
from celery.result import AsyncResult
from celery.result import GroupResult
from celery.result import result_from_tuple
from waiting import wait_until

SOON = 10


# Replacing


def _replacements(tasks: Any) -> dict[str, tuple[Any, Any]]:
    """Return replacements of every kind, with what each is in the end."""
    add, total, echo = tasks.add, tasks.total, tasks.echo
    pair = [add.si(1, 1), add.si(2, 2)]
    return {
        "task": (add.si(1, 2), 3),
        "chain": (add.si(1, 2) | add.s(3), 6),
        "group": (group(pair), [2, 4]),
        "chord": (chord(pair, total.s()), 6),
        "chord with a chain": (chord(pair, total.s() | add.s(1)), 7),
        "chord with a chord": (chord(pair, chord([total.s(), total.s()], total.s())), 12),
        "chord with a group": (chord(pair, group(total.s(), echo.s())), [6, [[[2, 4]], {}]]),
        "chain with a group": (chain(add.si(1, 1), group(add.s(1), add.s(2))), [3, 4]),
        "chain with a chord": (chain(add.si(1, 1), group(add.s(1), add.s(2)), total.s()), 7),
    }


KINDS = [
    "task",
    "chain",
    "group",
    "chord",
    "chord with a chain",
    "chord with a chord",
    "chord with a group",
    "chain with a group",
    "chain with a chord",
]
#: With several results in the end, that are told in their order.
WITH_GROUP = ("group", "chord with a group")


@pytest.mark.parametrize("kind", KINDS)
def test_task_is_replaced_wherever_it_stands(tasks: Any, contract: Any, kind: str) -> None:
    if contract.broker != "sqlite" and celery.VERSION < (5, 7) and kind in WITH_GROUP:
        pytest.skip("before 5.7 such a group's results come in any order")
    replacement, value = _replacements(tasks)[kind]
    replaced = tasks.replaced_by.si(by=replacement)

    alone = replaced.delay()
    in_chain = chain(tasks.add.si(1, 1), replaced.clone(), tasks.echo.s()).delay()
    in_header = chord([tasks.add.si(1, 1), replaced.clone()], tasks.echo.s()).delay()
    in_body = chord([tasks.add.si(1, 1)], replaced.clone()).delay()
    in_group = group(replaced.clone(), tasks.add.si(1, 1)).delay()

    assert alone.get(timeout=SOON) == value
    assert in_chain.get(timeout=SOON) == [[value], {}]
    assert in_header.get(timeout=SOON) == [[[2, value]], {}]
    assert in_body.get(timeout=SOON) == value
    assert in_group.get(timeout=SOON) == [value, 2]


def test_replaced_task_hands_on_its_callbacks(tasks: Any, contract: Any) -> None:
    done, failed = contract.new_key(), contract.new_key()

    tasks.replaced_by.si(by=tasks.add.si(1, 2)).apply_async(link=tasks.note.s(done))
    tasks.replaced_by.si(by=tasks.fail.si(failed)).apply_async(link_error=tasks.on_error.s())

    assert contract.wait_for(done) == ["3", done]
    assert contract.wait_for("on_error", failed)[2] == "ValueError"


def test_task_joins_the_chord_of_another(tasks: Any) -> None:
    header = [tasks.joined_by.si(tasks.add.si(20, 22)), tasks.add.si(1, 1)]

    result = chord(header, tasks.echo.s()).delay()

    ((values,), _) = result.get(timeout=SOON)
    assert sorted(values, key=str) == [2, 42, "first"]


# Stamping


class _ByTask(StampingVisitor):  # type: ignore[misc]
    """Stamps each task by its name, and what it stands in."""

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"kind": sig.task.rpartition(".")[2], "stamped_headers": ["kind"]}

    def on_chord_body(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"part": "body", "stamped_headers": ["part"]}


def test_stamps_reach_every_task_of_a_canvas(tasks: Any) -> None:
    header = [tasks.stamped.si(), tasks.stamped.si() | tasks.stamped.s()]
    canvas = chain(tasks.stamped.si(), group(*header), tasks.stamped.si(), tasks.stamped.si())
    canvas.stamp(_ByTask())

    result = canvas.delay()

    assert result.get(timeout=SOON)["kind"] == "stamped"
    body = result.parent
    assert body.get(timeout=SOON)["kind"] == "stamped"
    header_result = body.parent
    assert [each["kind"] for each in header_result.get(timeout=SOON)] == ["stamped"] * 2
    assert header_result.parent.get(timeout=SOON)["kind"] == "stamped"


def test_stamps_outlast_a_retry(tasks: Any) -> None:
    signature = tasks.stamped.si(retry=True)
    signature.stamp(customer="acme")

    assert signature.delay().get(timeout=SOON) == {"customer": "acme"}


def test_callbacks_are_stamped(tasks: Any) -> None:
    signature = tasks.add.si(1, 1)
    signature.link(tasks.stamped.si())
    signature.stamp(customer="acme")

    result = signature.delay()

    assert result.get(timeout=SOON) == 2
    (child,) = wait_until(lambda: AsyncResult(result.id, app=tasks.celery).children, SOON)
    assert child.get(timeout=SOON) == {"customer": "acme"}


# What a result knows


def test_group_is_joined_forgotten_and_deleted(tasks: Any) -> None:
    result = group(tasks.add.si(n, 1) for n in range(3)).delay()
    result.save()

    assert result.join_native(timeout=SOON) == result.join(timeout=SOON) == [1, 2, 3]
    assert sorted(value["result"] for _, value in result.iter_native(timeout=SOON)) == [1, 2, 3]
    assert (result.completed_count(), result.ready(), result.successful()) == (3, True, True)
    restored = GroupResult.restore(result.id, app=tasks.celery)
    assert restored == result
    result.forget()
    # By others: the restored ones may have heard of their states, and remember them.
    forgotten = [AsyncResult(each.id, app=tasks.celery) for each in restored.results]
    assert [each.state for each in forgotten] == ["PENDING"] * 3
    restored.delete()
    assert GroupResult.restore(result.id, app=tasks.celery) is None


def test_group_s_errors_are_raised_or_returned(tasks: Any) -> None:
    result = group(tasks.add.si(1, 1), tasks.fail.si("member")).delay()

    with pytest.raises(ValueError, match="member"):
        result.get(timeout=SOON)
    first, second = result.get(timeout=SOON, propagate=False)
    assert (first, str(second)) == (2, "member")
    assert (result.failed(), result.successful(), result.waiting()) == (True, False, False)


def test_group_that_is_revoked_does_not_run(tasks: Any, contract: Any) -> None:
    key = contract.new_key()
    result = group(tasks.note.si(key).set(countdown=1) for _ in range(2)).delay()

    result.revoke()

    wait_until(lambda: result.ready(), SOON)
    assert [each.state for each in result.results] == ["REVOKED"] * 2
    assert not contract.journal(key)


def test_family_of_a_canvas_is_known(tasks: Any) -> None:
    result = chain(tasks.add.si(1, 1), tasks.add.s(2), tasks.add.s(3)).delay()

    assert result.get(timeout=SOON) == 7
    first = result.parent.parent
    wait_until(lambda: first.children, SOON)
    assert [value for _, value in first.collect()] == [2, 4, 7]
    assert {node.id for node in first.graph} == {first.id, result.parent.id, result.id}
    remade = result_from_tuple(result.as_tuple(), app=tasks.celery)
    assert remade.parent.parent.get(timeout=SOON) == 2
