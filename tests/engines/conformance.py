"""What an engine is: whatever passes these tests.

One class for each group of operations, as :mod:`celeriac.engines.base` has them. A second engine
is added to :data:`ENGINES` and nowhere else.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from programs import Program
from programs import run
from waiting import wait_until

from celeriac.engines import Engine
from celeriac.engines import EngineError
from celeriac.engines import open_engine
from celeriac.engines.base import Action
from celeriac.engines.base import Aside
from celeriac.engines.base import Binding
from celeriac.engines.base import ChordPart
from celeriac.engines.base import Completion
from celeriac.engines.base import Delivery
from celeriac.engines.base import Entry
from celeriac.engines.base import Message
from celeriac.engines.base import Outcome
from celeriac.engines.base import Queue
from celeriac.engines.base import Result
from celeriac.engines.base import Worker

#: Each engine under test: a name, and how to get the URL of an empty one.
ENGINES: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder}/queue.sqlite3?durability=normal&busy_timeout=10",
}

FAR = 3600.0
#: What databases say of a value that they can not store, which no user can cause.
UNSUITABLE = "type|bind|adapt"
#: More than any wait takes that was woken, less than the floor of polling.
AT_ONCE = 0.5


@pytest.fixture(params=ENGINES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty engine."""
    return ENGINES[request.param](tmp_path)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """Return an empty engine that knows two workers, ``w`` and ``other``."""
    engine = open_engine(url)
    introduce(engine, "w")
    introduce(engine, "other")
    yield engine
    engine.deregister("w")
    engine.deregister("other")
    engine.close()


@pytest.fixture
def stranger(engine: Engine, url: str) -> Iterator[Engine]:
    """Return a second engine over the same data, which shares nothing with the first in memory.

    It stands for another process where no process needs to die.
    """
    stranger = type(engine)(url)  # type: ignore[call-arg]
    yield stranger
    stranger.close()


def introduce(engine: Engine, worker_id: str, queues: tuple[str, ...] = ("q",)) -> None:
    engine.register(Worker(worker_id, f"{worker_id}@host", 1, queues, frozenset({"t"})))


def message(text: str, queue: str = "q", task: str = "t", **fields: object) -> Message:
    return Message(queue, "{}", text, task, task_id=text, **fields)  # type: ignore[arg-type]


def publish(engine: Engine, *texts: str, **fields: object) -> None:
    engine.publish([message(text, **fields) for text in texts])  # type: ignore[arg-type]


def claim(
    engine: Engine, limit: int = 100, queues: tuple[str, ...] = ("q",), **options: object
) -> list[Delivery]:
    options.setdefault("worker", "w")
    return engine.claim(queues, limit, **options)  # type: ignore[arg-type]


def bodies(deliveries: list[Delivery]) -> list[str | bytes]:
    return [delivery.body for delivery in deliveries]


def part(member: str, place: int | None = None, group: str = "g") -> ChordPart:
    return ChordPart(group, member, place, member.encode(), b"callback")


def success(task_id: str, meta: bytes = b"1", expires_at: float | None = None) -> Result:
    return Result(task_id, "SUCCESS", meta, expires_at)


#: Why a message is set aside that a test does not care about.
ASIDE = Aside("rejected", "{}")


def bury(
    engine: Engine,
    reason: str = "rejected",
    report: str = "{}",
    *,
    died: bool = False,
    queue: str = "q",
) -> int:
    """Set the next message of a queue aside; return its tag."""
    (delivery,) = claim(engine, 1, (queue,))
    engine.complete([Outcome(delivery, Action.SET_ASIDE, aside=Aside(reason, report, died))])
    return delivery.tag


class TestPublishing:
    """``publish``: all or none, into whatever queue."""

    def test_a_message_comes_out_as_it_went_in(self, engine: Engine) -> None:
        expires_at = time.time() + FAR
        sent = Message("q", '{"a": "é"}', b"\x00\xff", "t", "id", 7, None, expires_at, form="é …")
        engine.publish([sent])

        (delivery,) = claim(engine)

        assert delivery._asdict() == {
            "tag": delivery.tag,
            "token": delivery.token,
            "queue": "q",
            "envelope": '{"a": "é"}',
            "body": b"\x00\xff",
            "task": "t",
            "task_id": "id",
            "priority": 7,
            "deaths": 0,
            "redelivered": False,
            "expires_at": pytest.approx(expires_at),
            "form": "é …",
        }

    def test_text_stays_text_and_bytes_stay_bytes(self, engine: Engine) -> None:
        engine.publish([Message("q", "{}", "text"), Message("q", "{}", b"bytes")])

        assert bodies(claim(engine)) == ["text", b"bytes"]

    def test_nothing_is_published_if_one_of_several_can_not_be(self, engine: Engine) -> None:
        bad = message("bad")._replace(body=object())  # type: ignore[arg-type]

        with pytest.raises(Exception, match=UNSUITABLE):
            engine.publish([message("good"), bad])

        assert claim(engine) == []
        publish(engine, "next")
        assert bodies(claim(engine)) == ["next"]

    def test_publishing_nothing_is_allowed(self, engine: Engine) -> None:
        engine.publish([])

        assert engine.queue_sizes() == {}

    def test_a_queue_is_made_by_its_first_message(self, engine: Engine) -> None:
        publish(engine, "a", queue="new")

        assert engine.queue_sizes() == {"new": 1}

    def test_messages_of_many_queues_go_in_one_transaction(self, engine: Engine) -> None:
        engine.publish([message("a", "one"), message("b", "two"), message("c", "one", "other")])

        assert engine.queue_sizes() == {"one": 2, "two": 1}

    def test_a_message_without_a_task_is_delivered_as_well(self, engine: Engine) -> None:
        engine.publish([Message("q", "{}", "event")])

        (delivery,) = claim(engine)
        assert (delivery.task, delivery.task_id) == ("", "")


class TestClaiming:
    """``claim``: order, turns, filters."""

    def test_an_empty_queue_gives_nothing(self, engine: Engine) -> None:
        assert claim(engine) == []
        assert claim(engine, queues=()) == []

    def test_older_messages_come_first(self, engine: Engine) -> None:
        publish(engine, "a", "b", "c")

        assert bodies(claim(engine, 2)) == ["a", "b"]
        assert bodies(claim(engine, 2)) == ["c"]

    def test_order_holds_across_tasks(self, engine: Engine) -> None:
        for number in range(6):
            publish(engine, str(number), task=f"task-{number % 2}")

        assert bodies(claim(engine)) == list("012345")

    def test_order_holds_across_forms(self, engine: Engine) -> None:
        for number in range(6):
            publish(engine, str(number), form=f"form {number % 3}")

        found = claim(engine)
        assert bodies(found) == list("012345")
        assert [each.form for each in found] == [f"form {number % 3}" for number in range(6)]

    def test_higher_priority_comes_first(self, engine: Engine) -> None:
        for text, priority in [("low", 0), ("high", 9), ("mid", 5), ("high 2", 9)]:
            publish(engine, text, task=text, priority=priority)

        assert bodies(claim(engine)) == ["high", "high 2", "mid", "low"]

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_below_one_gives_nothing(self, engine: Engine, limit: int) -> None:
        publish(engine, "a")

        assert claim(engine, limit) == []

    def test_a_message_is_claimed_once(self, engine: Engine) -> None:
        publish(engine, "a")

        assert len(claim(engine)) == 1
        assert claim(engine, worker="other") == []

    def test_queues_take_turns(self, engine: Engine) -> None:
        for number in range(10):
            publish(engine, f"a{number}", queue="a")
        publish(engine, "b0", "b1", queue="b")

        claimed = bodies(claim(engine, 4, ("a", "b")))

        assert sorted(claimed) == ["a0", "a1", "b0", "b1"]

    def test_a_busy_queue_does_not_starve_another_one_message_at_a_time(
        self, engine: Engine
    ) -> None:
        for number in range(100):
            publish(engine, f"a{number}", queue="a", priority=9)
        publish(engine, *(f"b{number}" for number in range(10)), queue="b")

        claimed = [claim(engine, 1, ("a", "b"))[0].queue for _ in range(60)]

        # Drawn by lot: with fair chances, fewer than 5 of 60 happens once in 10^11 runs.
        assert claimed.count("b") >= 5

    def test_other_queues_are_left_alone(self, engine: Engine) -> None:
        publish(engine, "a", queue="a")

        assert claim(engine, queues=("b",)) == []
        assert engine.queue_sizes() == {"a": 1}

    def test_unknown_tasks_wait_and_stand_in_nobodys_way(self, engine: Engine) -> None:
        publish(engine, "unknown", task="u", priority=9)
        publish(engine, "known", task="t")

        assert bodies(claim(engine, tasks={"t"})) == ["known"]
        assert claim(engine, tasks={"t"}) == []
        assert bodies(claim(engine, tasks={"t", "u"})) == ["unknown"]

    def test_a_task_that_appears_later_is_claimed_too(self, engine: Engine) -> None:
        assert claim(engine, tasks={"t"}) == []
        publish(engine, "a", task="t")

        assert bodies(claim(engine, tasks={"t"})) == ["a"]

    def test_an_expired_task_is_handed_out_to_be_revoked(self, engine: Engine) -> None:
        publish(engine, "a", expires_at=time.time() - 1)

        (delivery,) = claim(engine)

        assert delivery.expires_at is not None and delivery.expires_at < time.time()

    def test_an_expired_message_that_is_no_task_is_dropped(self, engine: Engine) -> None:
        stale = Message("q", "{}", "stale", expires_at=time.time() - 1)
        engine.publish([stale, Message("q", "{}", "fresh")])

        assert bodies(claim(engine)) == ["fresh"]
        assert engine.list_tasks(status="ready") == []

    def test_who_is_not_registered_can_not_claim(self, engine: Engine) -> None:
        publish(engine, "a")

        with pytest.raises(EngineError) as caught:
            claim(engine, worker="nobody")

        assert str(caught.value) == "Worker nobody is not registered: call register() first."
        assert bodies(claim(engine)) == ["a"]

    def test_threads_claim_each_message_once(self, engine: Engine) -> None:
        publish(engine, *map(str, range(200)))

        with ThreadPoolExecutor(8) as threads:
            batches = threads.map(lambda _: bodies(claim(engine, 7)), range(40))

        claimed = [body for batch in batches for body in batch]
        assert sorted(claimed, key=lambda body: int(body)) == list(map(str, range(200)))


