"""``python -m benchmarks``: measure Celeriac beside stock Celery, and print a table.

Every trial is a process of its own, so that no contender inherits another's connections,
imports or garbage. A round is one trial of each contender, in shuffled order.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.contenders import BY_NAME
from benchmarks.contenders import Contender
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders import REDIS_URL
from benchmarks.queues import connect_redis
from benchmarks.report import markdown
from benchmarks.report import Run
from benchmarks.trial import Figures
from benchmarks.trial import Plan
from benchmarks.worker import ROOT

#: Where the queue files go unless told otherwise: unlike /tmp, seldom in memory.
_FOLDER = Path("/var/tmp")


def main() -> int:
    """Run the benchmark; return 1 if any trial failed."""
    options = _parse(sys.argv[1:])
    contenders = [BY_NAME[name] for name in options.only]
    try:
        machine.refuse_unreal_disk(options.folder)
        _refuse_used_redis(contenders)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    run = Run(_command(), _now(), machine.describe(options.folder))
    for number in range(1, options.rounds + 1):
        _round(number, contenders, options, run)
        run.save(options.output.with_suffix(".json"))
    table = markdown(run)
    options.output.with_suffix(".md").write_text(table)
    print(table)
    return 1 if run.failures else 0


def _round(
    number: int, contenders: Sequence[Contender], options: argparse.Namespace, run: Run
) -> None:
    for contender in random.sample(contenders, len(contenders)):
        _tell(f"round {number} of {options.rounds}: {contender.name}")
        with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
            try:
                figures = _trial(_plan(contender, folder, options))
            except RuntimeError as error:
                _tell(str(error))
                run.failures.append(f"{contender.name}, round {number}: {_last_line(error)}")
            else:
                figures["round"] = number
                run.trials.setdefault(contender.name, []).append(figures)
                _tell(f"  drained {figures['drain']:,.0f}/s")


def _trial(plan: Plan) -> Figures:
    """Run one trial in a new process; raise :exc:`RuntimeError` with what it said."""
    environment = BY_NAME[plan.contender].environment(Path(plan.folder))
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.trial"],
        cwd=ROOT,
        env={**os.environ, **environment},
        input=json.dumps(dataclasses.asdict(plan)),
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise RuntimeError(process.stderr[-4000:])
    figures: Figures = json.loads(process.stdout.splitlines()[-1])
    return figures


def _plan(contender: Contender, folder: str, options: argparse.Namespace) -> Plan:
    full = 2_000 if options.quick else options.tasks
    tasks = max(200, int(full * (1.0 if options.equal else contender.scale)))
    return Plan(
        contender=contender.name,
        folder=folder,
        tasks=tasks,
        singles=min(2_000, tasks // 2),
        calls=50 if options.quick else 200,
        call_seconds=5.0 if options.quick else 15.0,
        rest_seconds=2.0 if options.quick else 10.0,
    )


def _refuse_used_redis(contenders: Sequence[Contender]) -> None:
    """Raise :exc:`ValueError` rather than empty a database that holds somebody's keys."""
    if not any(contender.kind == "redis" for contender in contenders):
        return
    if connect_redis(REDIS_URL).dbsize():
        raise ValueError(
            f"{REDIS_URL} is not empty, and this benchmark empties the database it uses: "
            "name an empty one in BENCHMARK_REDIS_URL"
        )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="few tasks: does it work at all?")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--tasks", type=int, default=20_000, help="to drain; %(default)s")
    parser.add_argument(
        "--equal", action="store_true", help="as many tasks for the slow contenders too"
    )
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="for the queue files")
    parser.add_argument("--output", type=Path, default=Path("benchmark"), help="of .json and .md")
    return parser.parse_args(arguments)


def _command() -> str:
    return " ".join(["python -m benchmarks", *map(shlex.quote, sys.argv[1:])])


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _last_line(error: RuntimeError) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
