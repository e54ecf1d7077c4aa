"""What a worker does: read, summarise and mail an upload, and mail the digest of a day.

A worker that dies leaves its task to another, which runs it again from the start. Each task may
therefore run twice: what it writes replaces what it wrote, and a mail that is sent twice has the
same ``Message-ID``.
"""

from __future__ import annotations

import smtplib
import time
from collections.abc import Callable
from datetime import date
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

from celery import chain
from celery import Task

from celeriac import Celeriac

from . import mail
from . import store
from . import table

celery = Celeriac()

SECONDS_BETWEEN_REPORTS = 0.2
#: A mail server that answers so, or not at all, is asked again, later each time.
UNREACHABLE = (OSError, smtplib.SMTPException)


def process(upload_id: str) -> None:
    """Have an upload read, summarised and mailed, one step after the other."""
    steps = [
        read_upload.s(upload_id).set(task_id=step_id(upload_id, "read")),
        summarize_upload.s().set(task_id=step_id(upload_id, "summarize")),
        mail_summary.s().set(task_id=step_id(upload_id, "mail")),
    ]
    chain(*steps).on_error(record_failure.s(upload_id)).apply_async()


def step_id(upload_id: str, step: str) -> str:
    """Name the task that does a step, so that it can be asked about without a list of ids."""
    return f"{upload_id}-{step}"


@celery.task(bind=True)
def read_upload(self: Task[Any, Any], upload_id: str) -> str:
    """Read the uploaded file into a table, and report the progress on the way."""
    upload = store.get(upload_id)
    with store.replacing(upload.table) as unfinished:
        table.load(upload.csv, unfinished, _reporter(self))
    return upload_id


@celery.task
def summarize_upload(upload_id: str) -> str:
    """Summarise the table that :func:`read_upload` made."""
    upload = store.get(upload_id)
    upload.save_summary(table.summarize(upload.table))
    return upload_id


@celery.task(autoretry_for=UNREACHABLE, retry_backoff=True, max_retries=8)
def mail_summary(upload_id: str) -> str:
    """Mail the summary that :func:`summarize_upload` made."""
    upload = store.get(upload_id)
    if upload.mail_id is None:
        upload.save_mail_id(mail.send_summary(upload))
    return upload_id


@celery.task(autoretry_for=UNREACHABLE, retry_backoff=True, max_retries=8)
def send_digest(day: str | None = None) -> str:
    """Mail a list of a day's uploads.

    :param day: an ISO date; without it, yesterday (UTC).
    """
    if day is None:
        day = str(datetime.now(timezone.utc).date() - timedelta(days=1))
    return mail.send_digest(day, store.of_day(date.fromisoformat(day)))


@celery.task
def record_failure(request: Any, error: Exception, traceback: Any, upload_id: str) -> None:
    """Keep why a step failed longer than Celery keeps its result."""
    store.get(upload_id).save_error(explain(error))


def explain(error: object) -> str:
    """Say why a step failed, to the person who sent the file."""
    return str(error) if isinstance(error, table.BadFile) else "Something went wrong on our side."


def _reporter(task: Task[Any, Any]) -> Callable[[int, int], None]:
    """Make a function that stores the progress of *task*, a few times a second at most."""
    next_report = 0.0

    def report(current: int, total: int) -> None:
        nonlocal next_report
        if time.monotonic() < next_report:
            return
        next_report = time.monotonic() + SECONDS_BETWEEN_REPORTS
        task.update_state(state="PROGRESS", meta={"current": current, "total": total})

    return report