class TestDueTimes:
    """Messages of the future, without a clock of anyone's own."""

    def test_a_future_message_is_not_claimed_before_it_is_due(self, engine: Engine) -> None:
        due_at = time.time() + 0.3
        publish(engine, "later", due_at=due_at)
        publish(engine, "now")
        assert bodies(claim(engine)) == ["now"]
        assert engine.queue_sizes() == {"q": 0}

        (delivery,) = wait_until(lambda: claim(engine))

        assert delivery.body == "later"
        assert time.time() >= due_at

    def test_a_due_time_in_the_past_is_now(self, engine: Engine) -> None:
        publish(engine, "a", due_at=time.time() - FAR)

        assert bodies(claim(engine)) == ["a"]

    def test_waiting_ends_when_a_message_becomes_due(self, engine: Engine) -> None:
        due_at = time.time() + 0.2
        publish(engine, "a", due_at=due_at)

        wait_until(lambda: engine.wait_for_messages(["q"], 5))

        assert due_at <= time.time() < due_at + AT_ONCE
        assert bodies(claim(engine)) == ["a"]

    def test_all_know_when_a_message_becomes_due(self, engine: Engine) -> None:
        """The one who was told first may be busy by then."""
        with ThreadPoolExecutor(2) as threads:
            sleepers = [
                threads.submit(
                    wait_until,
                    lambda slot=slot: engine.wait_for_messages(["q"], 1, place=("w", slot)),
                )
                for slot in range(2)
            ]
            time.sleep(0.2)
            due_at = time.time() + 0.2
            publish(engine, "later", due_at=due_at)

            for sleeper in sleepers:
                sleeper.result(5)
            assert due_at <= time.time() < due_at + AT_ONCE / 2

    def test_a_message_scheduled_while_somebody_sleeps_is_noticed_in_time(
        self, engine: Engine, stranger: Engine
    ) -> None:
        publish(engine, "old")
        claim(engine)
        due_at = time.time() + 0.3

        with later(lambda: publish(stranger, "a", due_at=due_at)):
            wait_until(lambda: engine.wait_for_messages(["q"], 5))

        assert due_at <= time.time() < due_at + AT_ONCE

    def test_more_than_a_share_become_due_at_once(self, engine: Engine) -> None:
        due_at = time.time() + 0.05
        publish(engine, *map(str, range(2500)), due_at=due_at)

        claimed: list[str | bytes] = []
        wait_until(lambda: claimed.extend(bodies(claim(engine, 500))) or len(claimed) == 2500)

        assert claimed == list(map(str, range(2500)))

    def test_waiting_on_no_queue_does_not_spin_while_others_have_work(self, engine: Engine) -> None:
        publish(engine, "a", due_at=time.time() + 0.01)
        wait_until(lambda: engine.wait_for_messages(["q"], 1))

        began = time.monotonic()

        assert not engine.wait_for_messages([], 0.1)
        assert time.monotonic() - began >= 0.1


class TestCompleting:
    """``complete``: one transaction, fenced; ``release``; ``redeliver``."""

    def test_an_acknowledged_message_is_gone(self, engine: Engine) -> None:
        publish(engine, "a")
        (delivery,) = claim(engine)

        completion = engine.complete([Outcome(delivery)])

        assert completion.recorded == {delivery.tag}
        assert engine.list_tasks() == []

    def test_threads_that_complete_at_once_are_told_of_their_own(self, engine: Engine) -> None:
        publish(engine, *map(str, range(64)))
        deliveries = claim(engine)
        for delivery in deliveries:
            engine.set_chord_size(delivery.task_id, 1)
        lost, *held = deliveries
        engine.redeliver([lost], died=False)

        def complete(delivery: Delivery) -> Completion:
            name = delivery.task_id
            parts = [part(name, 0, group=name)]
            return engine.complete([Outcome(delivery, results=[success(name)], parts=parts)])

        with ThreadPoolExecutor(16) as threads:
            completions = dict(zip(deliveries, threads.map(complete, deliveries), strict=True))

        assert completions.pop(lost) == Completion(frozenset(), [])
        for delivery, completion in completions.items():
            assert completion.recorded == {delivery.tag}
            assert [chord.group_id for chord in completion.chords] == [delivery.task_id]
        names = [delivery.task_id for delivery in held]
        assert engine.get_results([*names, lost.task_id]) == {name: success(name) for name in names}

    def test_all_that_an_outcome_holds_is_recorded(self, engine: Engine) -> None:
        publish(engine, "a")
        (delivery,) = claim(engine)
        engine.set_chord_size("g", 1)

        completion = engine.complete(
            [
                Outcome(
                    delivery,
                    results=[success("a"), Result("b", "FAILURE", b"no")],
                    messages=[message("next")],
                    parts=[part("a", 0)],
                )
            ]
        )

        assert engine.get_results(["a", "b"]) == {
            "a": success("a"),
            "b": Result("b", "FAILURE", b"no"),
        }
        assert completion.chords == [part("a", 0)]
        assert bodies(claim(engine)) == ["next"]

    def test_completing_nothing_records_nothing(self, engine: Engine) -> None:
        assert engine.complete([]).recorded == frozenset()

    def test_a_requeued_message_comes_again_as_redelivered(self, engine: Engine) -> None:
        publish(engine, "a", "b")
        first = claim(engine, 1)

        engine.complete([Outcome(first[0], Action.REQUEUE)])

        again = claim(engine)
        assert [(each.body, each.redelivered, each.deaths) for each in again] == [
            ("a", True, 0),
            ("b", False, 0),
        ]

    def test_who_lost_a_delivery_records_nothing_of_it(self, engine: Engine) -> None:
        publish(engine, "a", "b")
        lost, kept = claim(engine)
        engine.redeliver([lost], died=True)
        (again,) = claim(engine, worker="other")

        completion = engine.complete(
            [
                Outcome(lost, results=[success("a")], messages=[message("no")], parts=[part("a")]),
                Outcome(kept, results=[success("b")]),
            ]
        )

        assert completion.recorded == {kept.tag}
        assert set(engine.get_results(["a", "b"])) == {"b"}
        assert engine.chord_parts("g") == []
        assert claim(engine) == []
        assert engine.complete([Outcome(again)]).recorded == {again.tag}

    def test_an_outcome_counts_once(self, engine: Engine) -> None:
        publish(engine, "a")
        (delivery,) = claim(engine)
        engine.complete([Outcome(delivery, messages=[message("next")])])

        assert engine.complete([Outcome(delivery, messages=[message("next")])]).recorded == set()
        assert engine.queue_sizes() == {"q": 1}

    def test_an_old_token_does_not_end_the_claim_of_a_later_message(self, engine: Engine) -> None:
        # Whether or not the database gives the number of a deleted message to the next one.
        publish(engine, "a")
        (old,) = claim(engine)
        engine.complete([Outcome(old)])
        publish(engine, "b")
        (new,) = claim(engine)

        assert engine.complete([Outcome(old._replace(tag=new.tag))]).recorded == set()
        assert engine.complete([Outcome(new)]).recorded == {new.tag}

    def test_nothing_is_recorded_if_a_part_of_it_can_not_be(self, engine: Engine) -> None:
        publish(engine, "a")
        (delivery,) = claim(engine)
        bad = message("bad")._replace(body=object())  # type: ignore[arg-type]

        with pytest.raises(Exception, match=UNSUITABLE):
            engine.complete([Outcome(delivery, results=[success("a")], messages=[bad])])

        assert engine.get_results(["a"]) == {}
        assert engine.complete([Outcome(delivery)]).recorded == {delivery.tag}

    def test_a_failure_while_creating_a_queue_leaves_no_trace_in_memory(
        self, engine: Engine
    ) -> None:
        bad = message("bad", "new")._replace(body=object())  # type: ignore[arg-type]
        with pytest.raises(Exception, match=UNSUITABLE):
            engine.publish([message("a", "new"), bad])

        publish(engine, "b", queue="other new")
        publish(engine, "c", queue="new")

        assert bodies(claim(engine, queues=("new",))) == ["c"]
        assert bodies(claim(engine, queues=("other new",))) == ["b"]

    def test_a_released_message_returns_to_its_place(self, engine: Engine) -> None:
        publish(engine, "a", "b")
        publish(engine, "first", priority=9)
        claimed = claim(engine, 2)

        engine.release(claimed)

        assert [(each.body, each.redelivered) for each in claim(engine)] == [
            ("first", False),
            ("a", False),
            ("b", False),
        ]

    def test_releasing_twice_releases_once(self, engine: Engine) -> None:
        publish(engine, "a")
        claimed = claim(engine)
        engine.release(claimed)
        again = claim(engine, worker="other")

        engine.release(claimed)

        assert claim(engine) == []
        assert engine.complete([Outcome(again[0])]).recorded

    def test_deaths_are_counted(self, engine: Engine) -> None:
        publish(engine, "a")
        for _ in range(2):
            engine.redeliver(claim(engine), died=True)
        engine.redeliver(claim(engine), died=False)

        (delivery,) = claim(engine)
        assert (delivery.deaths, delivery.redelivered) == (2, True)


