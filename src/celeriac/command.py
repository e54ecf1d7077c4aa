"""A command of ``celery …`` that looks into the queue file, or says in a sentence why not."""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import CeleryCommand

from .engines import EngineError


class Command(CeleryCommand):
    """Ends with the engine's advice and the exit code 1 where something is wrong with the file."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EngineError as exc:
            raise click.ClickException(str(exc)) from None
