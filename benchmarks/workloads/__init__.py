"""What is measured: each workload is one trial, on a :class:`benchmarks.stage.Stage` of its own."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.stage import Figures
from benchmarks.stage import Stage
from benchmarks.workloads import backlog
from benchmarks.workloads import drain
from benchmarks.workloads import enqueue
from benchmarks.workloads import latency
from benchmarks.workloads import mix
from benchmarks.workloads import rest
from benchmarks.workloads import stored

WORKLOADS: dict[str, Callable[[Stage], Figures]] = {
    "enqueue": enqueue.measure,
    "drain": drain.measure,
    "mix": mix.measure,
    "latency": latency.measure,
    "rest": rest.measure,
    "backlog": backlog.measure,
    "stored": stored.measure,
}