class TestWaiting:
    """``wait_for_messages`` and ``wake``."""

    def test_waiting_ends_by_itself(self, engine: Engine) -> None:
        began = time.monotonic()

        assert not engine.wait_for_messages(["q"], 0.1)
        assert 0.1 <= time.monotonic() - began < AT_ONCE

    def test_waiting_without_time_only_looks(self, engine: Engine) -> None:
        assert not engine.wait_for_messages(["q"], 0)
        publish(engine, "a")
        assert engine.wait_for_messages(["q"], 0)

    def test_what_is_there_is_not_waited_for(self, engine: Engine) -> None:
        publish(engine, "a")

        assert waited(lambda: engine.wait_for_messages(["q"], 5)) < AT_ONCE / 2

    @pytest.mark.parametrize(
        "event",
        ["publish", "release", "redeliver", "requeue", "complete", "finish_chord"],
    )
    def test_whatever_brings_a_message_wakes(
        self, engine: Engine, stranger: Engine, event: str
    ) -> None:
        publish(engine, "a", "b")
        held, other = claim(engine)
        engine.join_chord(part("a"))
        actions: dict[str, Callable[[], object]] = {
            "publish": lambda: publish(stranger, "c"),
            "release": lambda: stranger.release([held]),
            "redeliver": lambda: stranger.redeliver([held], died=True),
            "requeue": lambda: stranger.complete([Outcome(held, Action.REQUEUE)]),
            "complete": lambda: stranger.complete([Outcome(other, messages=[message("c")])]),
            "finish_chord": lambda: stranger.finish_chord("g", [message("c")]),
        }

        with later(actions[event]):
            assert 0.05 < waited(lambda: engine.wait_for_messages(["q"], 5)) < AT_ONCE

        assert len(claim(engine)) == 1

    def test_messages_for_others_do_not_end_a_wait(self, engine: Engine) -> None:
        publish(engine, "a", queue="other")
        publish(engine, "b", task="unknown")

        assert not engine.wait_for_messages(["q"], 0.05, tasks={"t"})

    def test_a_child_can_be_woken(self, engine: Engine) -> None:
        engine.attend("w", 3)
        place = ("w", 3)
        engine.wait_for_messages(["q"], 0.01, place=place)  # Sleeps somewhere.

        with later(lambda: engine.wake("w", 3)):
            began = time.monotonic()
            engine.wait_for_messages(["q"], 5, place=place)

        assert time.monotonic() - began < AT_ONCE

    def test_a_wake_before_the_sleep_is_not_lost(self, engine: Engine) -> None:
        place = ("w", 0)
        engine.wait_for_messages(["q"], 0.01, place=place)
        engine.wake("w", 0)

        began = time.monotonic()
        engine.wait_for_messages(["q"], 5, place=place)

        assert time.monotonic() - began < AT_ONCE

    def test_waking_whom_nobody_knows_does_nothing(self, engine: Engine) -> None:
        engine.wake("nobody", 0)
        engine.wake("w", 200)


class TestRates:
    """Rate limits, over all workers."""

    def test_a_task_starts_once_in_its_interval_whoever_claims(
        self, engine: Engine, stranger: Engine
    ) -> None:
        publish(engine, *"abcd")
        rates = {"t": 0.15}
        starts: list[float] = []

        def step() -> bool:
            for each, worker in ((engine, "w"), (stranger, "other")):
                starts.extend(time.time() for _ in claim(each, worker=worker, rates=rates))
            return len(starts) == 4

        wait_until(step, interval=0.002)

        gaps = [later - earlier for earlier, later in pairwise(starts)]
        assert min(gaps) > 0.14
        assert max(gaps) < 0.3

    def test_a_task_in_two_forms_has_one_rate(self, engine: Engine) -> None:
        publish(engine, "a")
        publish(engine, "b", form="other")

        assert bodies(claim(engine, rates={"t": FAR})) == ["a"]
        assert claim(engine, rates={"t": FAR}) == []

    def test_a_task_in_two_queues_has_one_rate(self, engine: Engine) -> None:
        publish(engine, "a", queue="one")
        publish(engine, "b", queue="two")

        claimed = claim(engine, queues=("one", "two"), rates={"t": FAR})

        assert bodies(claimed) == ["a"]

    def test_other_tasks_go_on(self, engine: Engine) -> None:
        publish(engine, "a", "b", task="slow")
        publish(engine, "c", "d")

        assert bodies(claim(engine, rates={"slow": FAR})) == ["a", "c", "d"]

    def test_a_limited_task_is_the_first_of_its_batch(self, engine: Engine) -> None:
        publish(engine, "a", "b")
        publish(engine, "c", "d", task="slow")

        assert bodies(claim(engine, rates={"slow": FAR})) == ["c", "a", "b"]

    def test_a_changed_rate_takes_effect_at_once(self, engine: Engine) -> None:
        publish(engine, "a", "b")
        claim(engine, rates={"t": FAR})
        assert claim(engine, rates={"t": FAR}) == []

        assert bodies(wait_until(lambda: claim(engine, rates={"t": 0.01}))) == ["b"]

    def test_waiting_ends_when_the_rate_allows_the_next_start(self, engine: Engine) -> None:
        publish(engine, "a", "b")
        rates = {"t": 0.2}
        claim(engine, rates=rates)

        waits = waited(lambda: engine.wait_for_messages(["q"], 5, rates=rates))

        assert 0.1 < waits < 0.2 + AT_ONCE
        assert bodies(claim(engine, rates=rates)) == ["b"]


