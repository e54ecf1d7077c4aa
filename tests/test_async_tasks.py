"""``async def`` tasks: the same as any other task, on every pool and broker."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import inspect
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from collections.abc import Callable
from collections.abc import Coroutine
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu.pools
import pytest
from celery import chain
from celery import chord
from celery import current_task
from celery import shared_task
from celery import signature
from celery.result import EagerResult
from flask import current_app
from flask import Flask
from flask import g
from flask import has_app_context
from programs import Program
from programs import run
from waiting import wait_until

from celeriac import Celeriac
from celeriac import coroutines
from celeriac import make_celery
from celeriac.coroutines import Loop
from celeriac.task import Task

SOON = 20


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    app = Flask("shop", instance_path=str(tmp_path))
    app.config.update(CELERY_BROKER_URL="memory://", CELERY_RESULT_BACKEND="cache+memory://")
    return app


@pytest.fixture
def celery(app: Flask) -> Celeriac:
    return make_celery(app)


# Called here


def test_call_gives_the_coroutine(celery: Celeriac) -> None:
    @celery.task
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    coroutine = add(23, 42)

    assert inspect.iscoroutine(coroutine)
    assert asyncio.run(coroutine) == 65


def test_call_outside_any_context_is_awaited_in_one(celery: Celeriac) -> None:
    @celery.task
    async def name() -> str:
        await asyncio.sleep(0)
        return current_app.name

    assert asyncio.run(name()) == "shop"
    assert not has_app_context()


def test_call_in_a_context_shares_it(app: Flask, celery: Celeriac) -> None:
    @celery.task
    async def user() -> str:
        return str(g.user)

    with app.app_context():
        g.user = "me"
        assert asyncio.run(user()) == "me"


def test_apply_runs_it_to_its_end(celery: Celeriac) -> None:
    @celery.task(bind=True)
    async def who(self: Task[..., Any], x: int) -> list[Any]:
        await asyncio.sleep(0)
        return [x, self.request.id, current_task.name, current_app.name, has_running_loop()]

    result = who.apply((1,), task_id="some-id")

    assert result.get() == [1, "some-id", who.name, "shop", True]
    assert not has_running_loop()


def test_apply_in_a_coroutine_sees_the_same(app: Flask, celery: Celeriac) -> None:
    @celery.task(bind=True)
    async def who(self: Task[..., Any]) -> list[Any]:
        await asyncio.sleep(0)
        return [self.request.id, current_task.name, g.user]

    async def view() -> EagerResult[list[Any]]:
        result = who.apply(task_id="some-id")
        assert not current_task
        return result

    with app.app_context():
        g.user = "me"
        assert asyncio.run(view()).get() == ["some-id", who.name, "me"]


def test_apply_in_a_coroutine_raises_what_the_task_does(celery: Celeriac) -> None:
    @celery.task
    async def fail() -> None:
        raise ValueError("no")

    async def view() -> None:
        fail.apply(throw=True)

    with pytest.raises(ValueError, match="no"):
        asyncio.run(view())


def test_eager_delay_retries_and_gives_the_result(celery: Celeriac) -> None:
    celery.conf.task_always_eager = True

    @celery.task(bind=True, autoretry_for=(ValueError,), max_retries=3, retry_backoff=False)
    async def flaky(self: Task[..., Any]) -> int:
        await asyncio.sleep(0)
        if self.request.retries < 2:
            raise ValueError("again")
        return int(self.request.retries)

    assert flaky.delay().get() == 2


def test_task_may_await_others_and_itself(celery: Celeriac) -> None:
    @celery.task
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    @celery.task(bind=True)
    async def factorial(self: Task[..., Any], n: int) -> int:
        return n * await self(n - 1) if n > 1 else int(await double(1))

    assert factorial.apply((4,)).get() == 48


def test_task_may_apply_others_and_itself(celery: Celeriac) -> None:
    @celery.task(bind=True)
    async def factorial(self: Task[..., Any], n: int) -> int:
        await asyncio.sleep(0)
        return n * self.apply((n - 1,)).result if n > 1 else 1

    assert factorial.apply((4,)).get() == 24


# Where it comes from


def test_class_with_an_async_run(celery: Celeriac) -> None:
    class Add(celery.Task):  # type: ignore[name-defined, misc]
        name = "shop.add"

        async def run(self, a: int, b: int) -> int:
            await asyncio.sleep(0)
            return a + b

    task: Any = celery.register_task(Add())

    assert task.apply((23, 42)).get() == 65
    assert asyncio.run(task(23, 42)) == 65


def test_shared_task_and_second_flask_app(app: Flask, tmp_path: Path) -> None:
    celery = Celeriac(broker="memory://")

    @shared_task
    async def shared() -> str:
        return current_app.name

    @celery.task
    async def own() -> str:
        return current_app.name

    celery.init_app(app)
    other = Flask("other", instance_path=str(tmp_path))
    celery.init_app(other)
    for each in (app, other):
        with each.app_context():
            tasks = each.extensions["celery"].tasks
            assert tasks[shared.name].apply().get() == each.name
            assert tasks[own.name].apply().get() == each.name


def test_base_class_with_a_call_of_its_own(app: Flask, celery: Celeriac) -> None:
    # As Flask's documentation had it for years.
    TaskBase: Any = celery.Task

    class ContextTask(TaskBase):  # type: ignore[misc]
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with app.app_context():
                return TaskBase.__call__(self, *args, **kwargs)

    celery.Task = ContextTask

    @celery.task
    async def name() -> str:
        await asyncio.sleep(0)
        return current_app.name

    assert name.apply().get() == "shop"


def test_plain_function_that_returns_a_coroutine_is_awaited(celery: Celeriac) -> None:
    async def add(a: int, b: int) -> int:
        return a + b

    @celery.task
    def forgetful(a: int, b: int) -> Coroutine[Any, Any, int]:
        return add(a, b)

    assert forgetful.apply((23, 42)).get() == 65


def test_function_that_runs_its_own_loop_is_left_alone(celery: Celeriac) -> None:
    def run(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inner(*args: Any) -> Any:
            return asyncio.run(function(*args))

        return inner

    @celery.task
    @run
    async def add(a: int, b: int) -> int:
        return a + b

    assert add.apply((23, 42)).get() == 65
    assert add(23, 42) == 65


def test_async_generator_is_refused(celery: Celeriac) -> None:
    async def pages() -> AsyncIterator[int]:
        yield 1

    line = pages.__code__.co_firstlineno

    with pytest.raises(TypeError) as caught:
        celery.task(name="shop.pages")(pages).name  # noqa: B018

    assert str(caught.value) == (
        "Task shop.pages is an async generator ('async def' with 'yield'), which has no result "
        "that a caller could wait for. Collect what it yields in a list, and return that. It is "
        f"defined in {__file__}, line {line}."
    )


# Its loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_cancelled_coroutine_fails_as_an_error(loop: Loop) -> None:
    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    with pytest.raises(concurrent.futures.CancelledError, match="the task was cancelled"):
        loop.run("the task", cancelled())


def test_exit_leaves_the_loop(loop: Loop) -> None:
    async def leave() -> None:
        await asyncio.sleep(0)
        raise SystemExit(3)

    async def stay() -> str:
        return "stayed"

    with pytest.raises(SystemExit):
        loop.run("the task", leave())
    assert loop.run("the task", stay()) == "stayed"


def test_what_is_left_behind_is_cancelled_and_named(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    ended = []

    async def refresh() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("refresh")

    async def leave_behind() -> str:
        leave_behind.background = asyncio.create_task(refresh())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        return "done"

    assert loop.run("shop.poll[1]", leave_behind()) == "done"
    assert ended == ["refresh"]
    assert [record.getMessage() for record in caplog.records] == [
        "Task shop.poll[1] ended before what it had started with asyncio.create_task(): "
        f"{refresh.__qualname__}. It was cancelled; await it in the task, or send another task to "
        "do it."
    ]


def test_what_the_task_cancelled_itself_is_not_left_behind(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    async def tidy() -> None:
        background = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        background.cancel()

    loop.run("the task", tidy())

    assert caplog.records == []


class Interruption(Exception):
    pass


@pytest.mark.parametrize("kind", ["sleep", "gather", "thread", "shield"])
def test_interruption_arrives_where_the_coroutine_awaits(loop: Loop, kind: str) -> None:
    over = threading.Event()

    async def waiting() -> str:
        ways: dict[str, Callable[[], Any]] = {
            "sleep": lambda: asyncio.sleep(60),
            "gather": lambda: asyncio.gather(asyncio.sleep(60), asyncio.sleep(60)),
            "thread": lambda: asyncio.to_thread(over.wait, 60),
            "shield": lambda: asyncio.shield(asyncio.sleep(60)),
        }
        asyncio.get_running_loop().call_later(0.01, begun.set)
        try:
            await ways[kind]()
        except Interruption:
            over.set()
            # Nothing is left of the cancellation that carried it here.
            await asyncio.wait_for(asyncio.sleep(0), 5)
            return "interrupted"
        return "not"

    begun = threading.Event()
    me = threading.get_ident()

    def interrupt() -> None:
        begun.wait()
        assert coroutines.interrupt(me, Interruption())

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        interrupting = threads.submit(interrupt)
        assert loop.run("the task", waiting()) == "interrupted"
        interrupting.result()


def test_interruption_is_not_lost_on_who_catches_cancellations(loop: Loop) -> None:
    async def deaf() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "deaf"
        return "never"

    async def waiting() -> None:
        me = threading.get_ident()
        asyncio.get_running_loop().call_later(0.01, coroutines.interrupt, me, Interruption())
        await asyncio.create_task(deaf())

    with pytest.raises(Interruption):
        loop.run("the task", waiting())


def test_interruption_before_the_first_step_arrives_in_the_coroutine(loop: Loop) -> None:
    async def begin() -> None:
        raise AssertionError("not reached")

    run = coroutines._Run(loop._loop, "the task", begin())
    run._interrupt(Interruption())

    with pytest.raises(Interruption):
        run.to_the_end()


def test_closing_ends_the_generators_of_tasks() -> None:
    ended = []

    async def pages() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            ended.append("pages")

    async def read() -> int:
        read.pages = pages()  # type: ignore[attr-defined]
        return await anext(read.pages)  # type: ignore[attr-defined]

    loop = Loop()
    assert loop.run("the task", read()) == 1
    assert ended == []
    loop.close()

    assert ended == ["pages"]


def test_what_does_not_end_when_cancelled_is_left_with_its_loop(
    celery: Celeriac, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coroutines, "GRACE", 0.05)

    async def stubborn() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    @celery.task
    async def leave_behind() -> int:
        leave_behind.background = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        return id(asyncio.get_running_loop())

    @celery.task
    async def loop_id() -> int:
        return id(asyncio.get_running_loop())

    first, second = trace(loop_id), trace(loop_id)
    assert first == second == trace(leave_behind)
    kept = leave_behind.background.get_loop()
    try:
        assert trace(loop_id) != id(kept)
        assert kept.is_closed()
    finally:
        coroutines._close_own()
    del leave_behind.background
    gc.collect()
    assert "Task was destroyed but it is pending" in caplog.text


def test_interruption_of_a_thread_without_coroutine_is_refused() -> None:
    assert not coroutines.interrupt(threading.get_ident(), Interruption())


@pytest.mark.parametrize("blocks", [True, False], ids=["blocking", "awaiting"])
def test_signal_arrives_in_the_coroutine(loop: Loop, blocks: bool) -> None:
    def receive(number: int, frame: Any) -> None:
        raise Interruption

    async def waiting() -> str:
        me = threading.main_thread().ident or 0
        timer = threading.Timer(0.05, signal.pthread_kill, (me, signal.SIGUSR1))
        timer.start()
        try:
            if blocks:
                threading.Event().wait(60)
            else:
                await asyncio.sleep(60)
        except Interruption:
            return "interrupted"
        finally:
            timer.join()
        return "not"

    previous = signal.signal(signal.SIGUSR1, receive)
    try:
        assert loop.run("the task", waiting()) == "interrupted"
        assert signal.getsignal(signal.SIGUSR1) is receive
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_unfinished_tasks_are_those_that_asyncio_knows() -> None:
    async def both() -> list[set[asyncio.Task[Any]]]:
        rest = [asyncio.create_task(asyncio.sleep(10)) for _ in range(3)]
        ended = asyncio.create_task(asyncio.sleep(0))
        await ended
        loop = asyncio.get_running_loop()
        found = [coroutines._unfinished(loop), asyncio.all_tasks(), {*rest}]
        for task in rest:
            task.cancel()
        return found

    ours, theirs, rest = asyncio.run(both())

    assert ours == theirs
    assert ours > rest
    assert len(ours) == 4


OUT_OF_FILES = """\
import asyncio, os, resource
from flask import Flask
from celeriac import make_celery

