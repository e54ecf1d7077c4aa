"""The Flask extension, which is a Celery app: one for each Flask app.

:func:`make_celery` is the factory of Flask's guide; :class:`Celeriac` is for application
factories. A Flask app comes in with its config, ``app.extensions["celery"]`` comes out. What a
call of a task does next is in :mod:`celeriac.task`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from collections.abc import Coroutine
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any
from typing import cast
from typing import Concatenate
from typing import Literal
from typing import overload
from typing import ParamSpec
from typing import Protocol
from typing import TYPE_CHECKING
from typing import TypeVar

import celery
import celery._state
import click
from flask import Flask
from flask.cli import ScriptInfo

from . import context
from . import coroutines
from . import stock
from .brokers import for_reading
from .brokers import for_writing
from .config import check_urls
from .config import Configuration
from .config import from_environment
from .config import make_folder
from .config import read_settings
from .dead import DeadLetters
from .engines import is_engine_url
from .task import Task

if TYPE_CHECKING:
    from .task import AsyncTask

# Celery keeps its apps, and those that share their tasks, in a module that it calls internal.
_state: Any = celery._state

_REDIS_BACKEND = "celeriac.redis:RedisBackend"

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound="celery.Task[..., Any]")

_NO_APP = (
    "This Celeriac has no Flask app yet, so it knows no broker. Call celery.init_app(app) in the "
    "function that makes the app, and that function before the first task is sent. A worker for "
    "such an app is started by: flask --app your_application celery worker"
)


def make_celery(app: Flask, **options: Any) -> Celeriac:
    """Return the Celery app of a Flask app, configured from its config.

    It is ``app.extensions["celery"]`` as well. With nothing configured, messages and results are
    kept in a file in the instance folder.

    :param options: whatever :class:`celery.Celery` takes; they win over Flask's config.
    """
    return Celeriac(app, **options)


class Celeriac(stock.Celery[Task[..., Any]]):
    """Celery for Flask: the extension and the Celery app in one.

    .. code-block:: python

        celery = Celeriac()

        @celery.task
        def add(a, b):
            return a + b

        def create_app():
            app = Flask(__name__)
            celery.init_app(app)
            return app

    Initialising it for a second Flask app gives that app a Celery app of its own, with the same
    tasks: see :meth:`init_app`.

    :param app: calls :meth:`init_app`.
    :param main: prefix for the names of tasks defined in a script; by default they are named
        as if the script were imported, which is how the worker finds them.
    :param options: whatever :class:`celery.Celery` takes; they win over Flask's config.
    """

    amqp_cls = "celeriac.publish:AMQP"
    control_cls = "celeriac.control:Control"
    log_cls = "celeriac.logs:Logging"
    task_cls = "celeriac.task:Task"

    #: The Flask app that this Celery app belongs to.
    flask_app: Flask | None = None
    #: The Celeriac that this one, of a second Flask app, has its tasks from.
    _elder: Celeriac | None = None
    #: What Flask's config said.
    _settings: dict[str, Any] = {}

    # Celery's own, which its type stubs leave out.
    namespace: str | None
    set_as_current: bool
    configured: bool
    finalized: bool
    _conf: Any
    _preconf: dict[str, Any]
    _tasks: Any
    _finalize_mutex: Any
    _load_config: Callable[[], Any]

    def __init__(
        self, app: Flask | None = None, *, main: str | None = None, **options: Any
    ) -> None:
        self._named_main = main
        self._options = options
        super().__init__(main, **options)
        if app is not None:
            self.init_app(app)

    def on_init(self) -> None:
        """Put a configuration of ours in the place of Celery's; Celery calls this."""
        conf = Configuration({}, prefix=self.namespace)
        conf.swap_with(self._conf)
        self._conf = conf
        if self.set_as_current and _is_nobody(_state.default_app):
            # Other threads, and tasks of ``shared_task``, look here.
            self.set_default()

    # Flask apps

    def init_app(self, app: Flask) -> None:
        """Give ``app`` its Celery app, ``app.extensions["celery"]``, configured from its config.

        For the first Flask app that is this object. For each further one it is another with the
        same tasks. A task called inside the app context of a Flask app uses that app's; called
        outside, the first one's.

        :raises RuntimeError: if ``app`` has a Celery app already.
        :raises celery.exceptions.ImproperlyConfigured: if its config can not work.
        """
        if "celery" in app.extensions:
            raise RuntimeError(
                f"The Flask app {app.name!r} has a Celery app already, in "
                "app.extensions['celery']. Call make_celery(app) or celery.init_app(app) only "
                "once for each app, and import the result where it is needed."
            )
        own = self if self.flask_app is None else self._sibling()
        own._belong_to(app)

    def _belong_to(self, app: Flask) -> None:
        settings = read_settings(app.config)
        known = {**settings, **self._changes()}
        check_urls(known, app.instance_path)
        make_folder(known, app.instance_path)
        self.flask_app = app
        self.main = self._named_main or _importable(app.import_name)
        self._settings = settings
        self._conf.settle(app.instance_path)
        self.loader.override_backends = dict.fromkeys(("redis", "rediss"), _REDIS_BACKEND)
        self.add_defaults(lambda: settings)
        self._rebind()
        context.connect(app)
        app.extensions["celery"] = self
        app.user_options = _FlaskAppNamed(self)  # type: ignore[attr-defined]

    def _changes(self) -> dict[str, Any]:
        """Return what was given to the constructor or assigned to ``conf``, without reading it.

        Reading would load the configuration, and send ``on_after_configure`` before anybody had
        the chance to connect to it.
        """
        return dict(self._conf.changes if self.configured else self._preconf)

    def _rebind(self) -> None:
        if not self.configured:
            return
        # Somebody asked a task for its name, say, before there was a Flask app.
        for cached in ("amqp", "annotations", "timezone"):
            self.__dict__.pop(cached, None)
        for task in self._tasks.values():
            if isinstance(task, Task):
                task.rebind(self)

    def _sibling(self) -> Celeriac:
        options = {**self._options, "set_as_current": False, "changes": self._changes()}
        sibling = type(self)(main=self._named_main, **options)
        sibling._elder = self
        sibling.steps, sibling.user_options = self.steps, self.user_options
        for signal in ("on_configure", "on_after_configure", "on_after_finalize"):
            setattr(sibling, signal, getattr(self, signal))
        return sibling

    def config_from_object(
        self,
        obj: Any,
        silent: bool = False,
        force: bool = False,
        namespace: str | None = None,
    ) -> Any:
        """Read more settings from an object or module; Flask's config wins over it."""
        reload, self.configured = force or self.configured, False
        super().config_from_object(obj, silent=silent, namespace=namespace)
        if not reload:
            return None
        # Celery would put settings of its own class in the place of ours.
        self.add_defaults(lambda: self._settings)
        return self._load_config()

    def prepare_config(self, c: Any) -> Any:
        """Let the settings of :meth:`config_from_object` be spelt freely too; Celery calls this."""
        if isinstance(c, Mapping) and not self.namespace:
            c = {**{key: value for key, value in c.items() if key.islower()}, **read_settings(c)}
        return super().prepare_config(c)

    # Tasks

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def task(self, fun: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
        @overload
        def task(self, fun: Callable[P, R], /) -> Task[P, R]: ...
        @overload
        def task(self, *, base: type[T], **options: Any) -> Callable[[Callable[..., Any]], T]: ...
        @overload
        def task(self, *, bind: Literal[True], **options: Any) -> _BoundDecorator: ...
        @overload
        def task(self, *, bind: Literal[False] = False, **options: Any) -> _Decorator: ...
        def task(self, *args: Any, **options: Any) -> Any: ...

    def gen_task_name(self, name: str, module: str) -> str:
        """Name a task after its function and the module that a worker imports it from."""
        if self._named_main is None:
            module = _importable(module)
        return super().gen_task_name(name, module)

    def finalize(self, auto: bool = False) -> None:
        """Evaluate the declared tasks; a second Flask app's Celery app takes over the first's."""
        with self._finalize_mutex:
            is_first = not self.finalized
            super().finalize(auto)
            if is_first and self._elder is not None:
                for task in self._elder.tasks.values():
                    self.task_like(task)

    def task_like(self, task: celery.Task[P, R]) -> Task[P, R]:
        """Return this app's own task of the same name, declaring it if need be."""
        return cast("Task[P, R]", self.tasks.get(task.name) or self._declare_like(task))

    def _task_from_fun(self, fun: Any, name: str | None = None, *args: Any, **options: Any) -> Any:
        if coroutines.is_generator_function(fun):
            raise TypeError(coroutines.why_refused(name or fun.__name__, fun))
        task: Any = super()._task_from_fun(fun, name, *args, **options)
        if getattr(task, "declared", None) is None:
            task.declared = (fun, options)
        coroutines.adapt(task)
        return task

    def register_task(self, task: Any, **options: Any) -> Any:
        """Take in a task that was declared as a class."""
        registered = super().register_task(task, **options)
        coroutines.adapt(registered)
        return registered

    def _declare_like(self, task: Any) -> Any:
        declared = getattr(task, "declared", None)
        if declared is not None:
            fun, options = declared
            return self._task_from_fun(fun, task.name, **options)
        kind: Any = type(task)
        taken = [name for name in kind._from_settings if getattr(kind, name) is not None]
        unbound = {"__module__": kind.__module__, "__bound__": False, "_app": self}
        return self.register_task(type(kind.__name__, (kind,), unbound | dict.fromkeys(taken))())

    @cached_property
    def AsyncResult(self) -> Any:
        """The class of results; see :class:`celeriac.result.AsyncResult`."""
        kind: Any = "celeriac.result:AsyncResult"
        return self.subclass_with_self(kind)

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """What was set aside instead of run again; see :class:`celeriac.dead.DeadLetters`."""
        return DeadLetters(self)

    # The broker

    @cached_property
    def uses_engine(self) -> bool:
        """Whether messages go to an engine of ours, rather than to a broker of kombu's."""
        return is_engine_url(self.conf.broker_write_url)

    def producer_or_acquire(self, producer: Any = None) -> Any:
        """Return a producer: with an engine as the broker, one that needs no kombu."""
        if not self.uses_engine:
            return super().producer_or_acquire(producer)
        from .publish import EngineProducer

        if producer is None:
            return EngineProducer(self)
        if isinstance(producer, EngineProducer):
            return nullcontext(producer.share())
        return super().producer_or_acquire(producer)

    def connection_for_read(self, url: str | None = None, **kwargs: Any) -> Any:
        self._require_broker(url)
        url = url or self.conf.broker_read_url
        return super().connection_for_read(url, **for_reading(self.conf, url, kwargs))

    def connection_for_write(self, url: str | None = None, **kwargs: Any) -> Any:
        self._require_broker(url)
        url = url or self.conf.broker_write_url
        return super().connection_for_write(url, **for_writing(self.conf, url, kwargs))

    def _require_broker(self, url: str | None) -> None:
        # Celery's own answer would be a RabbitMQ on this machine.
        if self.flask_app is None and not (url or self.conf.broker_url):
            if not self.conf.broker_transport:
                program = click.get_current_context(silent=True)
                if program is not None and getattr(program.obj, "app", None) is self:
                    raise click.ClickException(_NO_APP)  # `celery -A module worker`
                raise RuntimeError(_NO_APP)

    def bugreport(self) -> str:
        """Return what ``celery report`` prints: versions, settings, and what set them."""
        return "\n".join([super().bugreport(), *from_environment()])

    # Pickling, for children that are spawned rather than forked

    def __reduce__(self) -> Any:
        """Travel as the name to import: the other process makes its own app as this one did."""
        name = _find_name(self, self.flask_app)
        if name is not None:
            return _import_celery, name
        if os.environ.get("FLASK_APP"):
            return _load_celery, ()
        return super().__reduce__()

    def __reduce_keys__(self) -> dict[str, Any]:
        keys = super().__reduce_keys__()
        urls = {name: getattr(self.conf, name) for name in ("broker_url", "result_backend")}
        return keys | {"changes": {**self._settings, **urls, **keys["changes"]}}


if TYPE_CHECKING:

    class _Decorator(Protocol):
        @overload
        def __call__(self, fun: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
        @overload
        def __call__(self, fun: Callable[P, R], /) -> Task[P, R]: ...

    class _BoundDecorator(Protocol):
        @overload
        def __call__(
            self, fun: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
        ) -> AsyncTask[P, R]: ...
        @overload
        def __call__(self, fun: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...


class _FlaskAppNamed:
    """Mends ``celery -A module`` where the module's ``app`` is the Flask app.

    Celery's program (``celery.app.utils:find_app``) takes the attribute ``app`` for a Celery app
    without looking, and there is no hook before ``celery.bin.celery:celery`` first asks what it
    found for its ``user_options``. Flask apps of ours have these instead.
    """

    def __init__(self, celery_app: Celeriac) -> None:
        self._celery_app = celery_app

    def get(self, command: str, default: Any = ()) -> Any:
        """Answer for the Celery app, and put it where the program goes on reading."""
        program = click.get_current_context(silent=True)
        if program is not None and getattr(program.obj, "app", None) is self._celery_app.flask_app:
            program.obj.app = self._celery_app
        return self._celery_app.user_options.get(command, default)


def _is_nobody(app: Any) -> bool:
    """Say whether ``app`` is only what Celery makes up where there is no Celery app."""
    return app is None or (type(app) is celery.Celery and app.main == "default")


def _importable(module: str) -> str:
    """Return the name under which others import the module that runs as a script."""
    if module not in ("__main__", "__mp_main__"):
        return module
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return _dotted_name(Path(file)) if file else module


def _dotted_name(path: Path) -> str:
    name, folder = path.stem, path.absolute().parent
    while (folder / "__init__.py").exists():
        name, folder = f"{folder.name}.{name}", folder.parent
    return name


def _find_name(*objects: Any) -> tuple[str, str] | None:
    for module in list(sys.modules.values()):
        # Where Celery keeps the current app, another process has another one.
        if getattr(module, "__name__", "").startswith("celery."):
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if any(value is wanted for wanted in objects if wanted is not None):
                return _importable(module.__name__), name
    return None


def _import_celery(module: str, name: str) -> Any:
    is_main = _importable("__main__") == module
    found = getattr(sys.modules["__main__"] if is_main else import_module(module), name)
    return found.extensions["celery"] if isinstance(found, Flask) else found


def _load_celery() -> Any:
    return ScriptInfo(os.environ["FLASK_APP"]).load_app().extensions["celery"]
