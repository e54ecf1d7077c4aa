"""What we add to the ``celery`` command, and to every worker that it starts."""

from __future__ import annotations

from functools import partial
from typing import Any

import click
from celery import signals
from celery.bin.base import CeleryCommand
from celery.bin.base import handle_preload_options

from .engines import is_engine_url
from .engines import open_engine
from .explain import Cause
from .explain import explain as explain_task


@signals.worker_init.connect(weak=False, dispatch_uid="celeriac.worker")
def _choose_parts(sender: Any, **kwargs: Any) -> None:
    # Imported here, because a command like `celery report` needs no worker.
    from .worker import choose_parts

    choose_parts(sender)


@click.command(cls=CeleryCommand)
@click.argument("task_id")
@click.pass_context
@handle_preload_options
def explain(ctx: click.Context, task_id: str) -> None:
    """Tell why a task has not run, and what mends it.

    The exit code is 1 for an id of which nothing is known.
    """
    app = ctx.obj.app
    url = app.conf.broker_read_url
    if not url:
        raise click.UsageError(
            "No broker is known, so say whose: celery -A your_application.celery explain …"
        )
    if not is_engine_url(url):
        raise click.UsageError(
            f"Only the queues of Celeriac's own engines can be asked, and the broker is {url}."
        )
    # The backend knows by which command this app's worker is started.
    ask = getattr(app.backend, "explain", None) or partial(explain_task, open_engine(url))
    explanation = ask(task_id)
    click.echo(str(explanation))
    if explanation.cause is Cause.UNKNOWN:
        ctx.exit(1)
