"""One Celery app per Flask app, and the tasks that they share."""

from __future__ import annotations

import copy
import dataclasses
import enum
import io
import pickle
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import celery as stock
import pytest
from celery import chain
from celery import shared_task
from flask import current_app
from flask import Flask
from flask import has_app_context
from kombu.exceptions import EncodeError
from programs import celery_command
from programs import run

from celeriac import Celeriac
from celeriac import make_celery
from celeriac.task import ArgumentError
from celeriac.task import Task

MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(tmp_path: Path) -> MakeApp:
    """Make Flask apps with instance folders of their own."""

    def make(name: str = "shop", **config: Any) -> Flask:
        app = Flask(name, instance_path=str(tmp_path / name))
        app.config.update(config)
        return app

    return make


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app(CELERY_BROKER_URL="memory://", CELERY_RESULT_BACKEND="cache+memory://")


# Flask apps


def test_make_celery_is_found_in_the_app(app: Flask) -> None:
    celery = make_celery(app)

    assert app.extensions["celery"] is celery
    assert celery.flask_app is app
    assert isinstance(celery, stock.Celery)
    assert repr(celery).startswith("<Celeriac shop at 0x")


def test_second_initialisation_is_refused(app: Flask) -> None:
    celery = make_celery(app)

    for again in (make_celery, celery.init_app):
        with pytest.raises(RuntimeError) as caught:
            again(app)
        assert str(caught.value) == (
            "The Flask app 'shop' has a Celery app already, in app.extensions['celery']. Call "
            "make_celery(app) or celery.init_app(app) only once for each app, and import the "
            "result where it is needed."
        )


def test_each_flask_app_has_its_own_celery_app(make_app: MakeApp) -> None:
    celery = Celeriac()

    @celery.task
    def where() -> str:
        return current_app.name

    one = make_app("one", CELERY_TASK_ALWAYS_EAGER=True, CELERY_TASK_DEFAULT_QUEUE="of_one")
    two = make_app("two", CELERY_TASK_ALWAYS_EAGER=True, CELERY_TASK_DEFAULT_QUEUE="of_two")
    celery.init_app(one)
    celery.init_app(two)

    assert one.extensions["celery"] is celery
    assert two.extensions["celery"] is not celery
    assert celery.conf.task_default_queue == "of_one"
    assert two.extensions["celery"].conf.task_default_queue == "of_two"
    assert where.delay().get() == "one"
    with two.app_context():
        assert where.delay().get() == "two"
        assert where.s().apply_async().get() == "two"
        assert where.s().app is two.extensions["celery"]
        assert where.AsyncResult("some id").app is two.extensions["celery"]
        assert where() == "two"
    with one.app_context():
        assert where.delay().get() == "one"


def test_second_flask_app_has_all_tasks_of_the_first(make_app: MakeApp) -> None:
    celery = Celeriac()

    @celery.task(name="early", rate_limit="3/s")
    def early() -> None: ...

    class Late(Task[..., Any]):
        name = "by class"

        def run(self) -> int:
            return 3

    one, two = make_app("one"), make_app("two", CELERY_TASK_ACKS_LATE=True)
    celery.init_app(one)
    by_class = celery.register_task(Late())
    celery.init_app(two)
    other: Celeriac = two.extensions["celery"]

    assert other.tasks["early"].app is other
    assert other.tasks["early"].rate_limit == "3/s"
    assert other.tasks["by class"].app is other
    assert other.tasks["by class"].acks_late is True
    assert by_class.app is celery
    assert by_class.acks_late is False

    @celery.task(name="late", autoretry_for=(ValueError,))
    def late() -> None: ...

    assert other.task_like(late).app is other
    assert hasattr(other.tasks["late"], "_orig_run")


def test_second_flask_app_keeps_what_was_assigned_to_the_extension(make_app: MakeApp) -> None:
    celery = Celeriac()
    celery.conf.beat_schedule = {"tick": {"task": "tick", "schedule": 1}}
    configured = []

    @celery.on_after_configure.connect
    def note(sender: Celeriac, **kwargs: Any) -> None:
        configured.append(sender)

    one, two = make_app("one"), make_app("two")
    celery.init_app(one)
    celery.init_app(two)

    assert configured == []
    assert two.extensions["celery"].conf.beat_schedule == celery.conf.beat_schedule
    assert configured == [two.extensions["celery"], celery]