class TestQueues:
    """Queues, bindings, and what happens when a queue goes."""

    def test_purge_counts_waiting_and_future_messages_and_spares_claimed_ones(
        self, engine: Engine
    ) -> None:
        publish(engine, "claimed")
        claimed = claim(engine)
        publish(engine, "a", "b")
        publish(engine, "later", due_at=time.time() + FAR)
        publish(engine, "elsewhere", queue="other")

        assert engine.purge("q") == 3

        assert engine.queue_sizes() == {"q": 0, "other": 1}
        assert engine.complete([Outcome(claimed[0])]).recorded
        assert engine.purge("q") == 0
        assert engine.purge("no such queue") == 0

    def test_a_declared_queue_exists_and_is_empty(self, engine: Engine) -> None:
        engine.declare_queue(Queue("q"))
        publish(engine, "a")
        engine.declare_queue(Queue("q"))

        assert engine.queue_sizes() == {"q": 1}

    def test_messages_expire_after_the_queues_own_time(self, engine: Engine) -> None:
        engine.declare_queue(Queue("q", message_ttl=100))
        now = time.time()
        publish(engine, "short", expires_at=now + 5)
        publish(engine, "long", expires_at=now + 5000)
        publish(engine, "own")

        left = {each.body: each.expires_at for each in claim(engine)}

        assert left == {
            "short": pytest.approx(now + 5, abs=2),
            "long": pytest.approx(now + 100, abs=2),
            "own": pytest.approx(now + 100, abs=2),
        }

    def test_two_queues_may_exchange_their_times_to_live(
        self, engine: Engine, stranger: Engine
    ) -> None:
        stranger.declare_queue(Queue("a", message_ttl=10))
        stranger.declare_queue(Queue("b", message_ttl=1000))
        publish(engine, "x", queue="a")
        publish(engine, "x2", queue="a")  # Now it has the lanes in mind.
        stranger.declare_queue(Queue("a", message_ttl=1000))
        stranger.declare_queue(Queue("b", message_ttl=10))

        publish(engine, "y", queue="a")

        old, _, new = claim(engine, queues=("a",))
        assert old.expires_at is not None and new.expires_at is not None
        assert new.expires_at - old.expires_at > 900

    def test_a_deleted_queue_is_gone_with_messages_and_bindings(self, engine: Engine) -> None:
        engine.bind(Binding("x", "direct", "key", "q"))
        publish(engine, "a")
        publish(engine, "later", due_at=time.time() + FAR)

        engine.delete_queue("q")

        assert engine.queue_sizes() == {}
        assert engine.bindings("x") == []
        assert engine.list_tasks() == []
        engine.delete_queue("no such queue")

    def test_a_queue_that_another_process_made_anew_loses_no_message(
        self, engine: Engine, stranger: Engine
    ) -> None:
        publish(engine, "a")
        for each in "bcd":
            stranger.delete_queue("q")
            publish(stranger, "other", queue="r", task=each)
            publish(engine, each)
            assert bodies(claim(stranger, worker="other")) == [each]

    @pytest.mark.parametrize("way", ["release", "requeue", "redeliver"])
    def test_a_claimed_message_outlives_its_queue(self, engine: Engine, way: str) -> None:
        publish(engine, "a", "gone")
        (held,) = claim(engine, 1)
        engine.delete_queue("q")
        assert [each.body for each in engine.list_tasks()] == ["a"]
        assert [lost.delivery.body for lost in engine.lost("w", -1)] == ["a"]

        if way == "release":
            engine.release([held])
        elif way == "requeue":
            engine.complete([Outcome(held, Action.REQUEUE)])
        else:
            engine.redeliver([held], died=True)

        assert engine.queue_sizes() == {"q": 1}
        assert bodies(claim(engine)) == ["a"]

    def test_a_task_whose_queue_was_deleted_still_records_its_outcome(self, engine: Engine) -> None:
        publish(engine, "a")
        (held,) = claim(engine)
        engine.delete_queue("q")

        assert engine.complete([Outcome(held, results=[success("a")])]).recorded == {held.tag}
        assert engine.get_results(["a"]) == {"a": success("a")}
        engine.maintain(time.time())
        publish(engine, "b")
        assert bodies(claim(engine)) == ["b"]

    def test_bindings_are_kept_once_and_undone(self, engine: Engine) -> None:
        binding = Binding("x", "topic", "a.*", "q")
        engine.bind(binding)
        engine.bind(binding)
        engine.bind(Binding("y", "fanout", "", "q"))

        assert engine.bindings("x") == [binding]

        engine.unbind(binding)
        engine.unbind(binding)
        assert engine.bindings("x") == []
        assert len(engine.bindings("y")) == 1


class TestResults:
    """Results: storing, reading, waiting, forgetting, and groups."""

    def test_stored_results_are_found(self, engine: Engine) -> None:
        started = Result("b", "STARTED", b"meta", time.time() + FAR)
        engine.store_results([success("a"), started])

        assert engine.get_results(["a", "b", "c"]) == {"a": success("a"), "b": started}
        assert engine.get_results([]) == {}

    def test_a_later_state_replaces_an_earlier_one(self, engine: Engine) -> None:
        engine.store_results([Result("a", "RETRY", b"1")])
        engine.store_results([Result("a", "FAILURE", b"2")])
        engine.store_results([success("a")])

        assert engine.get_results(["a"])["a"].state == "SUCCESS"

    @pytest.mark.parametrize("state", ["STARTED", "FAILURE", "REVOKED", "SUCCESS"])
    def test_a_success_is_final(self, engine: Engine, state: str) -> None:
        engine.store_results([success("a")])
        engine.store_results([Result("a", state, b"other")])

        assert engine.get_results(["a"]) == {"a": success("a")}

    def test_a_forgotten_result_is_gone(self, engine: Engine) -> None:
        engine.store_results([success("a"), success("b")])

        engine.forget(["a", "unknown"])

        assert engine.get_results(["a", "b"]) == {"b": success("b")}

    def test_waiting_returns_what_has_finished(self, engine: Engine) -> None:
        engine.store_results([Result("b", "STARTED", b"")])
        engine.store_results(
            [success("a"), Result("c", "FAILURE", b""), Result("d", "REVOKED", b"")]
        )

        assert set(engine.wait_for_results(["a", "b", "c", "d", "e"], 1)) == {"a", "c", "d"}

    def test_waiting_in_vain_ends(self, engine: Engine) -> None:
        engine.store_results([Result("a", "STARTED", b"")])

        assert 0.1 <= waited(lambda: engine.wait_for_results(["a"], 0.1), found=False) < AT_ONCE
        assert waited(lambda: engine.wait_for_results(["a"], 0), found=False) < 0.1

    @pytest.mark.parametrize("event", ["store_results", "complete", "finish_chord"])
    def test_whatever_stores_a_result_wakes(
        self, engine: Engine, stranger: Engine, event: str
    ) -> None:
        publish(engine, "a")
        (held,) = claim(engine)
        engine.join_chord(part("a"))
        actions: dict[str, Callable[[], object]] = {
            "store_results": lambda: stranger.store_results([success("a")]),
            "complete": lambda: stranger.complete([Outcome(held, results=[success("a")])]),
            "finish_chord": lambda: stranger.finish_chord("g", results=[success("a")]),
        }

        with later(actions[event]):
            assert 0.05 < waited(lambda: engine.wait_for_results(["a", "b"], 5)) < AT_ONCE

    def test_many_wait_at_once(self, engine: Engine) -> None:
        ids = [f"id-{number}" for number in range(8)]
        began = time.monotonic()

        with (
            later(lambda: engine.store_results([success(each) for each in ids])),
            ThreadPoolExecutor(8) as threads,
        ):
            found = list(threads.map(lambda each: engine.wait_for_results([each], 5), ids))

        assert time.monotonic() - began < AT_ONCE
        assert [list(each) for each in found] == [[each] for each in ids]

    def test_groups_are_kept_until_deleted(self, engine: Engine) -> None:
        engine.save_group("g", b"1", None)
        engine.save_group("g", b"2", time.time() + FAR)

        assert engine.get_group("g") == b"2"
        engine.delete_group("g")
        assert engine.get_group("g") is None


