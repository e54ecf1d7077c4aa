"""``python -m faults --minutes 30 --seed 7``: see :mod:`faults`."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from faults.arena import Plan
from faults.report import report
from faults.run import run


def main() -> int:
    """Run the faults; return 1 if a promise was broken."""
    options = vars(_arguments())
    markdown = options.pop("markdown")
    plan = Plan(seconds=options.pop("minutes") * 60, **options)
    folder = Path(tempfile.mkdtemp(prefix="celeriac-faults-"))
    done = run(folder, plan)
    if report(done, plan, markdown=markdown):
        print(f"The queue file (or disk.img, which holds it), journal and logs are in {folder}.")
        return 1
    shutil.rmtree(folder)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--pause", type=float, default=0.8, help="mean seconds between two faults")
    parser.add_argument("--durability", choices=["full", "normal"], default="full")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--markdown", action="store_true", help="a table for a page")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
