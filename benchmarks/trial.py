"""One workload of one contender, measured once, in a process of its own.

``python -m benchmarks.trial`` reads a :class:`benchmarks.stage.Plan` and writes the figures, both
as JSON; ``benchmarks.__main__`` starts it.
"""

from __future__ import annotations

import contextlib
import json
import sys

from benchmarks.machine import other_load
from benchmarks.stage import Figures
from benchmarks.stage import Plan
from benchmarks.stage import Stage
from benchmarks.workloads import WORKLOADS


def run(plan: Plan) -> Figures:
    """Measure; raise if any result is missing or wrong."""
    load = other_load(min(1.0, plan.rest_seconds))
    with contextlib.closing(Stage(plan)) as stage:
        try:
            return {"other_load": load, **WORKLOADS[plan.workload](stage)}
        except Exception:
            print(stage.last_words(), file=sys.stderr)
            raise


if __name__ == "__main__":
    print(json.dumps(run(Plan(**json.load(sys.stdin)))))
