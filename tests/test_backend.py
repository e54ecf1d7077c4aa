"""The result backend over an engine: storing, waiting, groups, chords."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import celery
import pytest
from celery import Celery
from celery import chain
from celery import chord
from celery import group
from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import ChordError
from celery.exceptions import Ignore
from celery.exceptions import ImproperlyConfigured
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError
from celery.result import AsyncResult
from celery.result import GroupResult
from stock_worker import stock_worker
from waiting import wait_until

from celeriac.backend import EngineBackend
from celeriac.collect import collecting
from celeriac.collect import Collector
from celeriac.engines import Engine
from celeriac.engines import open_engine
from celeriac.engines.base import Result
from celeriac.exceptions import TaskFailure


@pytest.fixture
def app(queue_url: str) -> Iterator[Celery]:
    app = Celery("proj", broker=queue_url, backend=queue_url, set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def backend(app: Celery) -> EngineBackend:
    backend = app.backend
    assert isinstance(backend, EngineBackend)
    return backend


@pytest.fixture
def engine(queue_url: str) -> Engine:
    return open_engine(queue_url)


def request(task_id: str = "id", **fields: Any) -> Any:
    """A task's request, as Celery gives it to a backend."""
    fields = {"group": None, "chord": None, "chain": None, "errbacks": None, **fields}
    return SimpleNamespace(id=task_id, ignore_result=False, children=[], **fields)


# Storing


def test_success_is_read_back(app: Celery, backend: EngineBackend) -> None:
    backend.mark_as_done("id", {"sum": 65})

    result = app.AsyncResult("id")

    assert (result.state, result.get(), result.children) == ("SUCCESS", {"sum": 65}, None)
    assert result.date_done is not None


def test_meta_holds_what_celery_s_own_backends_keep(app: Celery, backend: EngineBackend) -> None:
    member = request(group="g", parent_id="parent")
    ours = backend._get_result_meta(1, "SUCCESS", None, member)
    celerys = BaseBackend._get_result_meta(backend, 1, "SUCCESS", None, member)

    # Kept equal but for the instant, because ours is a shorter way to the same.
    assert ours.pop("date_done")[:16] == celerys.pop("date_done")[:16]
    assert ours == celerys


def test_failure_is_read_back_with_its_traceback(app: Celery, backend: EngineBackend) -> None:
    try:
        raise KeyError("missing")
    except KeyError as exc:
        backend.mark_as_failure("id", exc, traceback="Traceback: the lines")

    result = app.AsyncResult("id")

    assert result.state == "FAILURE"
    assert result.traceback == "Traceback: the lines"
    with pytest.raises(KeyError, match="missing"):
        result.get()


def test_success_is_never_overwritten(app: Celery, backend: EngineBackend) -> None:
    backend.mark_as_done("id", 1)

    backend.mark_as_failure("id", ValueError())
    backend.mark_as_done("id", 2)

    assert app.AsyncResult("id").get() == 1


def test_progress_is_read_back(app: Celery, backend: EngineBackend) -> None:
    backend.store_result("id", {"done": 3}, "PROGRESS")

    result = app.AsyncResult("id")

    assert (result.state, result.info) == ("PROGRESS", {"done": 3})


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_failure_stored_with_data_does_not_poison_the_result(app: Celery, serializer: str) -> None:
    app.conf.update(result_serializer=serializer, accept_content=["json", "pickle"])
    app.backend.store_result("id", {"step": 2}, "FAILURE")

    result = app.AsyncResult("id")

    assert result.state == "FAILURE"
    assert isinstance(result.info, TaskFailure)
    assert result.info.detail == {"step": 2}
    assert str(result.info) == "{'step': 2}"
    with pytest.raises(TaskFailure):
        result.get()


def test_failure_stored_as_an_exception_s_parts_is_that_exception(
    app: Celery, backend: EngineBackend
) -> None:
    error = {"exc_type": "ValueError", "exc_module": "builtins", "exc_message": ["bad"]}
    backend.store_result("id", error, "FAILURE")

    with pytest.raises(ValueError, match="bad"):
        app.AsyncResult("id").get()


def test_extended_result_tells_what_was_called(app: Celery) -> None:
    app.conf.result_extended = True
    called = request(
        task="proj.add",
        args=[1, 2],
        kwargs={"c": 3},
        hostname="worker@host",
        retries=1,
        delivery_info={"routing_key": "mail"},
    )

    app.backend.mark_as_done("id", 6, request=called)

    result = app.AsyncResult("id")
    assert (result.name, result.args, result.kwargs) == ("proj.add", [1, 2], {"c": 3})
    assert (result.worker, result.retries, result.queue) == ("worker@host", 1, "mail")