class TestChords:
    """Chords are counted in the database, by whoever brings a part."""

    def test_the_last_part_completes_the_chord(self, engine: Engine) -> None:
        assert not engine.set_chord_size("g", 2)

        assert not engine.join_chord(part("a", 0))
        assert engine.join_chord(part("b", 1))

    def test_the_size_may_come_after_the_parts(self, engine: Engine) -> None:
        assert not engine.join_chord(part("a"))
        assert not engine.join_chord(part("b"))

        assert engine.set_chord_size("g", 2)

    def test_a_size_may_come_between_the_parts(self, engine: Engine) -> None:
        assert not engine.join_chord(part("a"))
        assert not engine.set_chord_size("g", 2)

        assert engine.join_chord(part("b"))

    def test_a_chord_completes_once(self, engine: Engine) -> None:
        engine.set_chord_size("g", 1)
        assert engine.join_chord(part("a"))

        assert not engine.join_chord(part("late"))
        assert not engine.set_chord_size("g", 1)

    def test_a_member_that_finishes_twice_is_counted_once(self, engine: Engine) -> None:
        engine.set_chord_size("g", 2)
        engine.join_chord(part("a"))

        assert not engine.join_chord(part("a"))
        assert engine.join_chord(part("b"))
        assert len(engine.chord_parts("g")) == 2

    @pytest.mark.parametrize("order", ["before the size", "after the size"])
    def test_a_part_more_may_be_expected(self, engine: Engine, order: str) -> None:
        if order == "before the size":
            engine.add_to_chord("g")
        engine.set_chord_size("g", 1)
        if order == "after the size":
            engine.add_to_chord("g")

        assert not engine.join_chord(part("a"))
        assert engine.join_chord(part("b"))

    def test_a_failed_part_completes_the_chord(self, engine: Engine) -> None:
        engine.set_chord_size("g", 3)
        engine.join_chord(part("a", 0))

        assert engine.join_chord(part("b", 1)._replace(failed=True))
        assert not engine.join_chord(part("c", 2)._replace(failed=True))
        assert engine.finish_chord("g", [message("errback")])
        assert not engine.finish_chord("g", [message("errback")])
        assert bodies(claim(engine)) == ["errback"]

    def test_a_chord_that_a_task_sends_has_its_size_with_the_end_of_the_task(
        self, engine: Engine
    ) -> None:
        publish(engine, "a", "b")
        (first, second) = claim(engine)
        engine.redeliver([second], died=False)

        engine.complete([Outcome(first, sizes=[("g", 1)]), Outcome(second, sizes=[("lost", 1)])])
        engine.finish_chord("g", sizes=[("none", 1)])
        engine.join_chord(part("x", group="outer"))
        engine.finish_chord("outer", sizes=[("inner", 1)])

        joined = [
            name
            for name in ("g", "lost", "none", "inner")
            if engine.join_chord(part("a", group=name))
        ]
        assert joined == ["g", "inner"]

    def test_parts_come_in_the_headers_order(self, engine: Engine) -> None:
        for member, place in [("c", 2), ("y", None), ("a", 0), ("x", None), ("b", 1)]:
            engine.join_chord(part(member, place))

        assert [each.member for each in engine.chord_parts("g")] == ["a", "b", "c", "y", "x"]
        assert engine.chord_parts("g")[0] == part("a", 0)

    def test_finishing_publishes_stores_and_forgets(self, engine: Engine) -> None:
        engine.set_chord_size("g", 1)
        engine.join_chord(part("a"))

        assert engine.finish_chord("g", [message("callback")], [success("r")])

        assert bodies(claim(engine)) == ["callback"]
        assert engine.get_results(["r"]) == {"r": success("r")}
        assert engine.chord_parts("g") == []
        assert engine.ready_chords(time.time() + 1) == []

    def test_of_eight_who_finish_one_wins(self, engine: Engine) -> None:
        engine.join_chord(part("a"))
        together = threading.Barrier(8)

        def finish(_: int) -> bool:
            together.wait()
            return engine.finish_chord("g", [message("callback")])

        with ThreadPoolExecutor(8) as threads:
            won = list(threads.map(finish, range(8)))

        assert Counter(won) == {True: 1, False: 7}
        assert engine.queue_sizes() == {"q": 1}

    def test_of_eight_who_join_one_completes(self, engine: Engine) -> None:
        engine.set_chord_size("g", 8)

        with ThreadPoolExecutor(8) as threads:
            last = list(threads.map(lambda n: engine.join_chord(part(str(n), n)), range(8)))

        assert sum(last) == 1
        assert [each.member for each in engine.chord_parts("g")] == list("01234567")

    def test_a_failed_finish_leaves_the_chord(self, engine: Engine) -> None:
        engine.join_chord(part("a"))
        bad = message("bad")._replace(body=object())  # type: ignore[arg-type]

        with pytest.raises(Exception, match=UNSUITABLE):
            engine.finish_chord("g", [bad])

        assert engine.finish_chord("g", [message("good")])

    def test_a_complete_chord_is_found_until_it_is_finished(self, engine: Engine) -> None:
        engine.set_chord_size("g", 2)
        engine.join_chord(part("a", 0))
        assert engine.ready_chords(time.time() + 1) == []
        engine.join_chord(part("b", 1))

        (found,) = engine.ready_chords(time.time() + 1)

        assert (found.group_id, found.callback) == ("g", b"callback")
        assert engine.ready_chords(time.time() - 10) == []


class TestRevocation:
    """Revoked tasks."""

    def test_revoked_tasks_are_named(self, engine: Engine, stranger: Engine) -> None:
        assert set(engine.revocations(["a", "b"]).task_ids) == set()

        stranger.revoke(["a", "c"])
        stranger.revoke({"a"})

        assert set(engine.revocations(["a", "b"]).task_ids) == {"a"}

    def test_all_revoked_tasks_are_listed_the_oldest_first(self, engine: Engine) -> None:
        engine.revoke(["b"])
        engine.revoke(["a"])

        assert list(engine.revocations().task_ids) == ["b", "a"]

    def test_revoked_stamps_are_told(self, engine: Engine, stranger: Engine) -> None:
        assert engine.revocations(["a"])[:2] == ([], {})

        stranger.revoke(stamps={"customer": [7, "x"], "run": ["r"]})
        stranger.revoke(stamps={"customer": ["x", "y"]})

        told = engine.revocations(["a"])
        assert told == ([], {"customer": [7, "x", "y"], "run": ["r"]}, {})
        assert engine.revocations(["a"]).stamps is told.stamps

    def test_signal_for_those_that_run_is_told(self, engine: Engine) -> None:
        engine.revoke(["a", "b"], signal=15)
        engine.revoke(["b", "c"], signal=9)
        engine.revoke(["b"])

        assert engine.revocations(["a", "b", "c"]).signals == {"a": 15, "b": 9, "c": 9}
        assert engine.revocations(["a"]).signals == {"a": 15}

    def test_revocations_end_long_after(self, engine: Engine) -> None:
        engine.revoke(["a"], {"customer": [7]})

        engine.maintain(time.time() + 29 * 86400)
        assert engine.revocations(["a"]) == (["a"], {"customer": [7]}, {})
        engine.maintain(time.time() + 31 * 86400)
        assert engine.revocations(["a"])[:2] == ([], {})

    def test_revocation_outlasts_what_waits_for_longer(self, engine: Engine) -> None:
        engine.publish([message("a", due_at=time.time() + 90 * 86400)])
        engine.revoke(["a", "b"], {"customer": [7]})

        engine.maintain(time.time() + 31 * 86400)

        assert engine.revocations(["a", "b"]) == (["a"], {"customer": [7]}, {})

    def test_waiting_and_future_tasks_are_withdrawn(self, engine: Engine) -> None:
        future = time.time() + 3600
        engine.publish([message("a"), message("b", due_at=future)])
        engine.publish([message("c")])

        withdrawn = engine.withdraw(["a", "b", "unknown"])

        assert sorted(each.task_id for each in withdrawn) == ["a", "b"]
        assert [each.task_id for each in engine.claim(["q"], 5, worker="w")] == ["c"]
        assert engine.withdraw(["a", "b", "c"]) == []
        done = [Result("a", "REVOKED", b"{}")]
        engine.complete([Outcome(each, results=done) for each in withdrawn])
        assert engine.list_tasks(task_ids=["a", "b"]) == []
        assert engine.get_results(["a"])["a"].state == "REVOKED"

    def test_withdrawn_tasks_that_are_not_completed_return(
        self, engine: Engine, stranger: Engine
    ) -> None:
        engine.publish([message("a")])
        stranger.withdraw(["a"])

        (lost,) = engine.lost()
        engine.redeliver([lost.delivery], died=False)

        assert [each.task_id for each in engine.claim(["q"], 5, worker="w")] == ["a"]

    def test_expired_tasks_are_withdrawn_from_every_queue(self, engine: Engine) -> None:
        past, future = time.time() - 1, time.time() + 3600
        engine.publish([message("a", expires_at=past, due_at=future)])
        engine.publish([message("b", "other", expires_at=past)])
        engine.publish([message("c", expires_at=future), message("d")])
        engine.publish([message("", task="", expires_at=past)])

        withdrawn = engine.withdraw()

        assert sorted(each.task_id for each in withdrawn) == ["a", "b"]
        assert {each.task_id for each in engine.list_tasks()} == {"a", "b", "c", "d"}
        assert engine.withdraw() == []


