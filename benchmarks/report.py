"""From the figures of all rounds to Markdown: one table for each question."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.contenders import Contender
from benchmarks.contenders import CONTENDERS
from benchmarks.run import number
from benchmarks.run import Run
from benchmarks.run import summary

#: What everything is compared with.
REFERENCE = "celery-redis"

Cell = Callable[[Run, str], str]


@dataclass(frozen=True)
class Column:
    """A heading, and how its cells are made of a contender's figures."""

    heading: str
    cell: Cell


def spread(heading: str, figure: str) -> Column:
    """Return a column of medians with the least and the greatest."""
    return Column(heading, lambda run, name: summary(run.values(name, figure)))


def medians(heading: str, *figures: str, between: str = " / ") -> Column:
    """Return a column of several medians."""

    def cell(run: Run, name: str) -> str:
        values = [number(run.median(name, figure)) for figure in figures]
        return "–" if set(values) == {"–"} else between.join(values)

    return Column(heading, cell)


def with_server(heading: str, figure: str, server: str) -> Column:
    """Return a column of medians, and beside each that of the contender's servers if any."""

    def cell(run: Run, name: str) -> str:
        own = number(run.median(name, figure))
        # A server always has some memory; where it has none, there is none.
        has_server = run.median(name, "server_memory")
        return f"{own} + server {number(run.median(name, server))}" if has_server else own

    return Column(heading, cell)


def ratio(heading: str, figure: str, reference: str) -> Column:
    """Return a column of ratios of two figures of the same trial."""

    def cell(run: Run, name: str) -> str:
        return summary(ratios(run, (name, figure), (name, reference)))

    return Column(heading, cell)


def ratios(run: Run, one: tuple[str, str], other: tuple[str, str]) -> list[float]:
    """Compare round by round: the load of a moment then weighs on both sides."""
    references = run.by_round(*other)
    return [
        value / references[round]
        for round, value in run.by_round(*one).items()
        if references.get(round)
    ]


TABLES = {
    "Throughput, tasks/s": (
        spread("enqueue one by one", "enqueue"),
        spread("from 8 threads", "enqueue_threads"),
        spread("many in one call", "enqueue_many"),
        spread("drain", "drain"),
        spread("… until readable", "drain_until_readable"),
        spread("enqueue and run at once", "mix"),
        medians("CPU, µs/task", "drain_cpu_us"),
        medians("tasks drained", "tasks"),
    ),
    "Latency, ms, p50 / p99": (
        medians("to start, at rest", "start_p50", "start_p99"),
        medians("to result, at rest", "result_p50", "result_p99"),
        medians("to start, half loaded", "loaded_start_p50", "loaded_start_p99"),
        medians("to result, half loaded", "loaded_result_p50", "loaded_result_p99"),
        medians("the load, tasks/s", "loaded_rate"),
        medians("to end, fully loaded", "mix_p50", "mix_p99"),
    ),
    "At rest": (
        medians("first task after, s", "start_up"),
        with_server("memory, MB", "memory", "server_memory"),
        medians("processes", "processes"),
        with_server("CPU, %", "rest_cpu", "rest_server_cpu"),
        medians("to stop, s", "stop_seconds"),
    ),
    "Growth: drain, tasks/s": (
        medians("waiting", "backlog_small"),
        spread("drain", "backlog_small_drain"),
        medians("waiting", "backlog_large"),
        spread("drain of the first", "backlog_large_drain"),
        ratio("ratio", "backlog_large_drain", "backlog_small_drain"),
        spread("no results", "fresh_drain"),
        medians("results", "stored"),
        spread("drain", "stored_drain"),
        ratio("ratio", "stored_drain", "fresh_drain"),
    ),
}


def markdown(run: Run) -> str:
    """Return the tables with what is needed to read them."""
    measured = {trial.contender for trial in run.trials}
    contenders = [contender for contender in CONTENDERS if contender.name in measured]
    tables = [_table(run, title, columns, contenders) for title, columns in TABLES.items()]
    notes = "\n".join(f"- {note}" for note in _notes(run))
    return "\n\n".join([*filter(None, tables), notes]) + "\n"


def _table(run: Run, title: str, columns: Sequence[Column], contenders: Sequence[Contender]) -> str:
    """Return one table; nothing, if nothing for it was measured."""
    cells = {each.name: [column.cell(run, each.name) for column in columns] for each in contenders}
    rows = [
        _line([each.title, each.durability, *cells[each.name]])
        for each in contenders
        if set(cells[each.name]) != {"–"}
    ]
    if not rows:
        return ""
    head = _line([title, "survives", *(column.heading for column in columns)])
    rule = _line(["---"] * 2 + ["---:"] * len(columns))
    return "\n".join([head, rule, *rows])


def _notes(run: Run) -> Iterator[str]:
    rounds = max((trial.round for trial in run.trials), default=0)
    yield (
        f"{_rounds(rounds)}, contenders interleaved in shuffled order; "
        "two processes for the work; a task that adds two numbers, for Celery and Celeriac in a "
        "Flask app context; results stored, read back and verified."
    )
    yield from _compared(run)
    yield f"Machine: {', '.join(f'{name} {value}' for name, value in run.machine.items())}."
    if load := [trial.figures["other_load"] for trial in run.trials]:
        middle, worst = number(statistics.median(load)), number(max(load))
        yield f"Other load before a trial: {middle} % median, {worst} % at worst."
    yield f"{run.began}, `{run.command}`."
    yield from (f"Left out: {reason}." for reason in run.left_out)
    yield from (f"**Failed:** {failure}" for failure in run.failures)


def _rounds(rounds: int) -> str:
    return f"Medians (least–greatest) of {rounds} rounds" if rounds > 1 else "One round"


def _compared(run: Run) -> Iterator[str]:
    title = next(each.title for each in CONTENDERS if each.name == REFERENCE)
    for contender in CONTENDERS:
        if contender.name.startswith("celeriac"):
            factors = ratios(run, (contender.name, "drain"), (REFERENCE, "drain"))
            if factors:
                yield f"{contender.title} drains {summary(factors)} times as fast as {title}."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