celery = make_celery(Flask("shop", instance_path=os.getcwd()))

@celery.task(name="shop.nap")
async def nap():
    await asyncio.sleep(0)

nap.push_request(id="some-id", called_directly=False, is_eager=True)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
lowest = os.dup(0)
os.close(lowest)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
try:
    nap.run()
except OSError as exc:
    print(exc)
"""


def test_lack_of_files_is_told_with_advice(tmp_path: Path) -> None:
    done = run([sys.executable, "-c", OUT_OF_FILES], cwd=tmp_path)

    assert done.stdout == (
        "[Errno 24] No event loop can be made for shop.nap[some-id] (Too many open files). Allow "
        "the worker more open files (ulimit -n), or have it run fewer tasks at once (-c)\n"
    )
    assert "never awaited" not in done.stderr


def test_forked_child_has_a_loop_of_its_own(celery: Celeriac) -> None:
    @celery.task
    async def loop_id() -> int:
        await asyncio.sleep(0)
        return id(asyncio.get_running_loop())

    def in_child(answer: Any) -> None:
        answer.send((os.getpid(), trace(loop_id) == mine))

    mine = trace(loop_id)
    assert trace(loop_id) == mine
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=in_child, args=(send,))
    child.start()
    pid, is_inherited = receive.recv()
    child.join()

    assert pid != os.getpid()
    assert not is_inherited
    assert trace(loop_id) == mine
    coroutines._close_own()


# Run by workers

OURS = """\
celery = make_celery(app)
"""

# Of 2016, with a Celery app that is not one of ours.
STOCK = """\
celery = Celery("shop", broker=URL, backend=URL)
celery.set_default()

