"""``python -m stops --stops 50 --seed 7``: see :mod:`stops`."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from stops.report import report
from stops.run import run


def main() -> int:
    """Stop workers; return 1 if a promise was broken."""
    options = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="celeriac-stops-"))
    done = run(
        folder,
        stops=options.stops,
        seed=options.seed,
        grace=options.grace,
        concurrency=options.concurrency,
        pool=options.pool,
    )
    if report(done, options):
        print(f"The queue file, the journal and all logs are kept in {folder}.")
        return 1
    shutil.rmtree(folder)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make stops", description=__doc__)
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--grace", type=float, default=3.0, help="worker_grace_period, seconds")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--pool", default="", help="prefork unless given")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
