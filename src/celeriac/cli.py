"""``flask --app your_application celery …``: every command of Celery's, for this Flask app.

The app is found in Flask's way, a factory included, and its ``extensions["celery"]`` is handed to
Celery's own program, which does everything else. Celery is imported only when a command runs, as
Flask imports this module for each of its own.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click
from click.core import ParameterSource
from flask.cli import ScriptInfo

_NO_CELERY = (
    "The Flask app {name!r} has no Celery app. Call make_celery(app), or celery.init_app(app) in "
    "the function that makes the app."
)


class _Program(click.Command):
    """Hands all its arguments to another program, and reads none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = args
        return args

    def invoke(self, ctx: click.Context) -> Any:
        return _run(ctx, _app_first(ctx.args))


celery = _Program(
    "celery",
    help="Run Celery's commands: worker, beat, inspect, purge and the others.",
    add_help_option=False,
)


def _run(ctx: click.Context, args: list[str]) -> Any:
    from celery import maybe_patch_concurrency

    # For `-P gevent`, as Celery's own program begins, and before the app is imported.
    maybe_patch_concurrency(["celery", *args])
    from celery.bin.celery import celery as program

    # No app context is pushed here: a worker makes one for each task. The environment variables
    # are those that stock Celery reads, rather than FLASK_CELERY_….
    own = program.make_context("celery", args, parent=ctx.parent, auto_envvar_prefix="CELERY")
    with own:
        is_named = own.get_parameter_source("app") is ParameterSource.COMMANDLINE
        if args and not is_named and not own.params["version"]:
            own.params["app"] = _celery_app(ctx.ensure_object(ScriptInfo))
            _prepare_restart(args)
        return program.invoke(own)


def _celery_app(info: ScriptInfo) -> Any:
    if info.app_import_path:
        # For processes that this one starts.
        os.environ["FLASK_APP"] = info.app_import_path
    app = info.load_app()
    try:
        return app.extensions["celery"]
    except KeyError:
        raise click.UsageError(_NO_CELERY.format(name=app.name)) from None


def _prepare_restart(args: list[str]) -> None:
    """Let ``--detach`` find its way back here.

    Celery starts ``python -m celery`` with the rest of ``sys.argv`` (``celery.bin.worker``), where
    ``--app`` would be Flask's.
    """
    if {"-D", "--detach"} & set(args):
        sys.argv = [sys.argv[0], "-A", f"{__name__}:celery_app", *args]


def _app_first(args: list[str]) -> list[str]:
    """Put ``-A module`` in front of the command, where Celery 4 did not demand it."""
    for option in ("-A", "--app"):
        if option in args[1:-1]:
            index = args.index(option)
            return [*args[index : index + 2], *args[:index], *args[index + 2 :]]
    return args


def __getattr__(name: str) -> Any:
    if name == "celery_app":
        return _celery_app(ScriptInfo(os.environ.get("FLASK_APP")))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
