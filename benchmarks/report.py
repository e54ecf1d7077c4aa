"""From the figures of all rounds to a Markdown table and a JSON file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

from benchmarks.contenders import BY_NAME
from benchmarks.contenders import CONTENDERS
from benchmarks.trial import Figures

#: What everything is compared with.
REFERENCE = "celery-redis"

_HEAD = (
    "contender",
    "survives",
    "enqueue one by one, tasks/s",
    "enqueue many, tasks/s",
    "drain, tasks/s",
    "… until readable, tasks/s",
    "CPU, µs/task",
    "to start, ms, p50 / p99",
    "to result, ms, p50 / p99",
    "memory, MB (processes)",
    "CPU at rest, %",
    "tasks",
)


@dataclass
class Run:
    """All that one run of the benchmark found."""

    command: str
    began: str
    machine: Mapping[str, str]
    #: Figures by contender, one entry for each round that succeeded.
    trials: dict[str, list[Figures]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(json.dumps(vars(self), indent=2) + "\n")


def markdown(run: Run) -> str:
    """Return the table with what is needed to read it."""
    rows = [
        _row(each.name, run.trials[each.name]) for each in CONTENDERS if each.name in run.trials
    ]
    lines = [_line(_HEAD), _line(["---"] * 2 + ["---:"] * (len(_HEAD) - 2)), *map(_line, rows)]
    return "\n".join([*lines, "", *_notes(run)]) + "\n"


def _row(name: str, trials: Sequence[Figures]) -> list[str]:
    contender = BY_NAME[name]
    return [
        contender.title,
        contender.durability,
        _spread(trials, "enqueue"),
        _spread(trials, "enqueue_many"),
        _spread(trials, "drain"),
        _spread(trials, "drain_until_readable"),
        _spread(trials, "drain_cpu_us"),
        f"{_median(trials, 'start_p50')} / {_median(trials, 'start_p99')}",
        f"{_median(trials, 'result_p50')} / {_median(trials, 'result_p99')}",
        _memory(trials),
        _at_rest(trials),
        _median(trials, "tasks"),
    ]


def _notes(run: Run) -> list[str]:
    load = [trial["other_load"] for trials in run.trials.values() for trial in trials]
    rounds = max((len(trials) for trials in run.trials.values()), default=0)
    machine = ", ".join(f"{name} {value}" for name, value in run.machine.items())
    notes = [
        f"Median (least–greatest) of {rounds} rounds, contenders interleaved in shuffled order; "
        "two prefork children; a task that adds two numbers in a Flask app context; every result "
        "stored, read back and verified.",
        *_ratios(run),
        f"Machine: {machine}.",
        f"Other load before a trial: {_number(statistics.median(load))} % median, "
        f"{_number(max(load))} % at worst."
        if load
        else "",
        f"{run.began}, `{run.command}`.",
        *(f"**Failed:** {failure}" for failure in run.failures),
    ]
    return [f"- {note}" for note in notes if note]


def _ratios(run: Run) -> list[str]:
    """Compare drains round by round: the load of a moment then weighs on both sides."""
    reference = run.trials.get(REFERENCE, [])
    return [
        f"{BY_NAME[name].title} drains {_factor(trials, reference)} times as fast as "
        f"{BY_NAME[REFERENCE].title}."
        for name, trials in ((each.name, run.trials.get(each.name)) for each in CONTENDERS)
        if name.startswith("celeriac") and trials and reference
    ]


def _factor(trials: Sequence[Figures], reference: Sequence[Figures]) -> str:
    by_round = {trial["round"]: trial["drain"] for trial in reference}
    pairs = [(trial["drain"], by_round.get(trial["round"])) for trial in trials]
    return _summary([drain / other for drain, other in pairs if other])


def _memory(trials: Sequence[Figures]) -> str:
    text = f"{_median(trials, 'memory')} ({max(trial['processes'] for trial in trials):.0f})"
    server = _median(trials, "server_memory")
    return text if server == "0" else f"{text} + server {server}"


def _at_rest(trials: Sequence[Figures]) -> str:
    text = _median(trials, "rest_cpu")
    has_server = any(trial["server_memory"] for trial in trials)
    return f"{text} + server {_median(trials, 'rest_server_cpu')}" if has_server else text


def _spread(trials: Sequence[Figures], name: str) -> str:
    return _summary([trial[name] for trial in trials if name in trial])


def _median(trials: Sequence[Figures], name: str) -> str:
    values = [trial[name] for trial in trials if name in trial]
    return _number(statistics.median(values)) if values else "–"


def _summary(values: Sequence[float]) -> str:
    if not values:
        return "–"
    middle = _number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({_number(min(values))}–{_number(max(values))})"


def _number(value: float) -> str:
    """Return three digits' worth: more would be noise."""
    if value == 0:
        return "0"
    if value < 10:
        return f"{value:.1f}"
    return f"{round(value, 3 - len(str(int(value)))):,.0f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