def test_compressed_result_is_read_back(app: Celery, engine: Engine) -> None:
    app.conf.result_compression = "gzip"
    if app.backend.compression is None if hasattr(app.backend, "compression") else True:
        pytest.skip("this Celery does not compress results")

    app.backend.mark_as_done("id", "x" * 10_000)

    assert len(engine.get_results(["id"])["id"].meta) < 1000
    assert app.AsyncResult("id").get() == "x" * 10_000


def test_results_expire(app: Celery, engine: Engine) -> None:
    app.conf.result_expires = 60
    app.backend.mark_as_done("id", 1)

    engine.maintain(time.time() + 59)
    assert "id" in engine.get_results(["id"])
    engine.maintain(time.time() + 61)
    assert "id" not in engine.get_results(["id"])


def test_results_do_not_expire_when_told_so(app: Celery, engine: Engine) -> None:
    app.conf.result_expires = None
    app.backend.mark_as_done("id", 1)

    assert engine.get_results(["id"])["id"].expires_at is None


def test_failures_may_be_kept_longer(app: Celery, engine: Engine) -> None:
    app.conf.update(result_expires=60, result_failure_expires=600)
    app.backend.mark_as_failure("id", ValueError())

    expires_at = engine.get_results(["id"])["id"].expires_at

    assert expires_at == pytest.approx(time.time() + 600, abs=5)


def test_forgotten_result_is_pending_again(app: Celery, backend: EngineBackend) -> None:
    backend.mark_as_done("id", 1)
    result = app.AsyncResult("id")
    assert result.get() == 1

    result.forget()

    assert app.AsyncResult("id").state == "PENDING"


def test_exists_says_whether_a_task_is_known(app: Celery, backend: EngineBackend) -> None:
    assert not backend.task_result_exists("id")
    app.send_task("proj.add", task_id="id", countdown=60)
    assert backend.task_result_exists("id")
    assert not backend.task_result_exists("other")

    backend.mark_as_done("other", 1)
    assert backend.task_result_exists("other")


def test_backend_survives_pickling(app: Celery, queue_url: str) -> None:
    app.set_current()

    copy = pickle.loads(pickle.dumps(app.backend))

    assert isinstance(copy, EngineBackend)
    assert copy.as_uri() == queue_url


def test_url_that_names_no_file_is_a_configuration_error() -> None:
    app = Celery(backend="sqlite:///:memory:", set_as_current=False)

    with pytest.raises(ImproperlyConfigured, match="names no file"):
        app.backend.get_state("id")


# Waiting


def test_result_is_returned_as_soon_as_it_is_stored(app: Celery, backend: EngineBackend) -> None:
    stored: list[float] = []

    def store() -> None:
        stored.append(time.monotonic())
        backend.mark_as_done("id", 65)

    thread = threading.Timer(0.3, store)
    thread.start()

    # The interval delays nothing.
    assert app.AsyncResult("id").get(timeout=10, interval=5) == 65
    assert time.monotonic() - stored[0] < 0.1
    thread.join()


@pytest.mark.parametrize("timeout", [0, 0.2, 0.7])
def test_timeout_is_kept_exactly(app: Celery, timeout: float) -> None:
    started = time.monotonic()

    with pytest.raises(TimeoutError, match="The operation timed out"):
        app.AsyncResult("id").get(timeout=timeout)

    assert timeout <= time.monotonic() - started < timeout + 0.15


def test_timeout_of_nothing_returns_what_is_there(app: Celery, backend: EngineBackend) -> None:
    backend.mark_as_done("id", 65)

    assert app.AsyncResult("id").get(timeout=0) == 65


def test_interval_is_called_while_waiting(app: Celery) -> None:
    calls: list[float] = []

    with pytest.raises(TimeoutError):
        app.backend.wait_for(
            "id", timeout=0.55, interval=0.1, on_interval=lambda: calls.append(time.monotonic())
        )

    assert 5 <= len(calls) <= 7


def test_callback_gets_the_result(app: Celery, backend: EngineBackend) -> None:
    backend.mark_as_done("id", 65)
    got: list[Any] = []

    app.AsyncResult("id").get(callback=lambda task_id, value: got.append((task_id, value)))

    assert got == [("id", 65)]


def test_failure_is_returned_when_it_shall_not_be_raised(
    app: Celery, backend: EngineBackend
) -> None:
    backend.mark_as_failure("id", ValueError("no"))

    assert repr(app.AsyncResult("id").get(propagate=False)) == "ValueError('no')"


