"""What we add to the ``celery`` command, and to every worker that it starts."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from typing import Any

import click
from celery import signals
from celery.bin.base import handle_preload_options
from celery.utils.nodenames import default_nodename
from celery.utils.nodenames import host_format
from click.core import ParameterSource
from kombu.utils.url import maybe_sanitize_url

from .command import Command
from .engines import Engine
from .engines import is_engine_url
from .engines import open_engine
from .explain import Cause
from .explain import explain as explain_task
from .explain import Program
from .health import look

_STOCK = "celery.beat:PersistentScheduler"


# Celery's program loads Flower's command, where it is installed, together with ours.
with suppress(ImportError):
    from .flower import add_pages

    add_pages()


@signals.worker_init.connect(weak=False, dispatch_uid="celeriac.worker")
def _choose_parts(sender: Any, **kwargs: Any) -> None:
    # Imported here, because a command like `celery report` needs no worker.
    from .worker import choose_parts

    choose_parts(sender)


@signals.worker_init.connect(weak=False, dispatch_uid="celeriac.worker.beat")
def _choose_embedded_scheduler(sender: Any, **kwargs: Any) -> None:
    if _keeps_schedule(sender.app):
        sender.scheduler = "celeriac.beat:Scheduler"


# The one signal between the reading of the command line and the making of beat.
@signals.import_modules.connect(weak=False, dispatch_uid="celeriac.beat")
def _choose_scheduler(sender: Any, **kwargs: Any) -> None:
    context = click.get_current_context(silent=True)
    if context is not None and context.command.name == "beat" and _keeps_schedule(sender):
        from .beat import Service

        # A class that Celery makes for each app, so this one's alone.
        sender.Beat.Service = Service


def _keeps_schedule(app: Any) -> bool:
    """Say whether the schedule is kept by an engine: the user named no other scheduler."""
    context = click.get_current_context(silent=True)
    source = context and context.get_parameter_source("scheduler")
    is_named = source not in (None, ParameterSource.DEFAULT)
    is_set = app.conf.beat_scheduler != _STOCK or app.conf.value_set_for("beat_scheduler")
    return not (is_named or is_set) and is_engine_url(app.conf.broker_write_url)


@click.command(cls=Command)
@click.argument("task_id")
@click.pass_context
@handle_preload_options
def explain(ctx: click.Context, task_id: str) -> None:
    """Tell why a task has not run, and what mends it.

    The exit code is 1 for an id of which nothing is known.
    """
    app = ctx.obj.app
    engine = _engine_of(app, "explain", f"inspect query_task {task_id}")
    # The backend knows by which command this app's worker is started.
    ask = getattr(app.backend, "explain", None) or partial(explain_task, engine)
    explanation = ask(task_id, search=True)
    click.echo(str(explanation))
    if explanation.cause is Cause.UNKNOWN:
        ctx.exit(1)


@click.command(cls=Command)
@click.option("-d", "--destination", metavar="NAME", help="Look at this worker alone.")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
@handle_preload_options
def health(ctx: click.Context, destination: str | None, as_json: bool) -> None:
    """Tell how the workers are, and what waits, without asking them.

    The exit code is 0 if all are well, 1 if some worker is wedged or dead, or the queue file can
    not be read, 2 if none runs.
    """
    engine = _engine_of(ctx.obj.app, "health", "inspect ping")
    report = look(engine, host_format(default_nodename(destination)) if destination else "")
    click.echo(json.dumps(report.as_dict()) if as_json else str(report))
    ctx.exit(report.exit_code)


def _engine_of(app: Any, command: str, instead: str) -> Engine:
    """Return the engine that is the broker; end with advice where there is none."""
    url = app.conf.broker_read_url
    if not url:
        raise click.UsageError(
            f"No broker is known, so say whose: celery -A your_application.celery {command} …"
        )
    if not is_engine_url(url):
        raise click.UsageError(
            f"{command} looks into a queue file, and the broker is {maybe_sanitize_url(url)}. "
            f"Ask its workers instead: {Program.of(app).command} {instead}"
        )
    return open_engine(url)