# Tasks


@pytest.mark.parametrize("with_parentheses", [True, False])
def test_task_is_declared_before_there_is_an_app(app: Flask, with_parentheses: bool) -> None:
    celery = Celeriac()
    decorate: Any = celery.task() if with_parentheses else celery.task

    @decorate
    def add(a: int, b: int) -> int:
        return a + b

    app.config["CELERY_TASK_ALWAYS_EAGER"] = True
    celery.init_app(app)

    assert add.delay(23, 42).wait() == 65
    assert add.name == f"{__name__}.add"


def test_task_used_before_there_is_an_app_takes_its_settings(app: Flask) -> None:
    celery = Celeriac()

    @celery.task(serializer="json")
    def add(a: int, b: int) -> int:
        return a + b

    # Reading the name makes Celery bind the task, with its own defaults.
    celery.conf.beat_schedule = {"add": {"task": add.name, "schedule": 1}}
    app.config.update(
        CELERY_TASK_SERIALIZER="yaml",
        CELERY_TASK_TRACK_STARTED=True,
        CELERY_TASK_ACKS_LATE=True,
        CELERY_TASK_ANNOTATIONS={add.name: {"rate_limit": "7/m"}},
    )
    celery.init_app(app)

    assert (add.serializer, add.track_started, add.acks_late) == ("json", True, True)
    assert add.rate_limit == "7/m"


NO_APP = (
    "This Celeriac has no Flask app yet, so it knows no broker. Call celery.init_app(app) in the "
    "function that makes the app, and that function before the first task is sent. A worker for "
    "such an app is started by: flask --app your_application celery worker"
)


def test_call_without_an_app_says_what_is_missing() -> None:
    celery = Celeriac()

    @celery.task
    def one() -> None: ...

    @shared_task
    def shared() -> None: ...

    for call in (one.delay, shared.delay, celery.connection_for_read):
        with pytest.raises(RuntimeError) as caught:
            call()
        assert str(caught.value) == NO_APP


@pytest.mark.parametrize("command", ["worker", "inspect ping", "purge -f", "beat"])
def test_celery_command_without_an_app_says_so_in_a_sentence(tmp_path: Path, command: str) -> None:
    (tmp_path / "shop.py").write_text("from celeriac import Celeriac\ncelery = Celeriac()\n")

    done = run(celery_command("-A", "shop", *command.split()), cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert f"Error: {NO_APP}" in done.stderr
    assert "Traceback" not in done.stderr


def test_celeriac_without_a_flask_app_can_be_configured_by_hand() -> None:
    celery = Celeriac(broker="memory://", task_always_eager=True)

    @celery.task
    def add(a: int, b: int) -> int:
        return a + b

    assert add.delay(1, 2).get() == 3
    assert celery.connection_for_write().transport_cls == "memory"


def test_shared_task_is_found_from_any_thread(app: Flask) -> None:
    @shared_task
    def add(a: int, b: int) -> int:
        return a + b

    app.config["CELERY_TASK_ALWAYS_EAGER"] = True
    celery = make_celery(app)

    results = [add.delay(23, 42).get()]
    thread = threading.Thread(target=lambda: results.append(add.delay(23, 42).get()))
    thread.start()
    thread.join()

    assert results == [65, 65]
    assert add.app is celery


def test_shared_task_asked_for_too_early_is_not_bound_to_celerys_made_up_app(app: Flask) -> None:
    @shared_task(name="shared early")
    def add(a: int, b: int) -> int:
        return a + b

    assert type(add.app) is stock.Celery
    make_celery(app)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(add.app))
    thread.start()
    thread.join()

    assert found == [app.extensions["celery"]]


