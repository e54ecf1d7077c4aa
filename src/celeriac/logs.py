"""Logging in workers: the application's own where it configured any, Celery's where it did not.

Celery takes the root logger and standard output for itself by default. :class:`Logging` stands in
Celery's place for that (``app.log``) and keeps its hands off what it finds configured. Either way
every record tells which task wrote it: :class:`TaskFilter`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import click
from celery import signals
from celery._state import get_current_task
from celery.app import log
from celery.utils.log import mlevel
from click.core import ParameterSource
from flask.logging import default_handler

#: What Celery is told when logging is somebody else's: anything true.
_LEFT_ALONE = "the application configured logging"


class TaskFilter(logging.Filter):
    """Gives each record the attributes ``task_id`` and ``task_name``.

    They are those of the task that runs, and ``None`` where none does; what a record brought
    with it (``extra={"task_id": …}``) stays. Workers add this filter to all handlers. Where a
    formatter names these attributes, the web server's processes need it too: add it to the
    handler when logging is configured.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        task: Any = get_current_task()
        told = getattr(record, "data", None)
        found = (None, None)
        if task is not None and task.request:
            found = (task.request.id, task.name)
        elif isinstance(told, dict):  # "Task … received", which is told before the task runs.
            found = (told.get("id"), told.get("name"))
        record.__dict__.setdefault("task_id", found[0])
        record.__dict__.setdefault("task_name", found[1])
        return True


class Logging(log.Logging):
    """Celery's logging, that leaves a configured application's alone.

    Celery's own is set up where the application configured nothing, where ``-f`` names a file,
    and where ``worker_hijack_root_logger`` says so explicitly.
    """

    app: Any
    _setup = False

    def setup(self, loglevel: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Set up logging, unless that is done; return something true if it was not by Celery."""
        handled = super().setup(loglevel, *args, **kwargs)
        if handled is _LEFT_ALONE:
            # Children that are not forked come here as well, and read what their parent did.
            if not _is_given("loglevel", loglevel):
                os.environ["CELERY_LOG_LEVEL"] = ""
            if self._is_set("worker_redirect_stdouts") and self.app.conf.worker_redirect_stdouts:
                self.redirect_stdouts(self.app.conf.worker_redirect_stdouts_level)
        return handled

    def setup_logging_subsystem(
        self, loglevel: Any = None, logfile: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Set up logging; Celery calls this at the start of each of its programs."""
        if self.already_setup:
            return None
        if logfile or signals.setup_logging.receivers or not self._is_apps_own():
            handled = super().setup_logging_subsystem(loglevel, logfile, *args, **kwargs)
            self._silence_flask()
        else:
            self._leave_alone(loglevel, kwargs.get("colorize"))
            handled = _LEFT_ALONE
        type(self)._setup = True
        _mark(self._handlers())
        return handled

    def _is_apps_own(self) -> bool:
        if self._is_set("worker_hijack_root_logger") and self.app.conf.worker_hijack_root_logger:
            return False
        loggers = [logging.getLogger(name) for name in (None, "celery", "celery.task")]
        handlers = [handler for logger in loggers for handler in _real(logger)]
        flasks = [handler for handler in _real(self._flask()) if handler is not default_handler]
        return bool(handlers or flasks)

    def _is_set(self, name: str) -> bool:
        return name in self.app.conf.without_defaults()

    def _leave_alone(self, loglevel: Any, colorize: Any) -> None:
        level = mlevel(loglevel or self.loglevel)
        if _is_given("loglevel", loglevel):
            logging.getLogger().setLevel(level)
        celery = logging.getLogger("celery")
        if _real(logging.getLogger()) or _real(celery):
            return
        # Only Flask's logger is configured: nobody would hear of the worker.
        color = self.supports_color(colorize, None)
        datefmt = getattr(self, "datefmt", None)  # Since Celery 5.7.
        for logger in (celery, logging.getLogger("celeriac")):
            self.setup_handlers(logger, None, self.format, color, datefmt=datefmt)
            logger.setLevel(level)
        self.setup_task_loggers(level, None, colorize=colorize)

    def _silence_flask(self) -> None:
        """Have what Flask's logger is told appear once, now that the root logger shows it."""
        if _real(logging.getLogger()):
            self._flask().removeHandler(default_handler)

    def _flask(self) -> logging.Logger:
        flask_app = getattr(self.app, "flask_app", None)
        # Not its attribute `logger`, which would add a handler.
        return logging.getLogger("celeriac" if flask_app is None else flask_app.name)

    def _handlers(self) -> Iterator[logging.Handler]:
        root = logging.getLogger()
        for logger in (root, *list(root.manager.loggerDict.values())):
            if isinstance(logger, logging.Logger):
                yield from _real(logger)


def _mark(handlers: Iterator[logging.Handler]) -> None:
    for handler in handlers:
        # This formatter of Celery's does the same, with question marks where no task runs.
        if not isinstance(handler.formatter, log.TaskFormatter):
            if not any(isinstance(found, TaskFilter) for found in handler.filters):
                handler.addFilter(TaskFilter())


def _real(logger: logging.Logger) -> list[logging.Handler]:
    return [each for each in logger.handlers if not isinstance(each, logging.NullHandler)]


def _is_given(option: str, value: Any) -> bool:
    """Say whether somebody chose the option's value, or a command line has it by default."""
    context = click.get_current_context(silent=True)
    source = context.get_parameter_source(option) if context is not None else None
    return bool(value) and source is not ParameterSource.DEFAULT
