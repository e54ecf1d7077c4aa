"""A task's message as Celery makes it, with holes: the short way of the plainest calls.

Of the message that ``delay()`` sends, all but the ids and the arguments is the same in the next
call, and to Celery's code it costs 95 µs each time. So Celery is asked for it once, with holes,
and :class:`Template` fills these in. What decides about a message is Celery's code alone; and
where anybody may look into each message, or changes how they are made, all go the long way.
"""

from __future__ import annotations

import json.encoder as json_encoder
import os
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import celery
import kombu
from billiard.exceptions import SoftTimeLimitExceeded
from celery import signals
from celery.app import amqp
from celery.app.routes import MapRoute
from celery.backends.base import Backend
from celery.utils.nodenames import anon_nodename
from celery.utils.saferepr import saferepr

from .engines.base import Message
from .envelope import encode
from .envelope import Envelope
from .envelope import Form
from .envelope import form_of
from .envelope import HOLES
from .envelope import ITS_OWN
from .originals import is_original
from .originals import writes_json
from .publish import AMQP
from .publish import EngineProducer
from .publish import publish

Send = Callable[..., Any]

#: A text as JSON: what :data:`encode` does with it, too.
_quote = json_encoder.encode_basestring_ascii

#: The options that may be another at each call. Celery is asked to put texts in their places that
#: nobody else would send.
_HOLES = {
    name: HOLES[name]
    for name in ("task_id", "root_id", "parent_id", "group_id", "group_index", "reply_to")
}
#: Where a message goes to; the rest of what Celery's groups say of each member.
_DESTINATION = frozenset(("producer", "add_to_parent"))
#: The options of calls that one template serves.
_FILLED_IN = _HOLES.keys() | _DESTINATION | {"chord"}
#: Options that have few values: a form is made for each, and kept while its messages are.
_FEW = frozenset(("queue", "priority", "ignore_result"))
#: Options of many calls that a template is not made for.
_REFUSED = _DESTINATION | {"publisher", "connection", "serializer"}
#: The functions on a call's way that instruments put their own in the place of.
_DOORS = (
    (celery.Task, "apply_async"),
    (celery.Celery, "send_task"),
    (kombu.Producer, "publish"),
    (amqp.AMQP, "as_task_v2"),
)
#: The values of a task that belongs to no other.
_ALONE = f"{ITS_OWN},null,null,null"
#: What becomes of the plainest arguments, in a quarter of the time that an encoder takes.
_AS_JSON: dict[type, Callable[[Any], str]] = {
    int: int.__repr__,
    str: _quote,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): lambda _: "null",
}
#: Types of which Celery shows the :func:`repr`.
_PLAIN = frozenset((int, float, bool, type(None)))