def test_revoked_task_ends_the_wait(app: Celery, backend: EngineBackend) -> None:
    backend.mark_as_revoked("id", "terminated")

    with pytest.raises(TaskRevokedError, match="terminated"):
        app.AsyncResult("id").get(timeout=1)


def test_many_are_yielded_as_they_finish(backend: EngineBackend) -> None:
    def store() -> None:
        for number in (2, 0, 1):
            time.sleep(0.05)
            backend.mark_as_done(str(number), number)

    thread = threading.Thread(target=store)
    thread.start()
    seen: list[Any] = []

    many = dict(backend.get_many({"0", "1", "2"}, timeout=5, on_message=seen.append))

    thread.join()
    assert list(many) == ["2", "0", "1"]
    assert [meta["result"] for meta in seen] == [2, 0, 1]


def test_one_look_at_many_does_not_wait(backend: EngineBackend) -> None:
    backend.mark_as_done("1", 1)
    started = time.monotonic()

    assert [task_id for task_id, _ in backend.get_many(["1", "2"], max_iterations=1)] == ["1"]
    assert time.monotonic() - started < 0.1


def test_threads_wait_each_for_its_own(app: Celery, backend: EngineBackend) -> None:
    got: dict[int, int] = {}

    def wait(number: int) -> None:
        got[number] = app.AsyncResult(str(number)).get(timeout=10)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    backend.engine.store_results(
        [Result(str(n), "SUCCESS", b'{"status": "SUCCESS", "result": %d}' % n) for n in range(32)]
    )
    for thread in threads:
        thread.join()

    assert got == {number: number for number in range(32)}


# Groups


def test_group_is_saved_restored_and_deleted(app: Celery, backend: EngineBackend) -> None:
    members = [AsyncResult("1", app=app), GroupResult("inner", [AsyncResult("2", app=app)])]
    GroupResult("outer", members, app=app).save(backend)

    restored = GroupResult.restore("outer", backend)

    assert restored == GroupResult("outer", members, app=app)
    restored.delete(backend)
    assert GroupResult.restore("outer", backend) is None


def test_group_expires(app: Celery, backend: EngineBackend, engine: Engine) -> None:
    GroupResult("group", [AsyncResult("1", app=app)], app=app).save(backend)

    engine.maintain(time.time() + 2 * 86400)

    assert GroupResult.restore("group", backend) is None


# Collecting


def test_outcome_of_the_running_task_is_collected(
    app: Celery, backend: EngineBackend, engine: Engine
) -> None:
    chord_callback = app.signature("proj.total", app=app)
    member = request(group="g", group_index=0, chord=chord_callback)

    with collecting(Collector(engine, "id")) as collector:
        backend.store_result("id", {"done": 1}, "PROGRESS")
        assert app.AsyncResult("id").state == "PROGRESS"
        backend.mark_as_done("id", 65, request=member)

    assert app.AsyncResult("id").state == "PROGRESS"
    assert [(each.task_id, each.state) for each in collector.results] == [("id", "SUCCESS")]
    (part,) = collector.parts
    assert (part.group_id, part.member, part.place) == ("g", "id:0", 0)
    assert part.meta == collector.results[0].meta


def test_what_a_task_stores_for_others_is_written_at_once_until_it_closes(
    app: Celery, backend: EngineBackend, engine: Engine
) -> None:
    with collecting(Collector(engine, "id")) as collector:
        backend.mark_as_done("other", 1)
        collector.closing = True
        backend.mark_as_failure("later step", ValueError())

    assert app.AsyncResult("other").state == "SUCCESS"
    assert app.AsyncResult("later step").state == "PENDING"
    assert [each.task_id for each in collector.results] == ["later step"]


def test_messages_are_collected_once_the_task_closes(app: Celery, engine: Engine) -> None:
    with collecting(Collector(engine, "id")) as collector:
        app.send_task("proj.now", task_id="now")
        collector.closing = True
        app.send_task("proj.next", task_id="next")

    assert [info.task_id for info in engine.list_tasks()] == ["now"]
    assert [message.task_id for message in collector.messages] == ["next"]


