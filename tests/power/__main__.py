"""``python -m power --cuts 500``: see :mod:`power`."""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import tempfile
from collections import Counter
from pathlib import Path

from faults.report import quantile

from power.check import check
from power.check import Finding
from power.recording import record
from power.replay import cuts


def main() -> int:
    """Cut, look, and print; return 1 if anything is missing that was promised."""
    options = _arguments()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="celeriac-power-") as name:
        folder = Path(name)
        operations = record(folder, options.seconds, options.durability)
        findings = [
            check(cut, folder / "after", options.durability)
            for cut in cuts(operations, options.cuts, rng)
        ]
    broken = [found for found in findings if found.integrity != "ok"]
    _report(options, len(operations), findings, broken)
    promised = options.durability == "full" and any(_lost(found) for found in findings)
    return 1 if broken or promised else 0


def _report(
    options: argparse.Namespace, count: int, findings: list[Finding], broken: list[Finding]
) -> None:
    ages = sorted(age for found in findings for age in found.missing)
    missing = sorted(len(found.missing) for found in findings)
    rows = {
        "seed": options.seed,
        "durability": options.durability,
        "writes and syncs recorded": f"{count:,}",
        "cuts": f"{len(findings):,}",
        "of them, by what was not synced": dict(Counter(f.fate for f in findings)),
        "confirmed messages looked for": f"{sum(f.confirmed for f in findings):,}",
        "confirmed messages missing": len(ages),
        "cuts after which any was missing": sum(map(bool, missing)),
        "missing after a cut, p50 / max": f"{quantile(missing, 0.5):.0f} / {max(missing)}",
        "confirmed before the cut, ms": f"{quantile(ages, 0.5) * 1000:.0f} / "
        f"{quantile(ages, 1.0) * 1000:.0f}",
        "results seen by callers, and gone": sum(f.unseen for f in findings),
        "damaged files": len(broken),
    }
    for name, value in rows.items():
        print(f"{name:36} {value}")
    for found in broken[:5]:
        print(f"    cut {found.moment} ({found.fate}): {found.integrity[:200]}")


def _lost(found: Finding) -> bool:
    return bool(found.missing or found.unseen)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make power", description=__doc__)
    parser.add_argument("--cuts", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=10.0, help="of work recorded")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--durability", choices=["full", "normal"], default="full")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