class ContextTask(celery.Task):
    abstract = True

    def __call__(self, *args, **kwargs):
        with app.app_context():
            return self.run(*args, **kwargs)

celery.Task = ContextTask
"""

SHOP = """\
import asyncio
import os
import sys
import threading
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery, current_task, shared_task
from celery.exceptions import Ignore
from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from celeriac import make_celery

URL = {url!r}
app = Flask("shop", instance_path=sys.path[0])
app.config["CELERY"] = {{"broker_url": URL, "result_backend": URL}}
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///app.db"
database = SQLAlchemy(app)
{factory}

@celery.task
async def add(a, b):
    await asyncio.sleep(0)
    return a + b

@celery.task
def total(numbers):
    return sum(numbers)

@celery.task(bind=True)
async def where(self):
    session = database.session()

    async def inner():
        await asyncio.sleep(0)
        same = database.session() is session
        return [self.request.id == current_task.request.id, current_task.name, same]

    found = await asyncio.gather(inner(), inner())
    return [*found, await asyncio.to_thread(lambda: current_app.name)]

@celery.task(bind=True, max_retries=3)
async def flaky(self, failures):
    await asyncio.sleep(0)
    if self.request.retries < failures:
        raise self.retry(exc=ValueError("again"), countdown=0.01)
    return self.request.retries

