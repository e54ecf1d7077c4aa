"""Canvas: chains, groups, chords, callbacks and error callbacks, as Celery's guide has them."""

from __future__ import annotations

from typing import Any

import celery
import pytest
from celery import chain
from celery import chord
from celery import group
from celery.exceptions import ChordError
from celery.result import AsyncResult
from celery.result import GroupResult
from celery.signals import before_task_publish
from waiting import wait_until

SOON = 10


def test_chain_hands_each_result_on(tasks: Any) -> None:
    result = chain(tasks.add.s(1, 2), tasks.add.s(3), tasks.add.s(4)).delay()

    assert result.get(timeout=SOON) == 10
    assert result.parent.get(timeout=SOON) == 6
    assert result.parent.parent.get(timeout=SOON) == 3


def test_immutable_signature_ignores_the_result_before_it(tasks: Any) -> None:
    assert (tasks.add.s(1, 2) | tasks.add.si(10, 20)).delay().get(timeout=SOON) == 30


def test_chain_stops_at_a_failure(tasks: Any, contract: Any) -> None:
    key = contract.new_key()

    result = chain(tasks.fail.s("stop"), tasks.note.si(key)).delay()

    with pytest.raises(ValueError, match="stop"):
        result.parent.get(timeout=SOON)
    # Celery fails the rest of a chain with the error that broke it.
    wait_until(lambda: result.parent.state == "FAILURE", SOON)
    assert not contract.journal(key)


def test_group_gives_all_results_in_order(tasks: Any) -> None:
    assert group(tasks.add.s(i, i) for i in range(20)).delay().get(timeout=SOON) == [
        2 * i for i in range(20)
    ]


def test_saved_group_is_restored_by_its_id(tasks: Any, contract: Any) -> None:
    if contract.broker != "sqlite" and celery.VERSION < (5, 7):
        pytest.skip("Celery does not hear of results that this process waits for already")
    saved = group(tasks.add.s(i, 1) for i in range(3)).delay()
    saved.save()

    restored = GroupResult.restore(saved.id, app=tasks.celery)

    assert restored.get(timeout=SOON) == [1, 2, 3]
    assert restored.successful()
    saved.delete()
    assert GroupResult.restore(saved.id, app=tasks.celery) is None


def test_chunks_map_and_starmap(tasks: Any) -> None:
    pairs = [(i, i) for i in range(6)]
    assert tasks.add.chunks(pairs, 2).group().delay().get(timeout=SOON) == [[0, 2], [4, 6], [8, 10]]
    assert tasks.total.map([[1, 2], [3, 4]]).delay().get(timeout=SOON) == [3, 7]
    assert tasks.add.starmap([(1, 2), (3, 4)]).delay().get(timeout=SOON) == [3, 7]


def test_chord_runs_its_body_with_all_results(tasks: Any) -> None:
    assert chord(tasks.add.s(i, i) for i in range(30))(tasks.total.s()).get(timeout=SOON) == 870


def test_chord_of_one_and_chord_in_a_chain(tasks: Any) -> None:
    assert chord([tasks.add.s(1, 1)])(tasks.total.s()).get(timeout=SOON) == 2
    workflow = tasks.add.s(1, 1) | group(tasks.add.s(1), tasks.add.s(2)) | tasks.total.s()
    assert (workflow | tasks.add.s(100)).delay().get(timeout=SOON) == 107


def test_nested_chords(tasks: Any) -> None:
    inner = chord([tasks.add.s(1, 1), tasks.add.s(2, 2)], tasks.total.s())

    result = chord([inner, tasks.add.s(10, 10), inner.clone()], tasks.total.s()).delay()

    assert result.get(timeout=SOON) == 32


def test_group_of_chains_in_a_chord(tasks: Any) -> None:
    header = [chain(tasks.add.s(i, 1), tasks.add.s(1)) for i in range(5)]

    assert chord(header)(tasks.total.s()).get(timeout=SOON) == 20


def test_chord_with_a_failing_member_fails_its_body(tasks: Any, contract: Any) -> None:
    body = tasks.total.s().on_error(tasks.on_error.s())

    result = chord([tasks.add.s(1, 1), tasks.fail.s("member"), tasks.add.s(2, 2)])(body)

    with pytest.raises(ChordError, match=r"raised ValueError\('member'\)"):
        AsyncResult(result.id, app=tasks.celery).get(timeout=SOON)
    wait_until(lambda: contract.journal("on_error", result.id), SOON)


def test_error_callback_of_nested_chords_is_called_once(tasks: Any, contract: Any) -> None:
    key = contract.new_key()
    inner = chord([tasks.add.si(1, 1), tasks.fail.si("member")], tasks.total.s())
    outer = chord([tasks.add.si(2, 2), inner], tasks.total.s())
    with pytest.warns(PendingDeprecationWarning):
        outer.link_error(tasks.note.si("errback", key))

    outer.delay()

    contract.wait_for("errback", key)
    for _ in range(5):  # What comes with it would be there by then.
        tasks.add.delay(1, 1).get(timeout=SOON)
    assert len(contract.journal("errback", key)) == 1


def test_chord_whose_members_retry_completes(tasks: Any) -> None:
    result = chord([tasks.flaky.s(2), tasks.flaky.s(1), tasks.add.s(1, 1)])(tasks.total.s())

    assert result.get(timeout=SOON) == 5


