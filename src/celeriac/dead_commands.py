"""``celery dead``: look at what was set aside, run it again, delete it.

Everything that these commands know is in :mod:`celeriac.dead`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import datetime
from datetime import timezone
from typing import Any
from typing import NoReturn
from typing import TypeVar

import click
from celery.bin.base import handle_preload_options

from .aside import Reason
from .command import Command
from .dead import DeadLetter
from .dead import DeadLetters
from .explain import Program

F = TypeVar("F", bound=Callable[..., Any])

_HEADINGS = ("ID", "TASK", "QUEUE", "WHEN (UTC)", "DEATHS", "WHY")
#: What the last column has at least, where the terminal is narrow.
_NARROWEST = 40


@click.group()
@click.pass_context
@handle_preload_options
def dead(ctx: click.Context) -> None:
    """Dead letters: what ended badly, is kept, and can be run again."""


def _filtered(command: F) -> F:
    """Give a command the options that choose dead letters."""
    reasons = click.Choice([reason.value for reason in Reason])
    command = click.option("--reason", type=reasons, help="Set aside for this reason.")(command)
    command = click.option("--queue", help="Of this queue.")(command)
    return click.option("--task", help="Of the task of this name.")(command)


@dead.command("list", cls=Command)
@_filtered
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="At most so many, the oldest first.",
)
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
@handle_preload_options
def list_(ctx: click.Context, limit: int, as_json: bool, **filters: str | None) -> None:
    """List what was set aside, the oldest first."""
    found = list(_letters(ctx).list(limit=limit + 1, **filters))
    letters, more = found[:limit], len(found) > limit
    if as_json:
        click.echo(_json([dataclasses.asdict(letter) for letter in letters]))
    elif not letters:
        click.echo("No dead letter matches." if any(filters.values()) else "No dead letters.")
    else:
        click.echo("\n".join(_table(letters)))
        if more:
            click.echo(f"There are more: --limit {10 * limit}")


@dead.command(cls=Command)
@click.argument("task_id")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
@handle_preload_options
def show(ctx: click.Context, task_id: str, as_json: bool) -> None:
    """Show everything that is known of one dead letter."""
    letter = _letters(ctx).get(task_id)
    if letter is None:
        _unknown(ctx.obj.app, [task_id])
    if as_json:
        click.echo(_json(dataclasses.asdict(letter)))
    else:
        click.echo("\n".join(_description(letter)))
        click.echo(f"\nRun it again with: {Program.of(ctx.obj.app).command} dead retry {letter.id}")


@dead.command(cls=Command)
@click.argument("task_ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of them, or all that the filters match.")
@_filtered
@click.pass_context
@handle_preload_options
def retry(ctx: click.Context, task_ids: Sequence[str], every: bool, **filters: str | None) -> None:
    """Put dead letters back into their queues, under their ids."""
    letters = _letters(ctx)
    ids = _chosen(ctx, task_ids, every, filters)
    click.echo(f"{_count(letters.retry(ids, **filters))} put back to run again.")


@dead.command(cls=Command)
@click.argument("task_ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of them, or all that the filters match.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@_filtered
@click.pass_context
@handle_preload_options
def discard(
    ctx: click.Context, task_ids: Sequence[str], every: bool, yes: bool, **filters: str | None
) -> None:
    """Delete dead letters for good."""
    letters = _letters(ctx)
    ids = _chosen(ctx, task_ids, every, filters)
    if every and not yes:
        which = " ".join(f"--{name} {value}" for name, value in filters.items() if value)
        click.confirm(f"Delete all dead letters{which and f' with {which}'} for good?", abort=True)
    click.echo(f"{_count(letters.discard(ids, **filters))} deleted.")


def _letters(ctx: click.Context) -> DeadLetters:
    try:
        return DeadLetters(ctx.obj.app).checked()
    except RuntimeError as exc:
        raise click.UsageError(str(exc)) from None


def _chosen(
    ctx: click.Context, task_ids: Sequence[str], every: bool, filters: dict[str, str | None]
) -> Sequence[str] | None:
    """Return the ids that were named, which must be dead letters; ``None`` for ``--all``."""
    if every == bool(task_ids):
        raise click.UsageError("Name the ids of tasks, or --all: see the list command.")
    if every:
        return None
    if any(filters.values()):
        raise click.UsageError("The filters go with --all, not with ids.")
    unknown = [task_id for task_id in task_ids if _letters(ctx).get(task_id) is None]
    if unknown:
        _unknown(ctx.obj.app, unknown)
    return task_ids


def _unknown(app: Any, task_ids: Sequence[str]) -> NoReturn:
    many = len(task_ids) > 1
    what = "These are no dead letters" if many else "This is no dead letter"
    raise click.ClickException(
        f"{what}: {', '.join(task_ids)}. {'They' if many else 'It'} may have been run again or "
        "discarded, or set aside more than 30 days ago. What became of a task is told by: "
        f"{Program.of(app).command} explain {task_ids[0]}"
    )


def _count(count: int) -> str:
    return f"{count} dead letter{'s were' if count != 1 else ' was'}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=_as_text)


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _table(letters: Iterable[DeadLetter]) -> Iterator[str]:
    rows = [_HEADINGS, *map(_row, letters)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    rest = max(_NARROWEST, _columns() - sum(widths) - 2 * len(widths))
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, _shortened(row[-1], rest)])


def _columns() -> int:
    """Return how wide the output may be: what another program reads is not cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def _row(letter: DeadLetter) -> tuple[str, ...]:
    why = f"{letter.reason}: {letter.error}".splitlines()[0]
    return (letter.id, letter.task, letter.queue, _clock(letter.died_at), str(letter.deaths), why)


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _clock(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%d %H:%M:%S")


def _description(letter: DeadLetter) -> Iterator[str]:
    yield f"Task        {letter.task}"
    yield f"Id          {letter.id}"
    yield f"Queue       {letter.queue}"
    yield f"Arguments   {letter.args!r}"
    yield f"            {letter.kwargs!r}"
    yield f"Sent        {_clock(letter.sent_at)} UTC"
    yield f"Set aside   {_clock(letter.died_at)} UTC, because {letter.why}"
    yield f"Error       {letter.error}"
    yield f"Deaths      {letter.deaths}"
    for run in letter.report:
        yield f"Ended       {_run(run)}"
    traceback = letter.report[-1].get("traceback") if letter.report else None
    if traceback:
        yield f"\n{traceback.rstrip()}"


def _run(run: Mapping[str, Any]) -> str:
    """Return one run that ended badly as a line, with whatever else is known of it."""
    told = {"at", "worker", "pid", "ended", "error", "traceback", "memory", "memory_before"}
    more = "".join(f", {name} {value}" for name, value in run.items() if name not in told)
    at = _clock(datetime.fromtimestamp(run["at"], timezone.utc))
    worker = run["worker"] or "a worker of Celery's own"
    return f"{at} UTC in process {run['pid']} of {worker}: {run['ended']}{_memory(run)}{more}"


def _memory(run: Mapping[str, Any]) -> str:
    if "memory" not in run:
        return ""
    last, before = (run[name] // 2**20 for name in ("memory", "memory_before"))
    return f", with {last} MB of memory ({before} MB when it began)"