def send_shortly(task: Any, send: Send, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Any:
    """Enqueue a call, and return its result; ``None`` if Celery is to do it.

    :param send: Celery's own ``apply_async`` of the task.
    """
    if options and not (
        options.keys() <= _FILLED_IN and options.get("chord") is None and _are_texts(options)
    ):
        return None
    app = task.app
    template = _template_of(task, app, send, args, kwargs)
    producer = options.get("producer")
    if template is None or not (producer is None or isinstance(producer, EngineProducer)):
        return None
    caller = app.current_worker_task
    try:
        message = template.message(args, kwargs, caller and caller.request, options)
    except SoftTimeLimitExceeded:
        raise
    except Exception:
        return None  # Celery says what is wrong.
    if producer is None:
        publish(template.engine, [message])
    else:
        producer.share().send([message])
    is_child = options.get("add_to_parent", True)
    return _result(task, message, caller if is_child else None, bool(task.ignore_result))


def send_many_shortly(
    task: Any, send: Send, calls: Sequence[tuple[Any, Any]], options: Mapping[str, Any]
) -> list[Any] | None:
    """Enqueue calls with the same options, all or none, and return their results.

    ``None`` if Celery is to do it, call by call, or to say what is wrong with one of them.

    :param send: Celery's own ``apply_async`` of the task.
    """
    app = task.app
    if not _is_plain(task, app) or options.keys() & _REFUSED or not _are_texts(options):
        return None
    caller = app.current_worker_task
    request = caller and caller.request
    try:
        template = Template.learn(task, send, *calls[0], options)
        if template is None:
            return None
        make = template.message if options.keys() <= _FEW else template.whole_message
        messages = [make(args, kwargs, request, options) for args, kwargs in calls]
    except SoftTimeLimitExceeded:
        raise
    except Exception:
        return None
    publish(template.engine, messages)
    is_ignored = bool(options.get("ignore_result", task.ignore_result))
    return [_result(task, message, caller, is_ignored) for message in messages]


def _template_of(task: Any, app: Any, send: Send, args: Any, kwargs: Any) -> Template | None:
    way = _way(task, app)
    template: Template | None
    known_way, template = task._template
    if way != known_way:
        # An expiry is at another hour for each call.
        is_plain = task.expires is None and _is_plain(task, app)
        template = Template.learn(task, send, args, kwargs, {}) if is_plain else None
        task._template = way, template
    return template


def _result(task: Any, message: Message, caller: Any, is_ignored: bool) -> Any:
    """Return what Celery returns of a call."""
    result = task.AsyncResult(message.task_id)
    result.ignored = is_ignored
    if caller:
        caller.add_trail(result)
    return result


def _way(task: Any, app: Any) -> tuple[Any, ...]:
    """Return what makes a message what it is, beside the call: a template holds while it lasts."""
    conf = app.conf
    return (
        celery.Task.apply_async,
        celery.Celery.send_task,
        kombu.Producer.publish,
        _is_watched(),
        conf["task_always_eager"],
        conf["task_send_sent_event"],
        conf["task_inherit_parent_priority"],
        conf["task_default_queue"],
        task.ignore_result,
        app.amqp,
        writes_json(),
        os.getpid(),
    )


def _is_plain(task: Any, app: Any) -> bool:
    """Say whether messages of the task differ in nothing but ids and arguments."""
    conf, amqp = app.conf, app.amqp
    return (
        getattr(app, "uses_engine", False)
        and not _is_watched()
        and not conf["task_always_eager"]
        and not conf["task_send_sent_event"]
        and not conf["task_inherit_parent_priority"]
        and writes_json()
        and task.serializer == "json"
        and getattr(task, "_dump_pydantic_arguments", None) is None
        and all(is_original(kind, name) for kind, name in _DOORS)
        and _is_inherited(app, celery.Celery, "send_task")
        and _is_inherited(task, celery.Task, "shadow_name")
        and _is_inherited(app.backend, Backend, "on_task_call")
        and type(amqp) is AMQP
        and amqp.create_task_message == amqp.as_task_v2
        and all(isinstance(route, MapRoute) for route in amqp.router.routes)
    )


def _is_watched() -> bool:
    """Say whether anybody is told of each message."""
    before, after = signals.before_task_publish, signals.after_task_publish
    return bool(before.receivers or after.receivers or signals.task_sent.receivers)


class Template:
    """The messages of one task's calls that differ in nothing but ids and arguments."""

    def __init__(self, task: Any, app: Any, message: Message, tail: str) -> None:
        self._queue, self._task = message.queue, message.task
        self._options = message[5:]
        self._tail = tail
        self._origin = _quote(anon_nodename())
        self._check = task.__header__ if task.typing else None
        self._app = app
        self.engine = app.amqp.engine
        self._sizes = app.amqp.argsrepr_maxsize, app.amqp.kwargsrepr_maxsize

    @classmethod
    def learn(
        cls, task: Any, send: Send, args: Any, kwargs: Any, options: Mapping[str, Any]
    ) -> Template | None:
        """Have Celery make the message of a call; ``None`` if others' can not be told from it.

        :param send: Celery's own ``apply_async`` of the task.
        """
        app = task.app
        producer = EngineProducer(app).share()
        send(args, kwargs, producer=producer, add_to_parent=False, **{**options, **_HOLES})
        messages = producer.shared or []
        if len(messages) != 1:  # A topic exchange with several queues, or with none.
            return None
        (message,) = messages
        body, head = message.body, _head(args or (), kwargs or {})
        if not isinstance(body, str) or not body.startswith(head):  # Compressed, say.
            return None
        form = _with_holes(Envelope.unpack(message.envelope), args or (), kwargs or {}, app)
        if form is None:
            return None
        return cls(task, app, message._replace(form=form), body.removeprefix(head))

    def message(self, args: Any, kwargs: Any, caller: Any, options: Mapping[str, Any]) -> Message:
        """Return the message of a call with these arguments.

        :param caller: the request of the task that calls, or ``None``.
        :param options: those of the call's own.
        """
        args, kwargs = args or (), kwargs or {}
        if not isinstance(args, (list, tuple)):
            raise TypeError("task args must be a list or tuple")
        if self._check is not None:
            self._check(*args, **kwargs)
        task_id = options.get("task_id") or new_task_id()
        # In the order of HOLES.
        values = (
            _relatives(caller, options) if caller or options else _ALONE,
            _encode(options.get("reply_to") or self._app.thread_oid),
            self._origin,
            _quote(shown(args, self._sizes[0], self._app)),
            _quote(shown(kwargs, self._sizes[1], self._app)) if kwargs else '"{}"',
        )
        body = _head(args, kwargs) + self._tail
        return Message(
            self._queue, f"[{','.join(values)}]", body, self._task, task_id, *self._options
        )

    def whole_message(self, *call: Any) -> Message:
        """Return the message of a call as :meth:`message` does, but of no form."""
        message = self.message(*call)
        envelope = form_of(message.form).fill(message.task_id, message.envelope)
        return message._replace(envelope=envelope.pack(), form="")


def _are_texts(options: Mapping[str, Any]) -> bool:
    """Say whether the ids among the options are what ids nearly always are."""
    for name in options.keys() & _HOLES.keys():
        value = options[name]
        expected = int if name == "group_index" else str
        if value is not None and (type(value) is not expected or value == ""):
            return False
    return True


def _relatives(caller: Any, options: Mapping[str, Any]) -> str:
    """Return the values that tell what the task belongs to: root, parent, group, place in that.

    :raises TypeError: when the caller's ids are no texts.
    """
    given = options.get
    root_id = given("root_id") or (caller and (caller.root_id or caller.id))
    parent_id = given("parent_id") or (caller and caller.id)
    values = (
        _quote(root_id) if root_id else ITS_OWN,
        _quote(parent_id) if parent_id else "null",
        _encode(given("group_id")),
        _encode(given("group_index")),
    )
    return ",".join(values)


def shown(arguments: Any, size: int, app: Any) -> str:
    """Return how Celery shows arguments; in 1 µs rather than 9, if they are plain ones."""
    if type(arguments) is tuple:
        parts = arguments
    elif type(arguments) is dict:
        parts = (*arguments, *arguments.values())
    else:
        parts = (arguments,)
    if all(map(_is_shown_by_repr, parts)):
        text = repr(arguments)
        if len(text) <= size:
            return text
    levels = app.conf.get("task_repr_maxlevels", 3)  # A setting since Celery 5.7.
    return str(saferepr(arguments, size, maxlevels=levels))


def _is_shown_by_repr(value: Any) -> bool:
    kind = type(value)
    if kind is str:
        return value.isprintable() and "'" not in value and "\\" not in value
    return kind in _PLAIN


def new_task_id() -> str:
    """Return a new id, a UUID of version 7: in order of time, so that indexes grow at their ends.

    With ids at random every message goes into another page of the index, which takes a tenth to
    a fifth of the time of its transaction. In order within a millisecond as well (RFC 9562,
    6.2, method 3), because thousands of one call are sent in so long: a worker's batch of 26 then
    changes 3 pages of the indexes rather than 7.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    moment = f"{milliseconds << 16 | 0x7000 | (rest << 12) // 1_000_000:016x}"
    random = os.urandom(8).hex()
    return f"{moment[:8]}-{moment[8:12]}-{moment[12:]}-8{random[:3]}-{random[4:]}"


def _encode(value: Any) -> str:
    # 0.1 µs, for most of what is asked here, rather than 1.2.
    if value is None:
        return "null"
    return _quote(value) if type(value) is str else encode(value)


def _head(args: Any, kwargs: Any) -> str:
    """Return the beginning of the body, up to what comes behind the arguments."""
    if not kwargs:
        try:
            return f"[[{', '.join([_AS_JSON[type(value)](value) for value in args])}], {{}}"
        except KeyError:
            pass
    return encode((args, kwargs))[:-1]


def _with_holes(envelope: Envelope, args: Any, kwargs: Any, app: Any) -> str | None:
    """Return the form of an envelope, if it is as expected."""
    expected = {
        "argsrepr": shown(args, app.amqp.argsrepr_maxsize, app),
        "kwargsrepr": shown(kwargs, app.amqp.kwargsrepr_maxsize, app),
        "origin": anon_nodename(),
    }
    if not expected.items() <= envelope.headers.items():
        return None
    holes = {name: HOLES[name] for name in expected}
    return Form.text_of(envelope._replace(headers=envelope.headers | holes))


def _is_inherited(thing: Any, kind: type, name: str) -> bool:
    return getattr(getattr(thing, name), "__func__", None) is getattr(kind, name)