def test_task_class_of_the_2016_snippet_can_be_assigned(app: Flask) -> None:
    app.config["CELERY_TASK_ALWAYS_EAGER"] = True
    celery: Any = make_celery(app)

    class ContextTask(celery.Task):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery.Task = ContextTask

    @celery.task(bind=True)  # type: ignore[untyped-decorator]
    def where(self: Any) -> tuple[str, bool]:
        return current_app.name, self.request.is_eager

    assert isinstance(where._get_current_object(), ContextTask)
    assert where.delay().get() == ("shop", True)
    assert where() == ("shop", False)


def test_task_class_of_the_2013_snippet_can_be_assigned(app: Flask) -> None:
    app.config["CELERY_TASK_ALWAYS_EAGER"] = True
    celery: Any = make_celery(app)
    TaskBase = celery.Task

    class ContextTask(TaskBase):  # type: ignore[misc,valid-type]
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with app.app_context():
                return TaskBase.__call__(self, *args, **kwargs)

    celery.Task = ContextTask

    @celery.task(bind=True)  # type: ignore[untyped-decorator]
    def where(self: Any) -> tuple[str, bool]:
        return current_app.name, self.request.is_eager

    assert where.delay().get() == ("shop", True)
    assert where() == ("shop", False)


# Plain calls


def test_plain_call_keeps_the_context_of_its_caller(app: Flask) -> None:
    celery = make_celery(app)
    torn_down = []
    app.teardown_appcontext(torn_down.append)

    @celery.task
    def context() -> Any:
        return current_app.app_context, has_app_context()

    with app.app_context() as pushed:
        context()
        assert has_app_context()
        assert torn_down == []
        assert pushed.app is app


def test_plain_call_without_a_context_gets_one(app: Flask) -> None:
    celery = make_celery(app)
    torn_down = []
    app.teardown_appcontext(torn_down.append)

    @celery.task(bind=True)
    def where(self: Task[..., Any]) -> tuple[str, bool]:
        return current_app.name, self.request.called_directly

    assert where() == ("shop", True)
    assert torn_down == [None]
    assert not has_app_context()


def test_eager_call_has_its_own_request(app: Flask) -> None:
    app.config["CELERY_TASK_ALWAYS_EAGER"] = True
    celery = make_celery(app)

    @celery.task(bind=True)
    def factorial(self: Task[..., Any], n: int) -> tuple[int, str | None, int]:
        depth = len(self.request_stack)
        return n * factorial(n - 1)[0] if n else 1, self.request.id, depth

    result = factorial.apply_async((3,), task_id="outer")

    assert result.get() == (6, "outer", 1)


# Names


def test_script_enqueues_the_name_that_a_worker_knows(tmp_path: Path) -> None:
    folder = tmp_path / "shop" / "orders"
    folder.mkdir(parents=True)
    (tmp_path / "shop" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "jobs.py").write_text(
        "from flask import Flask\n"
        "from celeriac import Celeriac, make_celery\n"
        "celery = make_celery(Flask(__name__, instance_path='/nowhere'), broker='memory://')\n"
        "named = Celeriac(main='special')\n"
        "@celery.task\n"
        "def add(): pass\n"
        "@celery.task(name='explicit')\n"
        "def other(): pass\n"
        "@named.task\n"
        "def by_main(): pass\n"
        "print(add.name, other.name, by_main.name, celery.main)\n"
    )
    expected = "shop.orders.jobs.add explicit special.by_main shop.orders.jobs\n"

    by_path = run([sys.executable, "shop/orders/jobs.py"], cwd=tmp_path)
    by_name = run([sys.executable, "-m", "shop.orders.jobs"], cwd=tmp_path)

    assert (by_path.stdout, by_name.stdout) == (expected, expected)


# Arguments that JSON can not hold


