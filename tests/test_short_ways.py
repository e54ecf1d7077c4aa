"""The worker's short ways: that they come to the same as Celery's and kombu's, or step aside.

Those of a call are in :mod:`test_publishing`.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Iterator
from datetime import date
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from typing import NamedTuple

import kombu.serialization
import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery.app.task import Context
from celery.backends.base import Backend
from celery.exceptions import InvalidTaskError
from celery.result import AsyncResult
from celery.utils.threads import LocalStack
from kombu.exceptions import ContentDisallowed
from kombu.exceptions import DecodeError
from kombu.exceptions import EncodeError
from kombu.utils import json as kombu_json
from kombu.utils.json import register_type

from celeriac import Celeriac
from celeriac.backend import EngineBackend
from celeriac.collect import collecting
from celeriac.collect import Collector
from celeriac.envelope import Envelope
from celeriac.stack import RequestStack
from celeriac.success import Clock
from celeriac.worker.arguments import Arguments

JSON = "application/json"
#: Whether results can be compressed: since Celery 5.7.
COMPRESSES = hasattr(Backend, "supports_result_compression")
STEPS = ("store_result", "_store_result", "_get_result_meta", "_pack", "encode", "_encode")
_serializers: Any = kombu.serialization.registry  # type: ignore[attr-defined]


class Point(NamedTuple):
    x: int
    y: Any


class Money:
    """A type that the program taught kombu."""

    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    def __hash__(self) -> int:
        return hash(self.cents)


class Reducible:
    def __json__(self) -> Any:
        return {"reduced": [1, b"\xff"]}


PLAIN = [
    *(None, True, 0, -1, 2**70, 1.5, float("nan"), float("inf"), -0.0, "", "text", "ä\u2028€𝄞\x00"),
    *("\ud800 alone", '"\\/', "%s %(x)s {y}", "__type__", "\u007f", b"bytes", b"\xff\xfe"),
    *(date(2026, 2, 3), datetime(2026, 2, 3, 4, 5, 6, 7), datetime.now(timezone.utc)),
    *(datetime.now().time(), uuid.uuid4(), Decimal("1.10"), Reducible(), Money(7)),
    *({}, [], (), {2: 2, None: 3, True: 4, 1.5: 5}, OrderedDict(b=1, a=2), Point(1, "é")),
    *({"__type__": "x"}, {"status": "FAILURE", "task_id": "another"}),
]


def values(count: int) -> list[Any]:
    """Return plain values, and nested ones made of them, the same in each run."""
    chance = random.Random(20)

    def nested(depth: int) -> Any:
        if not depth or chance.random() < 0.3:
            return chance.choice(PLAIN)
        items = [nested(depth - 1) for _ in range(chance.randrange(4))]
        if chance.random() < 0.5:
            return {chance.choice(["a", "ü", "__value__", "\\u005f"]): item for item in items}
        return chance.choice([list, tuple])(items)

    return PLAIN + [nested(4) for _ in range(count)]


@pytest.fixture(autouse=True)
def money() -> Iterator[None]:
    register_type(Money, "money", lambda money: money.cents, Money)
    yield
    del kombu_json._encoders[Money], kombu_json._decoders["money"]


@pytest.fixture
def serializers() -> Iterator[Any]:
    """kombu's registry, put back afterwards."""
    encoders, decoders = dict(_serializers._encoders), dict(_serializers._decoders)
    yield _serializers
    _serializers._encoders.update(encoders)
    _serializers._decoders.update(decoders)


# What is stored of a task that succeeded


@pytest.fixture
def app(queue_url: str) -> Iterator[Celery]:
    app = Celery("proj", broker=queue_url, backend=queue_url, set_as_current=False)
    yield app
    app.close()


def context(**fields: Any) -> Context:
    return Context({"id": "id", "group": None, "parent_id": None, **fields})


def stored(backend: Any, result: Any, request: Any) -> bytes:
    """Return what the worker would store of a task that returned ``result``."""
    with collecting(Collector(backend.engine, "id")) as collector:
        backend.mark_as_done("id", result, request)
    ((task_id, state, meta, expires_at),) = collector.results
    assert (task_id, state) == ("id", "SUCCESS")
    assert expires_at == pytest.approx(time.time() + 86400, abs=5)
    return bytes(meta)


def without_date(meta: bytes) -> str:
    """Return the text but for the instant in it."""
    before, name, after = meta.decode().partition('"date_done": "')
    instant, quote, rest = after.partition('"')
    assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(instant)) < timedelta(seconds=5)
    return before + name + quote + rest