def test_chord_whose_members_ignore_their_results_completes(tasks: Any) -> None:
    header = [tasks.add.s(1, 1).set(ignore_result=True), tasks.add.s(2, 2)]

    assert chord(header)(tasks.total.s()).get(timeout=SOON) == 6


def test_chord_whose_members_are_replaced_completes(tasks: Any) -> None:
    result = chord([tasks.replaced.s(1), tasks.replaced_by_many.s(3)])(tasks.total.s())

    assert result.get(timeout=SOON) == 2 + 6


def test_replaced_task_keeps_its_id(tasks: Any) -> None:
    result = tasks.replaced.delay(41)

    assert result.get(timeout=SOON) == 42
    assert tasks.replaced_by_many.delay(4).get(timeout=SOON) == 12


def test_link_and_link_error(tasks: Any, contract: Any) -> None:
    key = contract.new_key()

    done = tasks.add.apply_async((1, 2), link=[tasks.note.s(key), tasks.note.s(key, "too")])
    failed = tasks.fail.apply_async((key,), link_error=tasks.on_error.s())
    old = tasks.fail.apply_async((key,), link_error=tasks.on_old_error.s())

    assert done.get(timeout=SOON) == 3
    assert contract.wait_for(key, "too") == ["3", key, "too"]
    assert contract.wait_for("on_error", failed.id) == ["on_error", failed.id, "ValueError", key]
    assert contract.wait_for("on_old_error", old.id)


def test_error_callback_finds_the_failure_stored(tasks: Any, contract: Any) -> None:
    failed = tasks.fail.apply_async(link_error=tasks.on_stored_error.s())

    assert contract.wait_for("on_stored_error", failed.id)[2] == "FAILURE"


def test_children_are_known(tasks: Any) -> None:
    result = tasks.add.apply_async((1, 2), link=tasks.add.s(10))

    assert result.get(timeout=SOON) == 3
    wait_until(lambda: AsyncResult(result.id, app=tasks.celery).children, SOON)
    (child,) = AsyncResult(result.id, app=tasks.celery).children
    assert child.get(timeout=SOON) == 13
    assert [value for _, value in result.collect()] == [3, 13]


def test_ids_of_the_family_travel(tasks: Any) -> None:
    result = chain(tasks.whoami.si(), tasks.whoami.si()).delay()

    second, first = result.get(timeout=SOON), result.parent.get(timeout=SOON)

    assert first["root_id"] == second["root_id"] == first["id"]
    assert second["parent_id"] == first["id"]


@pytest.mark.parametrize("kind", ["task", "chain", "group"])
def test_callback_of_a_chord_is_the_child_of_a_member(tasks: Any, kind: str) -> None:
    whoami = tasks.whoami.si()
    body = {"task": whoami, "chain": chain(whoami, tasks.echo.s()), "group": group([whoami])}[kind]

    result = chord([tasks.add.si(1, 1), tasks.add.si(2, 2)], body).delay()

    value = result.get(timeout=SOON)
    # echo() returns its arguments, and a group a list.
    found = {"task": lambda: value, "chain": lambda: value[0][0], "group": lambda: value[0]}[kind]
    assert found()["parent_id"] in [member.id for member in result.parent.results]


def test_stamped_task_carries_its_stamps(tasks: Any) -> None:
    signature = tasks.add.si(1, 2)
    signature.stamp(customer="acme")

    result = signature.apply_async()

    assert result.get(timeout=SOON) == 3


def test_chord_in_a_group_that_is_a_callback_in_a_header(tasks: Any, contract: Any) -> None:
    if contract.broker != "sqlite":
        pytest.skip("Celery has the inner chord count in a chord that nobody waits for")
    numbers = [tasks.add.si(1, 1), tasks.add.si(2, 2)]
    inner = chord(numbers, group(chord([tasks.total.s()], tasks.total.s()), tasks.total.s()))
    steps = chain(tasks.add.si(1, 1), group(chord(numbers, tasks.total.s()), tasks.add.s(1)))

    result = chord([inner, steps, tasks.add.si(5, 5)], tasks.echo.s()).delay()

    assert result.get(timeout=SOON) == [[[[6, 6], [6, 3], 10]], {}]


def test_group_in_a_header_that_is_still_being_sent(tasks: Any, contract: Any) -> None:
    if contract.broker != "sqlite":
        pytest.skip("The engine of the queue tells when both tasks of the group have counted")
    inner = chord([tasks.add.si(1, 1)], group(tasks.total.s(), tasks.total.s()))
    engine = tasks.celery.backend.engine
    counted = []

    # Celery tells the size of a chord just before it sends the last of the header.
    def hold_up(headers: Any, **more: Any) -> None:
        if headers["argsrepr"] == "(2, 2)":
            counted.append(wait_until(lambda: engine.chord_parts(headers["group"])[1:], SOON))

    before_task_publish.connect(hold_up)
    try:
        result = chord([inner, tasks.add.si(2, 2), tasks.add.si(3, 3)], tasks.echo.s()).delay()
    finally:
        before_task_publish.disconnect(hold_up)

    assert counted
    assert result.get(timeout=SOON) == [[[[2, 2], 4, 6]], {}]