class TestSchedules:
    """``save_entries``, ``get_entries``, ``record_run``: what is due is sent once."""

    def test_a_new_entry_counts_from_its_start(self, engine: Engine, stranger: Engine) -> None:
        saved = engine.save_entries("app", {"é": 100.25, "often": 200.0})

        assert saved == {"é": Entry("app", "é", 100.25), "often": Entry("app", "often", 200.0)}
        assert stranger.get_entries("app", ["é", "other"]) == {"é": saved["é"]}

    def test_an_entry_keeps_its_last_run(self, engine: Engine) -> None:
        (entry,) = engine.save_entries("app", {"often": 100.0}).values()
        engine.record_run(entry, 150.0, [])

        assert engine.save_entries("app", {"often": 300.0}) == {
            "often": Entry("app", "often", 150.0, runs=1)
        }

    def test_an_entry_that_is_no_more_is_deleted(self, engine: Engine) -> None:
        engine.save_entries("app", {"often": 100.0, "seldom": 100.0})
        engine.save_entries("another", {"seldom": 100.0})

        engine.save_entries("app", {"often": 200.0})

        assert list(engine.get_entries("app", ["often", "seldom"])) == ["often"]
        assert list(engine.get_entries("another", ["often", "seldom"])) == ["seldom"]

    def test_a_run_is_noted_with_its_message(self, engine: Engine, stranger: Engine) -> None:
        (entry,) = engine.save_entries("app", {"often": 100.0}).values()

        assert engine.record_run(entry, 100.123456, [message("a"), message("b")])

        assert stranger.get_entries("app", ["often"]) == {
            "often": Entry("app", "often", 100.123456, runs=1)
        }
        assert bodies(claim(stranger)) == ["a", "b"]

    def test_a_run_that_another_one_noted_publishes_nothing(
        self, engine: Engine, stranger: Engine
    ) -> None:
        (entry,) = engine.save_entries("app", {"often": 100.0}).values()
        stranger.record_run(entry, 101.0, [message("theirs")])

        assert not engine.record_run(entry, 102.0, [message("ours")])

        assert engine.get_entries("app", ["often"])["often"].last_run_at == 101.0
        assert bodies(claim(engine)) == ["theirs"]

    def test_a_run_of_a_deleted_entry_is_noted_once(self, engine: Engine) -> None:
        entry = Entry("app", "gone", 100.0, runs=7)

        assert engine.record_run(entry, 101.0, [message("a")])
        assert not engine.record_run(entry, 101.0, [message("a")])

        assert engine.get_entries("app", ["gone"]) == {"gone": Entry("app", "gone", 101.0, 8)}
        assert bodies(claim(engine)) == ["a"]

    def test_of_eight_who_note_a_run_one_publishes(self, engine: Engine) -> None:
        (entry,) = engine.save_entries("app", {"often": 100.0}).values()

        def note(number: int) -> bool:
            return engine.record_run(entry, 101.0, [message(str(number))])

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(note, range(8)))

        assert sum(won) == 1
        assert bodies(claim(engine)) == [str(won.index(True))]

    def test_a_run_whose_message_can_not_be_stored_is_not_noted(self, engine: Engine) -> None:
        (entry,) = engine.save_entries("app", {"often": 100.0}).values()

        with pytest.raises(Exception, match=UNSUITABLE):
            engine.record_run(entry, 101.0, [message("a"), message("b")._replace(body=object())])  # type: ignore[arg-type]

        assert engine.get_entries("app", ["often"]) == {"often": entry}
        assert claim(engine) == []

    def test_a_run_wakes_a_worker(self, engine: Engine, stranger: Engine) -> None:
        (entry,) = engine.save_entries("app", {"often": 100.0}).values()
        woken: list[float] = []

        def sleep() -> None:
            began = time.monotonic()
            if stranger.wait_for_messages(["q"], 20.0):
                woken.append(time.monotonic() - began)

        sleeper = threading.Thread(target=sleep)
        sleeper.start()
        engine.record_run(entry, 101.0, [message("a")])
        sleeper.join()

        assert len(woken) == 1


class TestWorkers:
    """Who is there, and what the dead leave behind."""

    def test_a_worker_is_known_as_it_introduced_itself(self, engine: Engine) -> None:
        engine.register(Worker("x", "x@host", 42, ["a", "b"], ["t", "u"], 4))

        found = next(each for each in engine.list_workers() if each.id == "x")

        assert found == Worker(
            "x",
            "x@host",
            42,
            ["a", "b"],
            frozenset({"t", "u"}),
            4,
            pytest.approx(time.time(), abs=5),  # type: ignore[arg-type]
            pytest.approx(time.time(), abs=5),  # type: ignore[arg-type]
            alive=True,
        )
        engine.deregister("x")

    def test_a_worker_may_say_something_new_of_itself(self, engine: Engine) -> None:
        introduce(engine, "w", ("other",))

        assert [w.queues for w in engine.list_workers() if w.id == "w"] == [["other"]]

    def test_a_heartbeat_is_noted(self, engine: Engine) -> None:
        before = engine.list_workers()[0].heartbeat_at
        engine.heartbeat("w")

        assert engine.list_workers()[0].heartbeat_at > before

    def test_a_worker_that_leaves_is_forgotten(self, engine: Engine) -> None:
        engine.deregister("w")
        engine.deregister("nobody")

        assert [each.id for each in engine.list_workers()] == ["other"]

    def test_what_a_worker_leaves_behind_is_lost_and_can_be_told_whose_it_was(
        self, engine: Engine, stranger: Engine
    ) -> None:
        publish(engine, "a", "b")
        engine.attend("w", 3)
        deliveries = claim(engine, slot=3)
        assert engine.lost() == []

        engine.deregister("w")

        lost = stranger.lost()
        assert [each.delivery for each in lost] == deliveries
        assert {each[1:] for each in lost} == {("w", 3, "w@host")}
        stranger.maintain(time.time())
        assert stranger.lost() == lost
        stranger.release([each.delivery for each in lost])
        assert stranger.lost() == []
        stranger.maintain(time.time())
        assert [each.id for each in stranger.list_workers()] == ["other"]

    def test_what_a_worker_without_children_holds_is_not_lost_while_it_lives(
        self, engine: Engine, stranger: Engine
    ) -> None:
        publish(engine, "a")
        deliveries = claim(engine)

        assert engine.lost() == stranger.lost() == []

        engine.deregister("w")
        assert [lost.delivery for lost in stranger.lost()] == deliveries

    def test_what_a_slot_holds_is_told_when_its_child_is_known_to_be_dead(
        self, engine: Engine
    ) -> None:
        publish(engine, "a", "b")
        claim(engine, 1, slot=1)
        claim(engine, 1, slot=2)

        assert [each.delivery.body for each in engine.lost("w", 2)] == ["b"]
        assert engine.lost("w", 5) == []
        assert engine.lost("other", 2) == []