@celery.task(bind=True, autoretry_for=(ValueError,), default_retry_delay=0.01, max_retries=2)
async def stubborn(self):
    await asyncio.sleep(0)
    raise ValueError(str(self.request.retries))

@celery.task(bind=True)
async def ignoring(self):
    self.update_state(state="CUSTOM", meta={{"left": "like this"}})
    await asyncio.sleep(0)
    raise Ignore()

@celery.task(bind=True)
async def replaced(self, x):
    await asyncio.sleep(0)
    raise self.replace(add.s(x, 1))

@celery.task
async def cancelled():
    asyncio.current_task().cancel()
    await asyncio.sleep(1)

@celery.task
async def leaving_behind():
    leaving_behind.background = asyncio.create_task(asyncio.sleep(60))
    return "done"

@shared_task(name="shop.shared")
async def shared(x):
    await asyncio.sleep(0)
    return x + 1

class Minus(celery.Task):
    name = "shop.minus"

    async def run(self, a, b):
        await asyncio.sleep(0)
        return a - b

celery.register_task(Minus())

@celery.task(ignore_result=True)
async def ignored():
    await asyncio.sleep(0)
    print("ignored ran")

@celery.task(soft_time_limit=0.3)
async def soft():
    try:
        await asyncio.sleep(60)
    except SoftTimeLimitExceeded:
        return "caught"

@celery.task
async def loop():
    await asyncio.sleep(0)
    return [os.getpid(), threading.get_ident(), id(asyncio.get_running_loop())]

present = set()

