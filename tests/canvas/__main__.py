"""Run random canvases on a real worker: ``python -m tests.canvas --count 1000 --seed 1``.

With ``--stock URL`` they run on Celery's own worker as well, and outcomes are compared.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from canvas.checking import Ground
from canvas.checking import Report
from canvas.checking import repro
from canvas.plans import DEATHS
from canvas.plans import Generator
from canvas.plans import Plan
from canvas.plans import WAYS
from canvas.plans import ways_in

#: How many canvases are under way at once.
BATCH = 50


def main() -> int:
    options = _options()
    warnings.simplefilter("ignore")
    seeds = options.only or [f"{options.seed}:{n}" for n in range(options.count)]
    ways = WAYS | DEATHS if options.deaths else WAYS
    plans = [(seed, Generator(seed, ways).plan(options.depth)) for seed in seeds]
    kinds = sum((ways_in(plan) for _, plan in plans), Counter[str]())
    print(f"seed {options.seed}: {len(plans)} canvases of {dict(kinds.most_common())}", flush=True)
    reports = _run(plans, options.folder)
    failures = _tell(reports)
    if options.stock:
        _compare(reports, _run(plans, options.folder, options.stock))
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.canvas", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--deaths", action="store_true", help="kill processes, too")
    parser.add_argument("--only", nargs="+", help="run these canvases, by their seeds")
    parser.add_argument("--stock", help="the URL of a Redis to compare with")
    parser.add_argument("--folder", type=Path, help="keep the journal and the logs there")
    return parser.parse_args()


def _run(plans: list[tuple[str, Plan]], kept: Path | None, stock: str = "") -> list[Report]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = (kept or Path(temporary)) / ("stock" if stock else "ours")
        folder.mkdir(parents=True)
        ground = Ground(
            folder, stock, queue=f"canvas-{folder.stat().st_ino}" if stock else "celery"
        )
        ground.with_deaths = any(ways_in(plan).keys() & DEATHS for _, plan in plans)
        worker = ground.start()
        reports: list[Report] = []
        try:
            begun = time.monotonic()
            for at in range(0, len(plans), BATCH):
                reports += ground.run(plans[at : at + BATCH])
                print(".", end="", flush=True)
            print(f" {time.monotonic() - begun:.0f} s", flush=True)
            print(f"{ground.phantoms} ids are in no message")
            if not stock:
                print("; ".join(ground.leftovers()) or "nothing is left in the store")
        finally:
            worker.stop()
            ground.close()
        return reports


def _tell(reports: list[Report]) -> int:
    wrong = [report for report in reports if report.complaints]
    for report in wrong:
        print(repro(report))
    failed = sum(isinstance(report.outcome, dict) for report in reports)
    ids = sum(len(report.sent.ids) for report in reports)
    slowest = max(report.delay for report in reports)
    print(
        f"{len(reports)} canvases, {ids} ids, {failed} canvases failed as foreseen or not; "
        f"the slowest id was terminal {slowest:.2f} s after its canvas's last task; "
        f"{len(wrong)} canvases are wrong"
    )
    return len(wrong)


def _compare(ours: list[Report], stock: list[Report]) -> None:
    """Tell where stock Celery never ends, and where it ends otherwise."""
    hung, other = 0, 0
    for mine, its in zip(ours, stock, strict=True):
        if mine.complaints:
            print(f"canvas {mine.sent.seed} on stock: {'; '.join(its.complaints) or 'as foreseen'}")
        if its.outcome is None or any("not terminal" in each for each in its.complaints):
            hung += 1
        elif mine.outcome != its.outcome:
            other += 1
            print(f"canvas {mine.sent.seed}: {mine.outcome} here, {its.outcome} on stock")
            print(f"    {mine.sent.plan}")
    print(f"stock Celery leaves ids of {hung} canvases waiting; {other} others end otherwise")


if __name__ == "__main__":
    sys.exit(main())