def test_callbacks_of_a_task_whose_result_can_not_be_stored_are_dropped(
    app: Celery, backend: EngineBackend, engine: Engine
) -> None:
    with collecting(Collector(engine, "id", closing=True)) as collector:
        app.send_task("proj.next", task_id="next")
        app.send_task("proj.again", task_id="id")
        backend.mark_as_failure("id", ValueError())
        app.send_task("proj.on_error", task_id="errback")

    assert [message.task_id for message in collector.messages] == ["id", "errback"]


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_size_of_a_chord_goes_with_its_messages(
    app: Celery, backend: EngineBackend, engine: Engine, compression: str | None
) -> None:
    app.conf.task_compression = compression
    with collecting(Collector(engine, "id", closing=True)) as collector:
        chord([app.signature("proj.add", app=app)] * 2, app.signature("proj.total"), app=app)()
        ((group_id, size),) = collector.sizes
        backend.set_chord_size("of no chord", 3)

    assert size == 2
    # What is compressed can not be searched: rather one too many than one too few.
    others = [("of no chord", 3)] if compression else []
    assert collector.collected[3] == [(group_id, 2), *others]


def test_collector_of_another_engine_is_none_of_ours(
    app: Celery, backend: EngineBackend, queue_url: str
) -> None:
    other = open_engine(f"{queue_url}&busy_timeout=5")

    with collecting(Collector(other, "id", closing=True)) as collector:
        backend.mark_as_done("id", 65)
        app.send_task("proj.add", task_id="id")

    assert app.AsyncResult("id").state == "SUCCESS"
    assert (collector.results, collector.messages) == ([], [])


# Chords, counted


def start_chord(app: Celery, size: int = 2) -> Any:
    """Send a chord that no worker takes; return its callback's signature as members get it."""
    add = app.signature("proj.add", (1, 1), app=app)
    callback = app.signature("proj.total", app=app).set(task_id="callback")
    chord([add] * size, callback, app=app).apply_async(task_id="callback")
    return callback


def finish_member(backend: EngineBackend, callback: Any, place: int, value: Any = None) -> None:
    member = request(f"member {place}", group="g", group_index=place, chord=callback)
    if isinstance(value, Exception):
        backend.mark_as_failure(member.id, value, request=member)
    else:
        backend.mark_as_done(member.id, value, request=member)


def callback_messages(engine: Engine) -> list[str]:
    return [str(info.body) for info in engine.list_tasks() if info.task == "proj.total"]


@pytest.fixture
def callback(app: Celery) -> Any:
    return app.signature("proj.total", app=app).set(task_id="callback")


def test_callback_gets_the_results_in_the_header_s_order(
    backend: EngineBackend, engine: Engine, callback: Any
) -> None:
    backend.set_chord_size("g", 3)

    finish_member(backend, callback, 2, "c")
    finish_member(backend, callback, 0, "a")
    assert callback_messages(engine) == []
    finish_member(backend, callback, 1, "b")

    (body,) = callback_messages(engine)
    assert body.startswith('[[["a", "b", "c"]], {}')
    assert engine.chord_parts("g") == []


def test_member_that_finishes_twice_is_counted_once(
    backend: EngineBackend, engine: Engine, callback: Any
) -> None:
    backend.set_chord_size("g", 2)

    finish_member(backend, callback, 0, "a")
    finish_member(backend, callback, 0, "a")
    assert callback_messages(engine) == []
    finish_member(backend, callback, 1, "b")

    assert len(callback_messages(engine)) == 1


def test_size_may_be_known_last(backend: EngineBackend, engine: Engine, callback: Any) -> None:
    finish_member(backend, callback, 0, "a")
    finish_member(backend, callback, 1, "b")

    backend.set_chord_size("g", 2)

    assert len(callback_messages(engine)) == 1


def test_member_added_while_running_is_waited_for(
    backend: EngineBackend, engine: Engine, callback: Any
) -> None:
    backend.set_chord_size("g", 1)
    backend.add_to_chord("g", None)

    finish_member(backend, callback, 0, "a")
    assert callback_messages(engine) == []
    finish_member(backend, callback, 1, "b")

    assert len(callback_messages(engine)) == 1


def test_failed_member_fails_the_callback_at_once(
    app: Celery, backend: EngineBackend, engine: Engine, callback: Any
) -> None:
    backend.set_chord_size("g", 2)

    finish_member(backend, callback, 0, ValueError("no"))

    assert app.AsyncResult("callback").state == "FAILURE"
    finish_member(backend, callback, 1, KeyError("later"))
    with pytest.raises(ChordError) as raised:
        app.AsyncResult("callback").get(timeout=1)
    assert str(raised.value) == "Dependency member 0 raised ValueError('no')"
    assert callback_messages(engine) == []


def test_errback_is_called_once(
    app: Celery, backend: EngineBackend, engine: Engine, callback: Any
) -> None:
    backend.set_chord_size("g", 2)
    callback.link_error(app.signature("proj.on_error", app=app))

    finish_member(backend, callback, 0, ValueError("no"))
    finish_member(backend, callback, 1, KeyError("later"))

    assert [info.task for info in engine.list_tasks()] == ["proj.on_error"]


