"""Procrastinate on PostgreSQL. It stores no results, so the task appends its answer to a file."""

from __future__ import annotations

import os

from procrastinate import App
from procrastinate import JobContext
from procrastinate import PsycopgConnector

from benchmarks.apps.body import timed_sum

app = App(connector=PsycopgConnector(conninfo=os.environ["BENCHMARK_BROKER_URL"]))
#: One write appends one line whole, whichever process wrote before.
_answers = os.open(os.environ["BENCHMARK_RESULT_BACKEND"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.task(pass_context=True)
async def add_together(context: JobContext, x: int, y: int) -> None:
    """Add two numbers."""
    os.write(_answers, f"{context.job.id} {timed_sum(x, y)}\n".encode())
