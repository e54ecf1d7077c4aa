"""The short way of a call stores what Celery's own long way does, or is not taken."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any

import celery
import kombu
import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import signals
from celery.app.amqp import AMQP
from celery.utils.saferepr import saferepr
from flask import Flask

from celeriac import Celeriac
from celeriac import make_celery
from celeriac.engines import Engine
from celeriac.engines import open_engine
from celeriac.engines.base import Message
from celeriac.envelope import Envelope
from celeriac.publish import AMQP as OurAMQP
from celeriac.task import ArgumentError
from celeriac.template import new_task_id
from celeriac.template import shown

Stored = dict[str, Any]


class Sent:
    """A Celery app of one task, and what its calls left in the queue file."""

    def __init__(self, folder: Path, kind: type[Celeriac] = Celeriac, **conf: Any) -> None:
        flask_app = Flask(__name__)
        flask_app.config["CELERY"] = {"broker_url": f"sqlite:///{folder}/q.db", **conf}
        self.celery = kind(flask_app, set_as_current=False)
        self.task: Any = self.celery.task(name="echo")(echo)

    @property
    def engine(self) -> Engine:
        return open_engine(self.celery.conf.broker_url)

    def stored(self) -> list[Stored]:
        """Return the messages in the order of sending, without what differs in each."""
        tasks = sorted(self.engine.list_tasks(), key=lambda task: task.tag)
        return [_without_ids(task) for task in tasks]

    def is_short(self, *args: Any, **kwargs: Any) -> bool:
        """Make a call, and say whether it went the short way, which numbers its tasks itself."""
        self.task.delay(*args, **kwargs)
        return uuid.UUID(self.task.delay(*args, **kwargs).id).version == 7


def echo(*args: Any, **kwargs: Any) -> Any:
    return args or kwargs


def _without_ids(task: Any) -> Stored:
    headers, properties, *content = Envelope.of(task)
    assert headers["id"] == properties["correlation_id"] == task.task_id
    if headers["root_id"] == headers["id"]:
        headers["root_id"] = "its own"
    headers["id"] = properties["correlation_id"] = "its own"
    if "expiration" in properties:  # In milliseconds from now.
        properties["expiration"], task = "some", task._replace(expires_at=round(task.expires_at))
    same = {"tag": 0, "task_id": "", "published_at": 0, "envelope": "", "form": ""}
    return {**task._asdict(), **same} | {
        "headers": headers,
        "order": list(headers),
        "properties": properties,
        "content": content,
    }


@contextmanager
def watched() -> Iterator[None]:
    """Have all calls go the long way, as where anybody listens they do."""

    def listen(**kwargs: Any) -> None:
        pass

    signals.before_task_publish.connect(listen, weak=False)
    try:
        yield
    finally:
        signals.before_task_publish.disconnect(listen)


@pytest.fixture
def sent(tmp_path: Path) -> Sent:
    return Sent(tmp_path)


# What is sent

CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1, 2.5, True, None), {}),
    (("plain", "it's", "back\\slash", "new\nline", "ümlaut \u2028", "%(task_id)s 100 %"), {}),
    ((), {"name": "you", "loud": False, "quote": "'"}),
    (([1, [2, [3, [4]]]], {"a": {"b": (1, 2)}}), {"deep": [{"er": {1: 2}}]}),
    ((datetime(2026, 1, 2, tzinfo=timezone.utc), uuid.UUID(int=7), b"bytes"), {}),
    (("x" * 5000,), {"long": "y" * 5000}),
    (tuple(range(1000)), {}),
    (("<celeriac task_id>",), {}),
    ((float("inf"), -0.0, 10**30), {}),
]


@pytest.mark.parametrize(("args", "kwargs"), CALLS)
def test_a_short_call_stores_what_a_long_one_does(
    sent: Sent, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert sent.is_short()
    sent.celery.control.purge()
    short = sent.task.delay(*args, **kwargs)
    with watched():
        long = sent.task.delay(*args, **kwargs)

    assert uuid.UUID(short.id).version == 7
    first, second = sent.stored()
    assert first == second
    assert vars(short).keys() == vars(long).keys()
    assert (short.ignored, short.parent) == (long.ignored, long.parent)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"queue": "mail"},
        {"priority": 7},
        {"headers": {"tenant": 7, "100 %": "%s"}},
        {"expires": datetime(2100, 1, 1, tzinfo=timezone.utc)},
        {"eta": datetime(2100, 1, 1, tzinfo=timezone.utc)},
        {"link": {"task": "echo", "args": (), "kwargs": {}, "options": {}}, "shadow": "other"},
        {"time_limit": 9, "soft_time_limit": 8, "retries": 2, "ignore_result": True},
        {"delivery_mode": 1, "group_id": "g", "stamped_headers": ["s"], "s": "stamp"},
    ],
    ids=lambda options: ",".join(options) or "none",
)
def test_many_calls_store_what_single_ones_do(sent: Sent, options: dict[str, Any]) -> None:
    calls: list[Any] = [("a", 1), {"b": 2}, ["c"]]

    results = sent.task.delay_many(iter(calls), **options)
    with watched():
        sent.task.delay_many(calls, **options)

    assert [uuid.UUID(result.id).version for result in results] == [7] * 3
    stored = sent.stored()
    assert stored[:3] == stored[3:]
    assert all(result.ignored == options.get("ignore_result", False) for result in results)
    assert all(each["queue"] == options.get("queue", "celery") for each in stored)


def test_calls_that_differ_in_what_differs_often_are_of_one_form(sent: Sent) -> None:
    sent.task.delay(1, a=2)
    sent.task.apply_async((2,), group_id="g", root_id="r", reply_to="me")
    sent.task.delay_many([(3,), (4,)])
    sent.task.delay_many([(5,)], queue="celery")

    forms = [info.form for info in sent.engine.list_tasks()]
    assert len(forms) == 5
    assert len(set(forms)) == 1
    assert len(forms[0]) > 500


def test_what_may_differ_in_each_call_is_no_matter_of_form(sent: Sent) -> None:
    sent.task.delay_many([(1,)], countdown=60)
    sent.task.delay_many([(1,)], headers={"tenant": 7})

    assert [info.form for info in sent.engine.list_tasks()] == ["", ""]


def test_who_changes_an_envelope_changes_no_other(sent: Sent) -> None:
    sent.task.delay_many([(1,), (2,)])
    one, other = map(Envelope.of, sent.engine.list_tasks())

    one.headers["stamps"]["s"] = one.headers["timelimit"][0] = "changed"
    one.properties["delivery_info"]["exchange"] = one.headers["lang"] = "changed"

    assert "changed" not in str(other)


@pytest.mark.parametrize("own", [{}, {"queue": "mail"}, {"priority": 3}], ids=str)
def test_a_group_stores_what_its_members_would_the_long_way(
    sent: Sent, own: dict[str, Any]
) -> None:
    def call() -> Any:
        members = [sent.task.s(number, name="it's").set(**own) for number in range(3)]
        return celery.group(members, app=sent.celery).apply_async()

    short = call()
    with watched():
        long = call()

    stored = sent.stored()
    for each in stored:
        each["headers"]["group"] = {short.id: "own", long.id: "own"}[each["headers"]["group"]]
        each["headers"]["root_id"] = each["headers"]["root_id"] in (short.id, long.id, "its own")
    assert stored[:3] == stored[3:]
    assert [each["headers"]["group_index"] for each in stored] == [0, 1, 2] * 2
    assert [result.id for result in short] == [
        task.task_id for task in sorted(sent.engine.list_tasks())[:3]
    ]


def test_a_call_with_ids_of_its_own_stores_what_a_long_one_does(sent: Sent) -> None:
    ids = {"root_id": "r", "parent_id": "p", "group_id": "g", "group_index": 7, "reply_to": "me"}

    def call() -> None:
        sent.task.apply_async((1,), {"a": 2}, task_id="t", add_to_parent=False, **ids)
        sent.task.apply_async(task_id="ü", root_id="r")

    sent.task.delay()
    call()
    with watched():
        call()

    _, *stored = sent.stored()
    assert stored[:2] == stored[2:]


@pytest.mark.parametrize(
    "ids",
    [
        {"root_id": uuid.UUID(int=7)},
        {"root_id": True},
        {"group_id": uuid.UUID(int=7), "group_index": 1},
        {"reply_to": uuid.UUID(int=7)},
        {"parent_id": ""},
        {"group_index": True},
    ],
    ids=str,
)
def test_ids_that_are_no_texts_are_sent_as_by_celery(sent: Sent, ids: dict[str, Any]) -> None:
    sent.task.delay()
    sent.celery.control.purge()

    sent.task.apply_async((1,), **ids)
    with watched():
        sent.task.apply_async((1,), **ids)

    first, second = sent.stored()
    assert first == second


def test_an_id_may_be_a_uuid(sent: Sent) -> None:
    sent.task.delay()
    sent.celery.control.purge()

    sent.task.apply_async((1,), task_id=uuid.UUID(int=7))

    assert [info.task_id for info in sent.engine.list_tasks()] == [str(uuid.UUID(int=7))]


@pytest.mark.parametrize(
    "options",
    [{"headers": {"x": "<celeriac task_id>"}}, {"shadow": "<celeriac origin>"}],
    ids=str,
)
def test_texts_like_those_of_holes_stay_what_they_are(sent: Sent, options: dict[str, Any]) -> None:
    sent.task.delay_many([(1,)], **options)
    with watched():
        sent.task.delay_many([(1,)], **options)

    first, second = sent.stored()
    assert first == second


def test_whole_envelopes_of_an_older_version_are_read_in_any_lane(sent: Sent) -> None:
    sent.task.delay(1)
    (info,) = sent.engine.list_tasks()
    whole = Envelope.of(info)

    sent.engine.publish(
        [Message(info.queue, whole.pack(), info.body, info.task, info.task_id, form=info.form)]
    )

    assert [Envelope.of(each) for each in sent.engine.list_tasks()] == [whole, whole]


def test_a_call_in_a_task_has_its_parent_and_root(sent: Sent) -> None:
    sent.task.delay()
    trails = []

    @sent.celery.task(bind=True)
    def outer(self: Any) -> None:
        self.request.update(id="outer", root_id="root", called_directly=False)
        results = [sent.task.delay(1), *sent.task.delay_many([(1,)])]
        with watched():
            results += [sent.task.delay(1), *sent.task.delay_many([(1,)])]
        trails.append((self.request.children, results))

    outer()

    _, *stored = sent.stored()
    assert stored[0] == stored[1] == stored[2] == stored[3]
    assert (stored[0]["headers"]["parent_id"], stored[0]["headers"]["root_id"]) == ("outer", "root")
    ((children, results),) = trails
    assert children == results


@pytest.mark.parametrize("args", [("x", 1), ("it's",), ("a\tb", "\x00"), ((),), ("é" * 2000,)])
def test_arguments_are_shown_as_by_celery(sent: Sent, args: tuple[Any, ...]) -> None:
    for arguments in (args, list(args), {str(number): arg for number, arg in enumerate(args)}):
        assert shown(arguments, 1024, sent.celery) == saferepr(arguments, 1024, maxlevels=3)


def test_ids_are_uuids_in_order_of_time() -> None:
    ids = [new_task_id() for _ in range(1000)]

    assert len(set(ids)) == 1000
    moments = [task_id[:18] for task_id in ids]
    assert moments == sorted(moments)
    assert len(set(moments)) > 500
    parsed = [uuid.UUID(task_id) for task_id in ids]
    assert {(each.version, each.variant) for each in parsed} == {(7, uuid.RFC_4122)}
    assert [str(each) for each in parsed] == ids


# Which calls go the long way


@pytest.mark.parametrize(
    "conf",
    [
        {"task_send_sent_event": True},
        {"task_inherit_parent_priority": True},
        {"task_serializer": "pickle"},
        {"task_compression": "gzip"},
        {"task_protocol": 1},
        {"task_routes": (lambda *args, **kwargs: {"queue": "by-arguments"},)},
    ],
    ids=lambda conf: next(iter(conf)),
)
def test_settings_that_ask_for_more_than_a_template(tmp_path: Path, conf: dict[str, Any]) -> None:
    sent = Sent(tmp_path, **conf)

    assert not sent.is_short(1)
    assert len(sent.task.delay_many([(1,), (2,)])) == 2
    assert len(sent.engine.list_tasks()) == 4


def test_settings_that_a_template_knows(tmp_path: Path) -> None:
    routes = {"echo": {"queue": "mail", "priority": 3}}
    sent = Sent(tmp_path, task_routes=routes, task_default_delivery_mode=1, task_ignore_result=True)

    assert sent.is_short()
    with watched():
        result = sent.task.delay()

    first, second, third = sent.stored()
    assert first == second == third
    assert (first["queue"], first["priority"], result.ignored) == ("mail", 3, True)


def test_a_task_that_expires_does_so_from_each_call_on(sent: Sent) -> None:
    sent.task.expires = 60

    assert not sent.is_short()


def test_changes_are_seen_by_the_next_call(sent: Sent) -> None:
    assert sent.is_short()

    sent.celery.conf.task_default_queue = "other"
    sent.task.delay()
    sent.task.ignore_result = True
    assert sent.task.delay().ignored is True
    sent.celery.conf.task_always_eager = True
    assert sent.task.delay(1).get() == (1,)
    assert [each.get() for each in sent.task.delay_many([(1,), (2,)])] == [(1,), (2,)]

    assert [each["queue"] for each in sent.stored()] == ["celery", "celery", "other", "other"]
    assert [each["headers"]["ignore_result"] for each in sent.stored()[2:]] == [False, True]


def test_receivers_see_each_message(sent: Sent) -> None:
    assert sent.is_short()
    seen: list[Any] = []

    def see(sender: str, body: Any, **kwargs: Any) -> None:
        seen.append((sender, body[0]))

    for signal in (signals.before_task_publish, signals.after_task_publish):
        signal.connect(see, weak=False)
    # Before 5.7 Celery keeps the lists of receivers as they were at the first message.
    sent.celery.__dict__.pop("amqp")
    try:
        sent.task.delay(1)
        sent.task.delay_many([(2,), (3,)])
    finally:
        for signal in (signals.before_task_publish, signals.after_task_publish):
            signal.disconnect(see)

    assert sorted(seen) == [("echo", (number,)) for number in (1, 1, 2, 2, 3, 3)]
    assert sent.is_short()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (celery.Task, "apply_async"),
        (celery.Celery, "send_task"),
        (kombu.Producer, "publish"),
        (AMQP, "as_task_v2"),
    ],
)
def test_instruments_see_each_message(
    sent: Sent, monkeypatch: pytest.MonkeyPatch, kind: type, name: str
) -> None:
    assert sent.is_short()
    original: Callable[..., Any] = getattr(kind, name)
    seen = 0

    def instrumented(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        return original(*args, **kwargs)

    instrumented.__module__ = original.__module__
    monkeypatch.setattr(kind, name, instrumented)
    # Celery remembers what makes its messages.
    sent.celery.__dict__.pop("amqp")
    sent.task.delay(1)
    sent.task.delay_many([(2,), (3,)])

    assert seen == 3


class Overriding(Celeriac):
    sent = 0

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        self.sent += 1
        return super().send_task(*args, **kwargs)


class OwnAMQP(OurAMQP):
    def as_task_v2(self, *args: Any, **kwargs: Any) -> Any:
        message = super().as_task_v2(*args, **kwargs)
        message.headers["tenant"] = 7
        return message


class OwnMessages(Celeriac):
    amqp_cls = f"{__name__}:OwnAMQP"


def test_methods_that_a_program_overrides_are_called(tmp_path: Path) -> None:
    sent = Sent(tmp_path, Overriding)

    assert not sent.is_short()
    sent.task.delay_many([(1,), (2,)])

    assert sent.celery.sent == 4  # type: ignore[attr-defined]


def test_messages_of_a_programs_own_making_are_sent(tmp_path: Path) -> None:
    sent = Sent(tmp_path, OwnMessages)

    assert not sent.is_short()
    sent.task.delay_many([(1,), (2,)])

    assert [each["headers"]["tenant"] for each in sent.stored()] == [7] * 4


# Many at once


def test_many_calls_are_one_transaction(sent: Sent) -> None:
    def calls() -> Iterator[tuple[int]]:
        yield (1,)
        raise LookupError

    with pytest.raises(LookupError):
        sent.task.delay_many(calls())
    with pytest.raises(ArgumentError):
        sent.task.delay_many([(1,), (object(),)])
    with watched(), pytest.raises(ArgumentError):
        sent.task.delay_many([(1,), (object(),)])
    assert sent.engine.list_tasks() == []

    results = sent.task.delay_many((number,) for number in range(1000))

    tasks = sorted(sent.engine.list_tasks(), key=lambda task: task.tag)
    assert [result.id for result in results] == [task.task_id for task in tasks]
    assert [json.loads(task.body)[0] for task in tasks] == [[number] for number in range(1000)]
    assert len({task.published_at for task in tasks}) == 1


def test_no_calls_are_no_results(sent: Sent) -> None:
    assert sent.task.delay_many([]) == sent.task.delay_many(iter(())) == []


@pytest.mark.parametrize("place", [0, 1, 5])
def test_the_argument_that_json_can_not_hold_is_named(sent: Sent, place: int) -> None:
    calls: list[Any] = [(1,)] * 5
    calls.insert(place, {"thing": object()})

    with pytest.raises(ArgumentError, match=r"^argument 'thing' of echo is an object, which JSON"):
        sent.task.delay_many(calls)
    assert sent.stored() == []


@pytest.mark.parametrize("name", ["args", "kwargs", "task_id"])
def test_what_each_call_has_of_its_own_is_no_option(sent: Sent, name: str) -> None:
    with pytest.raises(TypeError, match=f"takes no '{name}': each call has its own"):
        sent.task.delay_many([(1,)], **{name: "x"})


def test_a_call_that_is_no_tuple_is_refused(sent: Sent) -> None:
    with pytest.raises(TypeError) as caught:
        sent.task.delay_many(["a@example.com"])

    assert str(caught.value) == (
        "delay_many() takes the arguments of each call as a tuple, or as a dictionary by their "
        "names, and got 'a@example.com'. For a single argument write [(x,) for x in …]."
    )


@pytest.mark.parametrize("call", ["delay", "delay_many"])
def test_a_time_limit_that_strikes_meanwhile_is_no_matter_of_arguments(
    sent: Sent, call: str
) -> None:
    class Slow:
        """Takes so long to be encoded that the soft time limit of the calling task is over."""

        struck = False

        def __json__(self) -> str:
            struck, Slow.struck = Slow.struck, True
            if not struck:
                raise SoftTimeLimitExceeded
            return "slow"

    sent.task.delay()
    with pytest.raises(SoftTimeLimitExceeded):
        if call == "delay":
            sent.task.delay(Slow())
        else:
            sent.task.delay_many([(1,), (Slow(),)])
    assert len(sent.stored()) == 1


def test_arguments_that_do_not_fit_are_told_as_ever(tmp_path: Path) -> None:
    sent = Sent(tmp_path)

    @sent.celery.task
    def add(a: int, b: int) -> int:
        return a + b

    add.delay(1, 2)

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'"):
        add.delay(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'"):
        add.delay_many([(1, 2), (1,)])
    with pytest.raises(TypeError, match="task args must be a list or tuple"):
        sent.task.apply_async("ab")
    assert len(sent.engine.list_tasks()) == 1


def test_many_calls_reach_any_broker(tmp_path: Path) -> None:
    flask_app = Flask(__name__)
    flask_app.config["CELERY"] = {"broker_url": "memory://", "result_backend": "cache+memory://"}
    celery_app = make_celery(flask_app, set_as_current=False)
    task: Any = celery_app.task(name="echo")(echo)

    results = task.delay_many([(1,), {"a": 2}], queue="many")

    with celery_app.connection_for_write() as connection:
        queue = connection.SimpleQueue("many")
        bodies = [queue.get(timeout=5).payload[:2] for _ in range(2)]
        queue.close()
    assert bodies == [[[1], {}], [[], {"a": 2}]]
    assert len(results) == 2
    celery_app.close()