class User:
    id = 7


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (User(), "is a User, which JSON cannot hold: pass user.id, and load the User in the task."),
        (Colour.RED, "is a Colour, which JSON cannot hold: pass user.value."),
        (Point(3), "is a Point, which JSON cannot hold: pass dataclasses.asdict(user)."),
        ({3}, "is a set, which JSON cannot hold: pass list(user)."),
        (
            timedelta(1),
            "is a timedelta, which JSON cannot hold: pass user.total_seconds().",
        ),
        (
            io.BytesIO(),
            "is a BytesIO, which JSON cannot hold: save it, and pass the path of the file.",
        ),
        (
            object(),
            "is an object, which JSON cannot hold: pass the texts and numbers that describe it.",
        ),
        (
            {"a": [1, User()]},
            "holds, as user['a'][1], a User, which JSON cannot hold: pass user['a'][1].id, and "
            "load the User in the task.",
        ),
        (
            {(1, 2): 3},
            "is a dict, which JSON cannot hold: its keys must be texts or numbers, and it must "
            "not contain itself.",
        ),
        (LOOP, "is a list, which JSON cannot hold: it contains itself."),
    ],
)
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("url", ["memory://", "sqlite:///"])
def test_argument_that_json_can_not_hold_is_named(
    value: Any, complaint: str, eager: bool, url: str, make_app: MakeApp
) -> None:
    app = make_app(CELERY_BROKER_URL=url, CELERY_TASK_ALWAYS_EAGER=eager)
    celery = make_celery(app)

    @celery.task(name="tasks.welcome", bind=True)
    def welcome(self: Task[..., Any], greeting: str, user: Any = None) -> None: ...

    for call in (
        lambda: welcome.delay("hello", value),
        lambda: welcome.delay("hello", user=value),
        lambda: welcome.apply_async(("hello", value), countdown=3),
        lambda: welcome.s("hello", value).delay(),
    ):
        with pytest.raises(ArgumentError) as caught:
            call()
        assert str(caught.value) == f"argument 'user' of tasks.welcome {complaint}"
        assert isinstance(caught.value, EncodeError)
        assert isinstance(caught.value, TypeError)


def test_argument_without_a_name_of_its_own_is_named_by_its_place(app: Flask) -> None:
    celery = make_celery(app)

    @celery.task(name="tasks.total")
    def total(name: str, *parts: Any) -> None: ...

    with pytest.raises(ArgumentError) as caught:
        total.delay("x", 1, {2})

    assert str(caught.value) == (
        "argument 'parts[1]' of tasks.total is a set, which JSON cannot hold: pass list(parts[1])."
    )


def test_argument_of_a_later_step_is_named(app: Flask) -> None:
    celery = make_celery(app)

    @celery.task(name="tasks.first")
    def first() -> None: ...

    @celery.task(name="tasks.second")
    def second(user: Any) -> None: ...

    with pytest.raises(ArgumentError, match=r"^argument 'user' of tasks\.second is a User, "):
        chain(first.si(), second.si(User())).delay()
    with pytest.raises(ArgumentError, match=r"^argument 'user' of tasks\.second is a User, "):
        first.apply_async(link=second.si(User()))


# Pickling


def test_travels_by_name_to_a_spawned_process(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from flask import Flask\n"
        "from celeriac import Celeriac, make_celery\n"
        "app = Flask(__name__, instance_path='/nowhere')\n"
        "make_celery(app, broker='memory://')\n"
        "celery = Celeriac(broker='memory://')\n"
    )
    program = (
        "import multiprocessing, shop\n"
        "def main():\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        apps = [shop.celery, shop.app.extensions['celery']]\n"
        "        print(pool.map(describe, apps))\n"
        "def describe(celery):\n"
        "    return celery is shop.celery, celery.flask_app is shop.app\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    (tmp_path / "main.py").write_text(program)

    done = run([sys.executable, "main.py"], cwd=tmp_path)

    assert done.stdout == "[(True, False), (False, True)]\n"


def test_app_without_a_name_travels_with_its_settings(app: Flask) -> None:
    app.config["CELERY_TASK_DEFAULT_QUEUE"] = "mine"
    celery = make_celery(app)

    arrived = pickle.loads(pickle.dumps(celery))

    assert arrived.conf.broker_url == "memory://"
    assert arrived.conf.task_default_queue == "mine"
    assert copy.copy(celery.conf).task_default_queue == "mine"