def test_one_of_several_dispatchers_wins(
    backend: EngineBackend, engine: Engine, callback: Any
) -> None:
    member = request("member", group="g", group_index=0, chord=callback)
    with collecting(Collector(engine, "member")) as collector:
        backend.mark_as_done("member", "a", request=member)
    (part,) = collector.parts
    backend.set_chord_size("g", 1)
    assert engine.join_chord(part)

    assert backend.chord_ready(part)
    assert not backend.chord_ready(part)

    assert len(callback_messages(engine)) == 1


def test_callback_and_the_end_of_its_chord_are_one_transaction(
    app: Celery, backend: EngineBackend, engine: Engine, callback: Any
) -> None:
    backend.set_chord_size("g", 1)
    pid = os.fork()
    if not pid:
        # Dies where the callback would be sent.
        app.amqp._retry_publish = lambda *args: os._exit(0)
        finish_member(EngineBackend(app, backend.url), callback, 0, "a")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert callback_messages(engine) == []

    (part,) = engine.ready_chords(time.time() + 1)
    assert backend.chord_ready(part)

    (body,) = callback_messages(engine)
    assert body.startswith('[[["a"]], {}')


# Canvas, on a stock worker


@pytest.fixture
def worked(app: Celery) -> Iterator[Celery]:
    """The app with tasks, and a stock worker that runs them."""
    define_tasks(app)
    with stock_worker(app):
        yield app


def define_tasks(app: Celery) -> None:
    @app.task(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    @app.task(name="total")
    def total(numbers: list[Any]) -> Any:
        return sum(sum(each) if isinstance(each, list) else each for each in numbers)

    @app.task(name="echo")
    def echo(value: Any) -> Any:
        return value

    @app.task(name="quiet", ignore_result=True)
    def quiet(value: Any) -> Any:
        return value

    @app.task(name="fail")
    def fail() -> None:
        raise ValueError("no")

    @app.task(name="give up", bind=True)
    def give_up(self: Any) -> None:
        self.update_state(state="FAILURE", meta={"step": 2})
        raise Ignore


def test_canvas_on_a_stock_worker(worked: Celery) -> None:
    add, total, echo, quiet = (worked.tasks[name] for name in ("add", "total", "echo", "quiet"))

    assert chain(add.s(1, 1), add.s(3), add.s(4))().get(timeout=10) == 9
    assert group(add.s(n, n) for n in range(5))().get(timeout=10) == [0, 2, 4, 6, 8]
    assert chord([echo.s(n) for n in (3, 1, 2)], echo.s())().get(timeout=10) == [3, 1, 2]
    # Results that are not kept reach the callback all the same.
    assert chord([quiet.s(n) for n in (3, 1, 2)], echo.s())().get(timeout=10) == [3, 1, 2]
    assert chord((echo.s(n) for n in range(3)), total.s())().get(timeout=10) == 3
    # A chord in a chord, and a chain that a group upgrades to a chord.
    inner = chord([echo.s(1), echo.s(2)], total.s())
    assert chord([inner, echo.s(3)], echo.s())().get(timeout=10) == [3, 3]
    assert chain(group(echo.s(1), echo.s(2)), total.s(), add.s(10))().get(timeout=10) == 13


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="does not work on any broker before Celery 5.7")
def test_callback_gets_the_structure_of_the_header(worked: Celery) -> None:
    echo = worked.tasks["echo"]
    header = [chain(echo.s(1), group(echo.si(2), echo.si(3))), echo.s(4)]

    assert chord(header, echo.s())().get(timeout=10) == [[2, 3], 4]


def test_failing_canvas_on_a_stock_worker(worked: Celery) -> None:
    echo, fail, give_up = (worked.tasks[name] for name in ("echo", "fail", "give up"))

    failed = chord([echo.s(1), fail.s()], echo.s())()
    with pytest.raises(ValueError, match="no"):
        failed.get(timeout=10)
    with pytest.raises(ChordError, match=r"raised ValueError\('no'\)"):
        failed.get(timeout=10, follow_parents=False)
    with pytest.raises(ValueError, match="no"):
        chain(fail.s(), echo.s())().get(timeout=10)
    # The outer chord's callback fails as well: the failed inner one is a member of its header.
    inner = chord([fail.s()], echo.s())
    with pytest.raises(ChordError):
        chord([inner, echo.s(3)], echo.s())().get(timeout=10)
    gave_up = give_up.delay()
    wait_until(lambda: gave_up.state == states.FAILURE)
    assert gave_up.info.detail == {"step": 2}