def long_way(backend: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have everything go the long way from now on."""
    monkeypatch.setattr(backend._success, "is_for", lambda backend: False)
    return backend


def is_short(backend: Any, result: Any = 1) -> bool:
    """Say whether a result goes the short way."""
    texts = []
    meta = backend._success.meta
    backend._success.meta = lambda *args: texts.append(meta(*args)) or texts[-1]
    try:
        stored(backend, result, context())
    finally:
        del backend._success.meta
    return any(texts)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"group": 'g"1', "parent_id": "ä"},
        {"group": "g", "_children": [AsyncResult("child", app=Celery(set_as_current=False))]},
    ],
)
def test_the_short_way_writes_what_celery_writes(
    app: Celery, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    backend: Any = app.backend
    assert is_short(backend)
    short = [stored(backend, value, context(**fields)) for value in values(200)]

    long_way(backend, monkeypatch)
    long = [stored(backend, value, context(**fields)) for value in values(200)]

    assert [without_date(meta) for meta in short] == [without_date(meta) for meta in long]


def test_a_result_of_another_task_is_written_as_celery_writes_it(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = app.backend
    result = AsyncResult("other", app=app, parent=AsyncResult("parent", app=app))
    short = stored(backend, result, context())

    assert without_date(short) == without_date(
        stored(long_way(backend, monkeypatch), result, context())
    )
    with collecting(Collector(backend.engine, "id")):
        assert backend.store_result("id", result, "SUCCESS", request=context()) == result.as_tuple()


def test_what_can_not_be_written_is_told_as_ever(app: Celery) -> None:
    circle: list[Any] = []
    circle.append(circle)

    for value in (object(), circle, {(1, 2): 3}):
        with pytest.raises(EncodeError):
            stored(app.backend, value, context())


def test_what_does_not_end_well_goes_the_long_way(app: Celery) -> None:
    backend: Any = app.backend
    with collecting(Collector(backend.engine, "id")) as collector:
        backend.store_result("id", ValueError("x"), "FAILURE", traceback="lines", request=context())
        backend.store_result("id", 1, "SUCCESS")

    first, second = (json.loads(each.meta) for each in collector.results)
    assert (first["status"], first["traceback"]) == ("FAILURE", "lines")
    assert (second["status"], second["children"]) == ("SUCCESS", None)


@pytest.mark.parametrize(
    "conf",
    [
        {"result_extended": True},
        {"result_compression": "gzip"},
        {"result_serializer": "pickle", "result_accept_content": ["pickle"]},
    ],
)
def test_settings_that_change_what_is_written(app: Celery, conf: dict[str, Any]) -> None:
    app.conf.update(conf)

    assert is_short(app.backend) is (conf.keys() == {"result_compression"} and not COMPRESSES)


def test_another_json_is_used(app: Celery, serializers: Any) -> None:
    assert is_short(app.backend)

    serializers.register("json", lambda value: '"own"', json.loads, JSON, "utf-8")

    assert stored(app.backend, 1, context()) == b'"own"'


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((Backend, name) for name in ("store_result", "encode", "_encode")),
        *((kind, name) for kind in (EngineBackend, "instance") for name in STEPS),
    ],
)
def test_instruments_see_each_result(
    app: Celery, monkeypatch: pytest.MonkeyPatch, kind: Any, name: str
) -> None:
    backend: Any = app.backend
    assert is_short(backend)
    place = backend if kind == "instance" else kind
    original: Callable[..., Any] = getattr(place, name)
    seen = 0

    def instrumented(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, instrumented)
    stored(backend, 1, context())

    assert seen == 1


class Tenants(EngineBackend):
    def _get_result_meta(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super()._get_result_meta(*args, **kwargs), "tenant": 7}


class Shouting(EngineBackend):
    def encode_result(self, result: Any, state: str) -> Any:
        return super().encode_result(result, state).upper()


def test_methods_that_a_program_overrides_are_called(queue_url: str) -> None:
    app = Celery("proj", broker=queue_url, set_as_current=False)

    assert json.loads(stored(Tenants(app, queue_url), 1, context()))["tenant"] == 7
    assert json.loads(stored(Shouting(app, queue_url), "hello", context()))["result"] == "HELLO"
    app.close()


@pytest.mark.parametrize("zone", ["UTC", "Europe/Vienna", "America/St_Johns"])
def test_the_clock_tells_what_celery_s_does(
    queue_url: str, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    app = Celery("proj", set_as_current=False)
    app.conf.timezone = zone
    clock = Clock(app)

    # The seconds around the end of summer time in Vienna, and one without a fraction.
    for instant in (1_793_494_799.999999, 1_793_494_800.0, 1_793_494_800.000001, 1_800_000_000.5):
        nanoseconds = round(instant * 1_000_000) * 1000 + 999
        monkeypatch.setattr(time, "time_ns", lambda ns=nanoseconds: ns)
        expected = datetime.fromtimestamp(nanoseconds // 1000 / 1_000_000, app.timezone)
        assert clock.now() == expected.isoformat()
    monkeypatch.undo()
    assert abs(datetime.fromisoformat(clock.now()) - app.now()) < timedelta(seconds=1)


# Arguments


def envelope(kind: str | None = JSON, encoding: str | None = "utf-8", **headers: Any) -> Envelope:
    return Envelope(headers, {}, kind, encoding)


def decode(body: Any, accept: set[str] | None = frozenset({JSON})) -> tuple[Any, Any, Any]:  # type: ignore[assignment]
    return Arguments(accept).decode(envelope(), body)


@pytest.mark.parametrize("spaced", [False, True])
def test_the_short_way_reads_what_kombu_reads(spaced: bool) -> None:
    for value in values(200):
        body = kombu_json.dumps([[value], {"key": value}, {"chain": None}])
        body = f" {body}\n" if spaced else body
        expected = envelope().decode(body, {JSON})

        # Compared as texts: NaN is not equal to itself.
        assert repr(decode(body)) == repr(expected) or decode(body) == expected


def test_types_are_read_however_their_names_are_escaped() -> None:
    body = r'[[{"\u005f_type__": "money", "__v\u0061lue__": 7}], {}, null]'

    assert decode(body) == ([Money(7)], {}, {})


@pytest.mark.parametrize(
    "body",
    [
        "",
        "nothing",
        "[[1], {}",
        "[[], {}, {}] more",
        "[1, 2]",
        '[[{"__type__": "x", "__value__": 1}]]',
    ],
)
def test_what_can_not_be_read_is_told_as_ever(body: str) -> None:
    with pytest.raises(Exception) as expected:
        envelope().decode(body, {JSON})
    with pytest.raises(Exception) as caught:
        decode(body)

    assert (type(caught.value), str(caught.value)) == (type(expected.value), str(expected.value))


def test_a_time_limit_is_not_taken_for_a_bad_body(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def too_late(cents: int) -> Money:
        calls.append(cents)
        raise SoftTimeLimitExceeded

    monkeypatch.setitem(kombu_json._decoders, "money", too_late)
    with pytest.raises(SoftTimeLimitExceeded):
        decode(kombu_json.dumps([[Money(7)], {}, None]))

    assert calls == [7]


def test_keyword_arguments_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidTaskError, match=r"has \[2\] for keyword arguments"):
        decode("[[1], [2], {}]")


def test_json_that_is_not_accepted_is_refused() -> None:
    with pytest.raises(ContentDisallowed):
        decode("[[1], {}, {}]", {"application/x-yaml"})


def test_another_reader_of_json_is_used(serializers: Any) -> None:
    serializers.register("json", json.dumps, lambda text: [["own"], {}, None], JSON, "utf-8")

    assert decode("[[1], {}, {}]") == (["own"], {}, {})


def test_bodies_of_other_kinds_are_read() -> None:
    expected = ([1], {"a": 2}, {})
    body = json.dumps(expected)
    pickled = kombu.serialization.dumps(expected, serializer="pickle")  # type: ignore[attr-defined]

    assert decode(body.encode()) == expected
    assert Arguments({JSON}).decode(envelope(encoding=None), body) == expected
    assert Arguments({pickled[0]}).decode(envelope(*pickled[:2]), pickled[2]) == expected
    compressed, kind = kombu.compression.compress(body, "gzip")
    assert Arguments({JSON}).decode(envelope(compression=kind), compressed) == expected
    with pytest.raises(DecodeError):
        decode(b"\xff")


# The stack of requests


def test_our_stack_does_what_celery_s_does() -> None:
    chance = random.Random(20)
    ours, celerys = RequestStack(), LocalStack()

    def look(stack: Any) -> Any:
        return stack.top, list(stack.stack), len(stack)

    for step in range(500):
        if chance.random() < 0.5:
            ours.push(step)
            celerys.push(step)
        else:
            assert ours.pop() == celerys.pop()
        assert look(ours) == look(celerys)


def test_each_thread_has_a_stack_of_its_own() -> None:
    stack = RequestStack()
    stack.push(1)
    seen: list[Any] = []

    def use() -> None:
        seen.append(stack.top)
        stack.push(2)
        seen.append(stack.pop())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()

    assert (seen, stack.top, stack()) == ([None, 2], 1, 1)
    stack.__release_local__()
    assert (stack.pop(), stack._stacks) == (None, {})


def test_our_tasks_have_our_stack() -> None:
    celery = Celeriac()

    @celery.task(name="echo")
    def echo(x: int) -> int:
        return x

    def request(task: Any) -> SimpleNamespace:
        task.push_request(id="pushed")
        try:
            return SimpleNamespace(id=task.request.id, depth=len(task.request_stack))
        finally:
            task.pop_request()

    assert type(echo.request_stack) is RequestStack
    assert request(echo) == SimpleNamespace(id="pushed", depth=1)
    assert echo.request.id is None
