"""The base class of tasks: ``delay()`` and ``apply_async()`` start here.

It adds seven things to Celery's. The types of a task's own arguments and result; the app context
of a plain call; the choice of the Celery app, where several Flask apps share their tasks; an
error that names the argument which JSON cannot hold; ``delay_many()``; back-off in ``retry()``;
and ``stopping``, by which a long task knows that its worker is to end. From here a call goes on to
:mod:`celeriac.template`, or into ``Celery.send_task`` and from there to :mod:`celeriac.publish` or
to kombu.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import os
from collections.abc import Coroutine
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import timedelta
from types import CoroutineType
from typing import Any
from typing import cast
from typing import Concatenate
from typing import overload
from typing import ParamSpec
from typing import TYPE_CHECKING
from typing import TypeVar

import celery
from celery.utils.time import get_exponential_backoff_interval
from flask import current_app
from flask import has_app_context
from kombu.exceptions import EncodeError
from kombu.utils import json

from . import coroutines
from . import replacement
from . import stock
from . import stopping
from .context import app_context
from .stack import replace_stack
from .template import send_many_shortly
from .template import send_shortly

if TYPE_CHECKING:
    from celery.canvas import Signature

    from .result import AsyncResult

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R", covariant=True)


class ArgumentError(EncodeError, TypeError):
    """An argument of a task can not be put into a message."""


class Task(stock.Task[P, R]):
    """A task: a function that may be called here, or enqueued for a worker.

    All of Celery's :class:`celery.app.task.Task` holds.
    """

    abstract = True

    #: The options that the task did not set itself, and took from the settings.
    _from_settings: tuple[str, ...]
    #: The function and the options that it was declared with, unless it was declared as a class.
    declared: tuple[Any, dict[str, Any]] | None = None
    #: The template of its plain calls, and what it was made of: see :mod:`celeriac.template`.
    _template: tuple[Any, Any] = (None, None)
    _app: Any

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the task here and now, in the caller's app context.

        A caller without any gets one of the task's own app for the length of the call. That of
        an ``async def`` task returns its coroutine, as the call of any ``async def`` does.
        """
        request: Any = self.request_stack.top
        if request is not None and not (request.called_directly or request._protected):
            # Celery's tracer, not a caller: the request is the task's own. A second call in the
            # same request is the task calling itself.
            request._protected = 1
            result = self.run(*args, **kwargs)
            # A plain function that returns what an `async def` gave it, say.
            if type(result) is CoroutineType:
                result = coroutines.finish(self, result)
            return result
        app = None if has_app_context() else getattr(self.app, "flask_app", None)
        if app is None:
            return super().__call__(*args, **kwargs)
        with app_context(app):
            result = super().__call__(*args, **kwargs)
        if type(result) is CoroutineType:
            result = cast("R", coroutines.within(app_context(app), result))
        return result

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Enqueue the task with these arguments; when this returns, the message is stored.

        :raises ArgumentError: when an argument is not one that JSON can hold.
        :raises kombu.exceptions.OperationalError: when the broker can not be reached.
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *options: Any,
        **named_options: Any,
    ) -> AsyncResult[R]:
        """Enqueue the task with Celery's options (``countdown``, ``queue``, ``link``, …).

        Inside the app context of another Flask app that shares this task, it is enqueued with
        that app's Celery app, its settings and its broker. Raises what :meth:`delay` does.
        """
        task = self._in_current_app()
        send: Any = super(Task, task).apply_async
        try:
            result: AsyncResult[R] | None = None
            if not options:
                result = send_shortly(task, send, args, kwargs, named_options)
            return result or send(args, kwargs, *options, **named_options)
        except EncodeError as exc:
            if isinstance(exc, ArgumentError):
                raise
            raise next(_culprits(task, args, kwargs, named_options), exc) from exc

    def delay_many(
        self,
        calls: Iterable[tuple[Any, ...] | list[Any] | Mapping[str, Any]],
        **options: Any,
    ) -> list[AsyncResult[R]]:
        """Enqueue the task once for each of ``calls``.

        With an engine as the broker, all are stored in one transaction or none is, also when
        ``calls`` itself raises. With any other they are sent one after another.

        .. code-block:: python

            send_reminder.delay_many([(user.id,) for user in users], queue="mail")

        :param calls: for each call its arguments: a tuple or a list of them, or a dictionary by
            their names.
        :param options: those of :meth:`apply_async`, for all of them; each has an id of its own.
        :return: the results, in the order of the calls.
        :raises TypeError: when a call is neither, or does not fit the task's signature.
        :raises ArgumentError: and what else :meth:`delay` raises; nothing is stored then.
        """
        for name in options.keys() & {"args", "kwargs", "task_id"}:
            raise TypeError(f"delay_many() takes no {name!r}: each call has its own.")
        task = self._in_current_app()
        listed = [_args_and_kwargs(call) for call in calls]
        is_ours = listed and type(task).apply_async is Task.apply_async
        send: Any = super(Task, task).apply_async
        results = send_many_shortly(task, send, listed, options) if is_ours else None
        if results is None:
            with task.app.producer_or_acquire(options.pop("producer", None)) as producer:
                results = [
                    task.apply_async(args, kwargs, producer=producer, **options)
                    for args, kwargs in listed
                ]
        return results

    def replace(self, sig: Signature[Any]) -> Any:
        """Run ``sig`` in place of this task, under its id and in its chord."""
        go_on: Any = super().replace
        return go_on(replacement.with_one_result(sig, self.app))

    def on_replace(self, sig: Signature[Any]) -> Any:
        """Send what replaces this task."""
        replacement.take_place(sig, self.request)
        send: Any = super().on_replace
        return send(sig)

    def signature(
        self, args: Sequence[Any] | None = None, *starargs: Any, **starkwargs: Any
    ) -> Signature[R]:
        """Return a signature of the task; see :meth:`apply_async` for which app's."""
        make: Any = super(Task, self._in_current_app()).signature
        return cast("Signature[R]", make(args, *starargs, **starkwargs))

    subtask = signature

    if TYPE_CHECKING:
        # The second form is for a chain or a callback, where the result of the task before
        # becomes the first argument.
        @overload
        def s(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]: ...
        @overload
        def s(
            self: Task[Concatenate[Any, Q], R], *args: Q.args, **kwargs: Q.kwargs
        ) -> Signature[R]: ...
        def s(self, *args: Any, **kwargs: Any) -> Signature[R]: ...

    if not TYPE_CHECKING:  # The type of retry() stays Celery's.

        def retry(
            self,
            args=None,
            kwargs=None,
            exc=None,
            throw=True,
            eta=None,
            countdown=None,
            max_retries=None,
            **options,
        ):
            """Enqueue the task once more; see :meth:`celery.app.task.Task.retry`.

            A task with ``retry_backoff`` backs off here as it does with ``autoretry_for``,
            unless the call says when.
            """
            if not eta and countdown is None:
                countdown = self._back_off()
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)

    def _back_off(self) -> int | None:
        """Return in how many seconds to retry, as Celery reckons for ``autoretry_for``."""
        factor = float(getattr(self, "retry_backoff", False))
        if not factor:
            return None
        return get_exponential_backoff_interval(
            factor=int(max(1.0, factor)),
            retries=self.request.retries,
            maximum=int(getattr(self, "retry_backoff_max", 600)),
            full_jitter=getattr(self, "retry_jitter", True),
        )

    @property
    def stopping(self) -> bool:
        """Whether the worker that runs this task was told to end.

        A task that takes long looks at it now and then, which costs less than a microsecond:
        once it is true, save what is done and ``raise self.retry(countdown=0)``. The worker waits
        for ``worker_grace_period`` seconds. Outside of a worker it is false. In stock Celery's
        prefork, with Redis or RabbitMQ, it is always false: its processes are not told.
        """
        return stopping.is_stopping(self.app)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AsyncResult[R]:
        """Return the result of an earlier call, by its id."""
        find: Any = super(Task, self._in_current_app()).AsyncResult
        return cast("AsyncResult[R]", find(task_id, **kwargs))

    def _in_current_app(self) -> Task[P, R]:
        if not has_app_context():
            return self
        celery_app = current_app.extensions.get("celery")
        if celery_app is None or celery_app is self._app:
            return self
        task_like = getattr(celery_app, "task_like", None)
        return self if task_like is None else task_like(self)

    @classmethod
    def bind(cls, app: celery.Celery[Any]) -> celery.Celery[Any]:
        """Connect the task to its Celery app; Celery calls this, more than once."""
        if "_from_settings" not in cls.__dict__:
            options = (option for option, _ in cls.from_config)
            cls._from_settings = tuple(name for name in options if getattr(cls, name, None) is None)
        bound = super().bind(app)
        replace_stack(cls)
        return bound

    @classmethod
    def rebind(cls, app: celery.Celery[Any]) -> None:
        """Take the options that the task does not set itself from the settings once more."""
        for option in cls._from_settings:
            if option in cls.__dict__:
                delattr(cls, option)
            if getattr(cls, option, None) is not None:
                setattr(cls, option, None)
        cls.__bound__ = False
        cls.bind(app)


