"""``python -m benchmarks``: measure Celeriac beside its peers, and print tables.

Every trial is a process of its own, so that no contender inherits another's connections,
imports or garbage. A round is one trial of each workload and contender, in shuffled order.
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
from benchmarks.plot import svg
from benchmarks.report import markdown
from benchmarks.run import number
from benchmarks.run import Run
from benchmarks.run import Trial
from benchmarks.servers import SERVERS
from benchmarks.stage import Figures
from benchmarks.stage import Plan
from benchmarks.worker import ROOT
from benchmarks.workloads import WORKLOADS

#: Where the queue files go unless told otherwise: unlike /tmp, seldom in memory.
_FOLDER = Path("/var/tmp")


def main() -> int:
    """Run the benchmark; return 1 if any trial failed."""
    options = _parse(sys.argv[1:])
    run = Run.load(options.again) if options.again else Run(_command(), _now(), {})
    if not options.again:
        try:
            _measure(options, run)
        except ValueError as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return 2
    options.output.with_suffix(".md").write_text(markdown(run))
    options.output.with_suffix(".svg").write_text(svg(run))
    _tell(f"written: {options.output} with the endings .json, .md and .svg")
    print(run.json() if options.json else markdown(run))
    return 1 if run.failures else 0


def _measure(options: argparse.Namespace, run: Run) -> None:
    """Do all rounds, or leave the contenders that are not here out of them."""
    if not options.quick:
        machine.refuse_unreal_disk(options.folder)
    contenders = [each for each in map(BY_NAME.__getitem__, options.only) if _is_here(each, run)]
    servers = sorted({name for contender in contenders for name in contender.servers})
    for name in servers:
        SERVERS[name].refuse_used()
    run.machine = {
        **machine.describe(options.folder),
        **{f"{name} server": SERVERS[name].describe() for name in servers},
    }
    for turn in range(1, options.rounds + 1):
        _round(turn, contenders, options, run)


def _is_here(contender: Contender, run: Run) -> bool:
    """Say whether the contender can be measured; tell why if not."""
    reasons = list(contender.missing())
    if reasons:
        run.left_out.append(f"{contender.name}, because {' and '.join(reasons)}")
        _tell(f"left out: {run.left_out[-1]}")
    return not reasons


def _round(
    turn: int, contenders: Sequence[Contender], options: argparse.Namespace, run: Run
) -> None:
    trials = [(each, workload) for each in contenders for workload in options.workloads]
    for contender, workload in random.sample(trials, len(trials)):
        with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
            try:
                figures = _trial(_plan(contender, workload, folder, options))
            except RuntimeError as error:
                failure = f"{contender.name}, {workload}, round {turn}: {_last_line(error)}"
                run.failures.append(failure)
                _tell(f"{error}\nfailed: {failure}")
            else:
                run.trials.append(Trial(contender.name, workload, turn, figures))
                shown = ", ".join(f"{name} {number(value)}" for name, value in figures.items())
                _tell(f"{turn}/{options.rounds} {contender.name}, {workload}: {shown}")
        run.save(options.output.with_suffix(".json"))


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


def _plan(contender: Contender, workload: str, folder: str, options: argparse.Namespace) -> Plan:
    scale = 1.0 if options.equal else contender.scale
    quick = options.quick

    def scaled(full: int, quickly: int) -> int:
        return max(100, int((quickly if quick else full) * scale))

    return Plan(
        contender=contender.name,
        workload=workload,
        folder=folder,
        tasks=scaled(options.tasks, 1_000),
        # Enough that a log which is written over and over has its full size: as long as the file
        # grows, each wait for the disk takes twice as long.
        singles=scaled(10_000, 200),
        many=scaled(100_000, 2_000),
        calls=20 if quick else 300,
        call_seconds=1.0 if quick else 10.0,
        seconds=0.5 if quick else 8.0,
        rest_seconds=0.2 if quick else 10.0,
        waiting=2_000 if quick else options.waiting,
        stored=2_000 if quick else options.stored,
        fill_seconds=2.0 if quick else options.fill_seconds,
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    names = [contender.name for contender in CONTENDERS]
    add("--rounds", type=int, default=3, help="default: %(default)s")
    add("--quick", action="store_true", help="few tasks: does it work at all?")
    add("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    workloads = list(WORKLOADS)
    add("--workloads", nargs="+", choices=workloads, default=workloads, metavar="WORKLOAD")
    add("--tasks", type=int, default=20_000, help="to drain; default: %(default)s")
    add("--waiting", type=int, default=1_000_000, help="the large backlog; default: %(default)s")
    add("--stored", type=int, default=1_000_000, help="results stored; default: %(default)s")
    add("--fill-seconds", type=float, default=60.0, help="at most, for both; %(default)s")
    add("--equal", action="store_true", help="as many tasks for the slow contenders too")
    add("--folder", type=Path, default=_FOLDER, help="for the queue files")
    add("--output", type=Path, default=Path("benchmark"), help="path without its ending")
    add("--json", action="store_true", help="print the figures as JSON, not as tables")
    add("--again", type=Path, metavar="JSON", help="measure nothing: tables of an earlier run")
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
