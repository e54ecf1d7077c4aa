"""``python -m contention --minutes 10``: see :mod:`contention`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from faults.report import quantile

from contention.run import Measured
from contention.run import run


def main() -> int:
    """Measure and print; return 1 if anybody was locked out, or a task is not done."""
    options = _arguments()
    with tempfile.TemporaryDirectory(prefix="celeriac-contention-") as name:
        found = run(
            Path(name),
            producers=options.producers,
            workers=options.workers,
            seconds=options.minutes * 60,
        )
    _report(options, found)
    return 1 if found.trouble or found.unfinished else 0


def _report(options: argparse.Namespace, found: Measured) -> None:
    p50, p99, p999 = (quantile(found.delays, part) * 1000 for part in (0.5, 0.99, 0.999))
    rows = {
        "producers, workers": f"{options.producers}, {options.workers}",
        "tasks": f"{len(found.delays):,}",
        "of them unfinished": found.unfinished,
        "lines of trouble in logs": len(found.trouble),
        "delay(), ms, p50 / p99 / p99.9": f"{p50:.1f} / {p99:.1f} / {p999:.1f}",
        "delay(), ms, longest": f"{found.delays[-1] * 1000:.1f}",
    }
    for name, value in rows.items():
        print(f"{name:32} {value}")
    print("\n".join(found.trouble[:10]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make contention", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--producers", type=int, default=8)
    parser.add_argument("--workers", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
