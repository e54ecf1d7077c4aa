"""Celery's own worker, with its own pool and consumer, in a thread of the test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from celery import Celery
from celery import signals
from celery.contrib.testing.worker import start_worker

from celeriac.commands import _choose_parts


@contextmanager
def stock_worker(app: Celery) -> Iterator[Any]:
    """Run a stock worker of the app, as if Celeriac's command line were not installed."""
    app.conf.broker_connection_retry_on_startup = True
    signals.worker_init.disconnect(_choose_parts, dispatch_uid="celeriac.worker")
    # With a receiver Celery leaves logging alone, which belongs to pytest.
    signals.setup_logging.connect(_leave_logging)
    try:
        with (
            mock.patch.dict(os.environ),  # Celery notes its log level there.
            start_worker(app, pool="solo", perform_ping_check=False) as worker,
        ):
            yield worker
    finally:
        signals.setup_logging.disconnect(_leave_logging)
        signals.worker_init.connect(_choose_parts, weak=False, dispatch_uid="celeriac.worker")


def _leave_logging(**kwargs: Any) -> None:
    pass
