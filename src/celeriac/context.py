"""The app context around a whole task.

:func:`app_context` is pushed around the traced task: by our worker itself, and on the pools of
stock Celery (with a Redis or RabbitMQ broker) from Celery's signals, which :func:`connect` sees
to. Either way it spans everything from ``before_start`` to the storing of the result and
``after_return``. A new child of a pool starts without the connections that it inherited.
"""

from __future__ import annotations

import logging
import weakref
from types import TracebackType
from typing import Any

from celery import signals
from celery import Task
from flask import current_app
from flask import Flask
from flask import has_app_context

logger = logging.getLogger(__name__)

#: The Flask apps whose connections a forked child must not use.
_apps: weakref.WeakSet[Flask] = weakref.WeakSet()


class app_context:
    """Push an app context of ``app`` for the length of a ``with`` block.

    Where one of the same app is active already, it is kept: what runs inside shares its caller's
    context, and the caller's database session is not torn down under its feet.

    A teardown function that fails is logged and does not hide what the block itself ended in.
    """

    def __init__(self, app: Flask) -> None:
        self.app = app
        self._pushed: Any = None

    def __enter__(self) -> None:
        self.push()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.pop(error)

    def push(self) -> None:
        """Begin the block."""
        if not is_active(self.app):
            self._pushed = self.app.app_context()
            self._pushed.push()

    def pop(self, error: BaseException | None = None) -> None:
        """End the block; ``error`` is what Flask's teardown functions are told."""
        pushed, self._pushed = self._pushed, None
        if pushed is None:
            return
        try:
            pushed.pop(error)
        except Exception:
            logger.exception("Teardown of the app context of %r failed", self.app.name)


def is_active(app: Flask) -> bool:
    """Say whether the innermost app context is one of ``app``."""
    # A proxy compares like what it stands for, and Flask apps compare by identity.
    return has_app_context() and current_app == app


def connect(app: Flask) -> None:
    """Let Celery's signals push contexts of ``app`` and drop connections that it inherited.

    May be called for any number of apps, and again for the same one.
    """
    _apps.add(app)
    signals.task_prerun.connect(_push, dispatch_uid="celeriac.context.push")
    signals.task_postrun.connect(_pop, dispatch_uid="celeriac.context.pop")
    signals.worker_process_init.connect(
        drop_inherited_connections, dispatch_uid="celeriac.context.drop"
    )


def disconnect() -> None:
    """Undo the part of :func:`connect` that concerns contexts, in a process that needs it not."""
    signals.task_prerun.disconnect(dispatch_uid="celeriac.context.push")
    signals.task_postrun.disconnect(dispatch_uid="celeriac.context.pop")


def _push(task: Task[..., Any], **kwargs: Any) -> None:
    app = getattr(task.app, "flask_app", None)
    if app is not None and not is_active(app):
        context = app_context(app)
        context.push()
        task.request.update(_app_context=context)


def _pop(task: Task[..., Any], retval: Any = None, **kwargs: Any) -> None:
    context = task.request.get("_app_context")
    if context is not None:
        context.pop(retval if isinstance(retval, BaseException) else None)


def drop_inherited_connections(**kwargs: Any) -> None:
    """Forget, in a newly forked child, the database connections that its parent had open.

    They are left alone, not closed: the parent goes on using them. Flask-SQLAlchemy's engines
    are known here. For anything else that holds connections, connect a function of your own to
    :data:`celery.signals.worker_process_init`.
    """
    for app in list(_apps):
        database: Any = app.extensions.get("sqlalchemy")
        with app_context(app):
            for engine in getattr(database, "engines", {}).values():
                engine.dispose(close=False)