class TestMaintenance:
    """``maintain``: what is deleted, and what is not."""

    def test_expired_results_and_groups_go_and_others_stay(self, engine: Engine) -> None:
        now = time.time()
        engine.store_results([success("old", expires_at=now - 1), success("kept")])
        engine.store_results([success("new", expires_at=now + FAR)])
        engine.save_group("old", b"", now - 1)
        engine.save_group("new", b"", now + FAR)

        engine.maintain(now)

        assert set(engine.get_results(["old", "kept", "new"])) == {"kept", "new"}
        assert engine.get_group("old") is None
        assert engine.get_group("new") == b""

    def test_all_that_expired_goes_however_much_it_is(self, engine: Engine) -> None:
        ids = [str(number) for number in range(5500)]
        engine.store_results([success(each, expires_at=1.0) for each in ids])

        wait_until(lambda: not engine.maintain(time.time()))

        assert engine.get_results(ids) == {}

    def test_messages_are_never_cleaned_up(self, engine: Engine) -> None:
        publish(engine, "a", "b")

        assert engine.maintain(time.time() + 365 * 86400) is False

        assert engine.queue_sizes()["q"] == 2

    def test_a_chord_that_never_completes_is_forgotten_in_the_end(self, engine: Engine) -> None:
        engine.set_chord_size("g", 2)
        engine.join_chord(part("a"))

        engine.maintain(time.time() + 29 * 86400)
        assert len(engine.chord_parts("g")) == 1
        engine.maintain(time.time() + 31 * 86400)
        assert engine.chord_parts("g") == []

    def test_an_idle_queue_expires(self, engine: Engine) -> None:
        engine.declare_queue(Queue("idle", expires=100))
        engine.declare_queue(Queue("lasting"))
        publish(engine, "a", queue="idle")

        engine.maintain(time.time() + 90)
        assert "idle" in engine.queue_sizes()
        engine.maintain(time.time() + 110)
        assert engine.queue_sizes() == {"lasting": 0}

    def test_a_consumed_queue_does_not_expire(self, engine: Engine) -> None:
        engine.declare_queue(Queue("q", expires=100))

        engine.maintain(time.time() + 1000)

        assert engine.queue_sizes() == {"q": 0}

    @pytest.mark.parametrize("way", ["deregister", "register"])
    def test_a_queue_expires_from_its_last_use(self, engine: Engine, way: str) -> None:
        engine.deregister("other")
        engine.declare_queue(Queue("q", expires=0.2))
        last_use = time.time() + 0.25
        wait_until(lambda: time.time() > last_use)

        if way == "deregister":
            engine.deregister("w")
        else:
            introduce(engine, "w", ("another",))

        engine.maintain(time.time())
        assert engine.queue_sizes() == {"q": 0}
        engine.maintain(time.time() + 1)
        assert engine.queue_sizes() == {}
        introduce(engine, "other")

    def test_an_auto_delete_queue_goes_after_its_consumer(self, engine: Engine) -> None:
        engine.declare_queue(Queue("reply", auto_delete=True))
        introduce(engine, "consumer", ("reply",))
        engine.maintain(time.time() + FAR)
        assert "reply" in engine.queue_sizes()

        engine.deregister("consumer")

        engine.maintain(time.time())
        assert "reply" in engine.queue_sizes()
        engine.maintain(time.time() + FAR)
        assert engine.queue_sizes() == {}


class TestDeadLetters:
    """``complete`` sets aside, ``revive`` puts back, ``discard`` deletes."""

    def test_a_message_that_is_set_aside_is_kept_whole_and_waits_no_more(
        self, engine: Engine
    ) -> None:
        publish(engine, "a", priority=3)
        before = time.time()

        bury(engine, reason="signature", report='{"n": 1}')

        (info,) = engine.list_tasks(status="dead")
        assert (info.task_id, info.task, info.queue, info.body) == ("a", "t", "q", "a")
        assert (info.status, info.priority, info.deaths) == ("dead", 3, 0)
        assert (info.reason, info.report) == ("signature", '[{"n":1}]')
        assert info.died_at is not None and before <= info.died_at <= time.time()
        assert engine.queue_sizes() == {"q": 0}
        assert claim(engine) == []

    def test_setting_aside_stores_results_and_publishes_at_once(self, engine: Engine) -> None:
        publish(engine, "a")
        (delivery,) = claim(engine)
        failed = Result("a", "FAILURE", b"")

        completion = engine.complete(
            [Outcome(delivery, Action.SET_ASIDE, [failed], [message("b")], aside=ASIDE)]
        )

        assert completion.recorded == {delivery.tag}
        assert engine.get_results(["a"]) == {"a": failed}
        assert bodies(claim(engine)) == ["b"]

    def test_who_holds_a_delivery_no_more_can_not_set_it_aside(self, engine: Engine) -> None:
        publish(engine, "a")
        (delivery,) = claim(engine)
        engine.release([delivery])

        engine.complete([Outcome(delivery, Action.SET_ASIDE, aside=ASIDE)])

        assert engine.list_tasks(status="dead") == []
        assert bodies(claim(engine)) == ["a"]

    def test_every_death_is_in_the_report(self, engine: Engine) -> None:
        publish(engine, "a")
        for number in (1, 2):
            engine.redeliver(claim(engine), died=True, report=f'{{"n": {number}}}')

        bury(engine, report='{"n": 3}', died=True)

        (info,) = engine.list_tasks(status="dead")
        assert (info.deaths, info.report) == (3, '[{"n":1},{"n":2},{"n":3}]')

    def test_dead_letters_are_listed_only_when_they_are_asked_for(self, engine: Engine) -> None:
        publish(engine, "a")
        bury(engine)
        publish(engine, "b")

        assert [info.task_id for info in engine.list_tasks()] == ["b"]
        assert [info.task_id for info in engine.list_tasks(status="ready")] == ["b"]
        assert [info.status for info in engine.list_tasks(task_ids=["a", "b"])] == ["dead", "ready"]
        assert [info.task_id for info in engine.list_tasks(reason="rejected")] == ["a"]

    def test_dead_letters_are_found_by_task_queue_and_reason(self, engine: Engine) -> None:
        for text, queue, task, reason in (
            ("a", "q", "t", "lost"),
            ("b", "q", "u", "lost"),
            ("c", "other", "t", "deaths"),
        ):
            publish(engine, text, queue=queue, task=task)
            bury(engine, reason=reason, queue=queue)

        def found(**filters: object) -> list[str]:
            return [info.task_id for info in engine.list_tasks(status="dead", **filters)]  # type: ignore[arg-type]

        assert found() == ["a", "b", "c"]
        assert found(limit=2) == ["a", "b"]
        assert found(tasks=["t"]) == ["a", "c"]
        assert found(queues=["q"]) == ["a", "b"]
        assert found(reason="lost", tasks=["u"]) == ["b"]
        assert found(task_ids=["a", "c"], reason="deaths") == ["c"]

    def test_a_dead_letter_that_is_revived_begins_anew(self, engine: Engine) -> None:
        publish(engine, "a")
        engine.redeliver(claim(engine), died=True, report='{"n": 1}')
        bury(engine, died=True)
        engine.store_results([Result(each, "FAILURE", b"") for each in ("a", "after", "other")])
        (info,) = engine.list_tasks(status="dead")

        assert engine.revive([info.tag], forget=["after"]) == 1

        assert set(engine.get_results(["a", "after", "other"])) == {"other"}
        assert engine.list_tasks()[0].report is None
        (delivery,) = claim(engine)
        assert (delivery.task_id, delivery.body, delivery.deaths) == ("a", "a", 0)
        assert delivery.redelivered
        assert engine.revive([info.tag]) == 0

    def test_a_success_is_final_whatever_is_revived(self, engine: Engine) -> None:
        publish(engine, "a")
        engine.store_results([success("a")])

        engine.revive([bury(engine)])

        assert engine.get_results(["a"])["a"].state == "SUCCESS"

    def test_reviving_wakes_those_who_wait(self, engine: Engine, stranger: Engine) -> None:
        publish(engine, "a")
        tag = bury(engine)

        with later(lambda: stranger.revive([tag])):
            assert waited(lambda: engine.wait_for_messages(["q"], 5)) < AT_ONCE

    def test_only_dead_letters_are_revived_and_discarded(self, engine: Engine) -> None:
        publish(engine, "claimed", "ready")
        held = claim(engine, 1)
        tags = [info.tag for info in engine.list_tasks()]

        assert engine.revive(tags) == 0
        assert engine.discard(tags) == 0

        assert [info.status for info in engine.list_tasks()] == ["claimed", "ready"]
        assert engine.complete([Outcome(each) for each in held]).recorded

    def test_what_is_discarded_is_gone_but_for_its_result(self, engine: Engine) -> None:
        publish(engine, "a")
        tag = bury(engine)
        engine.store_results([Result("a", "FAILURE", b"")])

        assert engine.discard([tag]) == 1

        assert engine.list_tasks(task_ids=["a"]) == []
        assert engine.get_results(["a"])["a"].state == "FAILURE"

    def test_dead_letters_survive_purge_and_the_end_of_their_queue(self, engine: Engine) -> None:
        publish(engine, "a")
        tag = bury(engine)

        assert engine.purge("q") == 0
        engine.delete_queue("q")
        engine.maintain(time.time())

        assert engine.queue_sizes() == {}
        assert engine.revive([tag]) == 1
        assert engine.queue_sizes() == {"q": 1}
        assert bodies(claim(engine)) == ["a"]

    def test_dead_letters_neither_expire_nor_are_withdrawn(self, engine: Engine) -> None:
        publish(engine, "a", expires_at=time.time() + 0.05)
        tag = bury(engine)
        wait_until(lambda: time.time() > engine.list_tasks(task_ids=["a"])[0].published_at + 0.1)
        engine.revoke(["a"])

        assert engine.withdraw() == []
        assert engine.withdraw(["a"]) == []

        engine.revive([tag])
        assert claim(engine)[0].expires_at is None

    def test_dead_letters_go_after_a_month(self, engine: Engine) -> None:
        publish(engine, *map(str, range(2500)))
        for _ in range(3):
            engine.complete(
                [Outcome(each, Action.SET_ASIDE, aside=ASIDE) for each in claim(engine, 1000)]
            )

        engine.maintain(time.time() + 29 * 86400)
        assert len(engine.list_tasks(status="dead", limit=5000)) == 2500
        while engine.maintain(time.time() + 31 * 86400):
            pass
        assert engine.list_tasks(status="dead") == []
        assert engine.list_tasks(task_ids=["0", "2499"]) == []