@celery.task
async def meet(name, others):
    present.add(name)
    while len(present) < others:
        await asyncio.sleep(0.01)
    return "met"
"""

#: For each task the arguments, the state, and the result.
EXPECTED: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "add": ((23, 42), "SUCCESS", "65"),
    "where": (
        (),
        "SUCCESS",
        "[[True, 'shop.where', True], [True, 'shop.where', True], 'shop']",
    ),
    "flaky": ((2,), "SUCCESS", "2"),
    "stubborn": ((), "FAILURE", "ValueError('2')"),
    "replaced": ((64,), "SUCCESS", "65"),
    "leaving_behind": ((), "SUCCESS", "'done'"),
    "shared": ((64,), "SUCCESS", "65"),
    "minus": ((66, 1), "SUCCESS", "65"),
}


@pytest.fixture
def client(url: str) -> Iterator[Celeriac]:
    client = Celeriac(broker=url, backend=url)
    yield client
    client.close()
    if url.startswith("redis"):  # Celery leaves these connections to the garbage collector.
        client.backend.result_consumer.stop()
        client.backend.client.connection_pool.disconnect()
        kombu.pools.reset()


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """Return the URL of the broker that the test's first parameter names."""
    broker = request.node.callspec.params["broker"]
    return str(request.getfixturevalue({"sqlite": "queue_url", "redis": "redis_url"}[broker]))


@pytest.mark.parametrize(
    ("broker", "pool", "factory"),
    [
        ("sqlite", "prefork", OURS),
        ("sqlite", "threads", OURS),
        ("sqlite", "solo", OURS),
        ("sqlite", "gevent", OURS),
        ("sqlite", "prefork", STOCK),
        ("redis", "prefork", OURS),
        ("redis", "threads", OURS),
        ("redis", "gevent", OURS),
    ],
    ids=lambda value: {OURS: "ours", STOCK: "stock"}.get(value, value),
)
def test_same_on_every_broker_and_pool(
    broker: str, pool: str, factory: str, url: str, client: Celeriac, tmp_path: Path, worker: Any
) -> None:
    (tmp_path / "shop.py").write_text(SHOP.format(url=url, factory=factory))
    program: Program = worker("-A", "shop.celery", "-c", "3", "-P", pool, cwd=tmp_path)

    def send(name: str, *args: Any) -> Any:
        return client.send_task(f"shop.{name}", args)

    def part(name: str, *args: Any) -> Any:
        return signature(f"shop.{name}", args, app=client)

    results = {name: send(name, *args) for name, (args, _, _) in EXPECTED.items()}
    ignoring, cancelled = send("ignoring"), send("cancelled")
    send("ignored")
    following = chain(part("add", 1, 2), part("shared"), part("add", 61)).apply_async()
    together = chord([part("add", i, i) for i in range(3)], part("total")).apply_async()
    loops = [send("loop") for _ in range(6)]
    # One waits for the other, where a process runs several.
    meeting = [send("meet", i, 3) for i in range(3)] if pool in ("threads", "gevent") else []

    for name, (_, state, result) in EXPECTED.items():
        found = results[name].get(timeout=SOON, propagate=False)
        assert (results[name].state, repr(found)) == (state, result)
    assert repr(cancelled.get(timeout=SOON, propagate=False)).startswith("CancelledError(")
    assert (following.get(timeout=SOON), together.get(timeout=SOON)) == (65, 6)
    assert [each.get(timeout=SOON) for each in meeting] == ["met"] * len(meeting)
    wait_until(lambda: ignoring.state == "CUSTOM", SOON)
    program.wait_for_log("ignored ran")
    if pool != "gevent":
        places = {tuple(each.get(timeout=SOON)) for each in loops}
        assert len(places) == len({place[:2] for place in places})
    if broker == "sqlite" or pool == "prefork":
        assert send("soft").get(timeout=SOON) == "caught"
    assert program.stop() == 0
    assert "ended before what it had started with asyncio.create_task(): sleep." in program.log
    for mistake in ("never awaited", "never retrieved", "was destroyed", "ResourceWarning"):
        assert mistake not in program.log


def trace(task: Any) -> Any:
    """Run a task as a worker's tracer does."""
    task.push_request(called_directly=False)
    try:
        return task.run()
    finally:
        task.pop_request()


def has_running_loop() -> bool:
    try:
        return asyncio.get_running_loop() is not None
    except RuntimeError:
        return False


@pytest.fixture(autouse=True)
def level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
