"""``python -m faults --minutes 30 --seed 7``: see :mod:`faults`."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from faults.report import report
from faults.run import run


def main() -> int:
    """Run the faults; return 1 if a promise was broken."""
    options = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="celeriac-faults-"))
    done = run(
        folder,
        seed=options.seed,
        seconds=options.minutes * 60,
        pause=options.pause,
        durability=options.durability,
        workers=options.workers,
        concurrency=options.concurrency,
    )
    broken = report(done, options)
    if broken:
        print(f"The queue file, the journal and all logs are kept in {folder}.")
        return 1
    shutil.rmtree(folder)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--pause", type=float, default=1.5, help="mean seconds between two faults")
    parser.add_argument("--durability", choices=["full", "normal"], default="full")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