if TYPE_CHECKING:

    class AsyncTask(Task[P, R]):
        """An ``async def`` task, for type checkers: called here, it gives its coroutine."""

        def __call__(  # type: ignore[override]
            self, *args: P.args, **kwargs: P.kwargs
        ) -> Coroutine[Any, Any, R]: ...


def _args_and_kwargs(call: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(call, (tuple, list)):
        return call, {}
    if isinstance(call, Mapping):
        return (), call
    raise TypeError(
        "delay_many() takes the arguments of each call as a tuple, or as a dictionary by their "
        f"names, and got {call!r}. For a single argument write [(x,) for x in …]."
    )


def _culprits(
    task: celery.Task[..., Any],
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Iterator[ArgumentError]:
    for argument, value in _named(task, args or (), kwargs or {}):
        path, part = _unencodable(argument, value)
        if path:
            yield ArgumentError(
                f"argument {argument!r} of {task.name} {_complaint(argument, path, part)}"
            )
    for signature in _following(options):
        following = task.app.tasks.get(signature["task"])
        if following is not None:
            yield from _culprits(following, signature["args"], signature["kwargs"], {})


def _named(
    task: celery.Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Give the arguments the names that the task's function has for them."""
    names, rest = [], "args"
    for parameter in inspect.signature(task.run).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            rest = parameter.name
    for index, value in enumerate(args):
        yield names[index] if index < len(names) else f"{rest}[{index - len(names)}]", value
    yield from kwargs.items()


def _following(options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for option in ("chain", "link", "link_error"):
        signatures = options.get(option) or ()
        yield from [signatures] if isinstance(signatures, Mapping) else signatures


def _unencodable(path: str, value: Any) -> tuple[str, Any]:
    """Return the innermost part of ``value`` that JSON can not hold, and the way to it."""
    try:
        json.dumps(value)
    except ValueError:  # A circle, in which there is no innermost part.
        return path, value
    except Exception:
        for inner_path, inner in _parts(path, value):
            found, part = _unencodable(inner_path, inner)
            if found:
                return found, part
        return path, value
    return "", None


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"{path}[{key!r}]", inner) for key, inner in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"{path}[{index}]", inner) for index, inner in enumerate(value))


def _complaint(argument: str, path: str, value: Any) -> str:
    kind = type(value).__name__
    article = "an" if kind[0] in "AEIOaeio" else "a"
    inside = "is" if path == argument else f"holds, as {path},"
    return f"{inside} {article} {kind}, which JSON cannot hold: {_advice(path, value)}."


def _advice(path: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return "its keys must be texts or numbers, and it must not contain itself"
    if isinstance(value, (list, tuple)):
        return "it contains itself"
    if isinstance(value, enum.Enum):
        return f"pass {path}.value"
    if isinstance(value, timedelta):
        return f"pass {path}.total_seconds()"
    if isinstance(value, os.PathLike):
        return f"pass str({path})"
    if hasattr(value, "read"):
        return "save it, and pass the path of the file"
    if hasattr(value, "model_dump"):
        return f"pass {path}.model_dump(mode='json')"
    if hasattr(value, "id"):
        return f"pass {path}.id, and load the {type(value).__name__} in the task"
    if dataclasses.is_dataclass(value):
        return f"pass dataclasses.asdict({path})"
    if hasattr(value, "__iter__"):
        return f"pass list({path})"
    return "pass the texts and numbers that describe it"