class TestReading:
    """Counts and lists for those who look in."""

    def test_sizes_count_what_waits(self, engine: Engine) -> None:
        publish(engine, "a", "b", "c")
        publish(engine, "later", due_at=time.time() + FAR)
        publish(engine, "d", queue="other")
        claim(engine, 1)

        assert engine.queue_sizes() == {"q": 2, "other": 1}
        assert engine.queue_sizes(["q", "none"]) == {"q": 2}
        assert engine.queue_sizes([]) == {}

    def test_tasks_are_listed_with_where_they_stand(self, engine: Engine) -> None:
        publish(engine, "claimed", "ready")
        publish(engine, "scheduled", due_at=time.time() + FAR, queue="other", priority=3)
        claim(engine, 1, slot=5)

        claimed, ready, scheduled = engine.list_tasks()

        assert (claimed.task_id, claimed.status) == ("claimed", "claimed")
        assert (claimed.worker, claimed.slot) == ("w", 5)
        assert claimed.claimed_at == pytest.approx(time.time(), abs=5)
        assert (ready.task_id, ready.status, ready.worker) == ("ready", "ready", None)
        assert (scheduled.status, scheduled.queue, scheduled.priority) == ("scheduled", "other", 3)
        assert scheduled.published_at == pytest.approx(time.time(), abs=5)

    @pytest.mark.parametrize(
        ("filters", "found"),
        [
            ({"status": "claimed"}, "a"),
            ({"status": "ready"}, "bd"),
            ({"status": "scheduled"}, "c"),
            ({"worker": "w"}, "a"),
            ({"worker": "w", "status": "claimed"}, "a"),
            ({"worker": "other", "status": "claimed"}, ""),
            ({"queues": ["two"]}, "d"),
            ({"queues": []}, ""),
            ({"queues": ["q"], "status": "scheduled"}, "c"),
            ({"task_ids": ["a", "c", "x"]}, "ac"),
            ({"task_ids": ["a", "c"], "status": "claimed"}, "a"),
            ({"task_ids": []}, ""),
            ({"limit": 2}, "ab"),
        ],
    )
    def test_lists_are_filtered(
        self, engine: Engine, filters: dict[str, object], found: str
    ) -> None:
        publish(engine, "a", "b")
        publish(engine, "c", due_at=time.time() + FAR)
        publish(engine, "d", queue="two")
        claim(engine, 1)

        infos = engine.list_tasks(**filters)  # type: ignore[arg-type]

        assert "".join(info.task_id for info in infos) == found

    def test_a_future_task_that_was_claimed_and_released_is_ready(self, engine: Engine) -> None:
        publish(engine, "a", due_at=time.time() + 0.05)
        engine.release(wait_until(lambda: claim(engine)))

        assert [info.status for info in engine.list_tasks()] == ["ready"]

    def test_a_closed_engine_opens_again(self, engine: Engine) -> None:
        publish(engine, "a")

        engine.close()
        engine.close()

        assert bodies(claim(engine)) == ["a"]


PRODUCE = """
import sys, time
from celeriac.engines import close_engines, open_engine
from celeriac.engines.base import Message

url, name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
engine, ends, number, longest = open_engine(url), time.time() + seconds, 0, 0.0
while time.time() < ends:
    began = time.perf_counter()
    engine.publish([Message("q", "{}", "", f"t{number % 3}", f"{name}-{number}")])
    longest = max(longest, time.perf_counter() - began)
    number += 1
close_engines()
print(number, longest)
"""

CONSUME = """
import sys, time
from celeriac.engines import close_engines, open_engine
from celeriac.engines.base import Outcome, Result, Worker

url, name = sys.argv[1:]
engine = open_engine(url)
engine.register(Worker(name, name, 0, ["q"], []))
while True:
    deliveries = engine.claim(["q"], 16, worker=name)
    if any(each.task == "stop" for each in deliveries):
        engine.release([each for each in deliveries if each.task == "stop"])
        deliveries = [each for each in deliveries if each.task != "stop"]
        if not deliveries:
            break
    if not deliveries:
        engine.wait_for_messages(["q"], 1)
    engine.release(deliveries[10:])
    engine.complete([
        Outcome(each, results=[Result(each.task_id, "SUCCESS", name.encode())])
        for each in deliveries[:10]
    ])
    print(*(each.task_id for each in deliveries[:10]), sep="\\n")
engine.deregister(name)
close_engines()
"""


class TestContention:
    """Eight processes at once: no lock error, nothing lost, nothing twice."""

    def test_nothing_is_lost_and_nothing_comes_twice(
        self, engine: Engine, url: str, program: Callable[..., Program]
    ) -> None:
        names = [f"c{number}" for number in range(4)]
        consumers = [program(sys.executable, "-c", CONSUME, url, name) for name in names]
        producers = [
            program(sys.executable, "-c", PRODUCE, url, f"p{number}", "4") for number in range(4)
        ]
        assert [each.wait() for each in producers] == [0] * 4, [each.log for each in producers]
        engine.publish([message("stop", task="stop", priority=-1)])
        assert [each.wait() for each in consumers] == [0] * 4, [each.log for each in consumers]

        told = [each.log.split() for each in producers]
        sent = {f"p{p}-{n}" for p, (count, _) in enumerate(told) for n in range(int(count))}
        ran = [task_id for each in consumers for task_id in each.log.split()]
        assert len(ran) == len(set(ran))
        assert set(ran) == sent
        assert len(engine.get_results(ran)) == len(sent)
        assert [info.task for info in engine.list_tasks()] == ["stop"]
        # A machine with two cores that runs eight processes stops each of them now and then.
        assert max(float(longest) for _, longest in told) < 2

    def test_a_process_that_was_never_there_reads_what_was_written(
        self, engine: Engine, url: str
    ) -> None:
        publish(engine, "a")
        code = "import sys; from celeriac.engines import open_engine as o; "
        code += "print(o(sys.argv[1]).queue_sizes())"

        assert run([sys.executable, "-c", code, url]).stdout == "{'q': 1}\n"


@contextmanager
def later(action: Callable[[], object]) -> Iterator[None]:
    """Have something done a moment later, in another thread."""
    timer = threading.Timer(0.1, action)
    timer.start()
    yield
    timer.join()


def waited(wait: Callable[[], object], *, found: bool = True) -> float:
    """Return how long a wait took (seconds), which is to find something or nothing."""
    began = time.monotonic()
    assert bool(wait()) is found
    return time.monotonic() - began
