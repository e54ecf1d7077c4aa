"""Mails: sent over SMTP by the tasks, received by a small server, shown by the site.

The receiving server stands in for the mail server that a real site has. It keeps each mail as a
file in the instance folder; a mail that arrives twice replaces itself.
"""

from __future__ import annotations

import asyncio
import email
import hashlib
import signal
import smtplib
from collections.abc import Sequence
from datetime import datetime
from datetime import timezone
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime
from email.utils import localtime
from pathlib import Path
from typing import Any

import click
from aiosmtpd.controller import UnthreadedController
from flask import current_app
from flask import render_template
from flask.cli import with_appcontext

from . import store

DOMAIN = "uploads.example.org"


# Sending


def send_summary(upload: store.Upload) -> str:
    """Send the summary of an upload and return the mail's ``Message-ID``."""
    text = render_template("summary.txt", upload=upload, summary=upload.summary)
    return _send(f"<{upload.id}@{DOMAIN}>", f"Summary of {upload.filename}", text)


def send_digest(day: str, uploads: Sequence[store.Upload]) -> str:
    """Send the list of a day's uploads and return the mail's ``Message-ID``."""
    text = render_template("digest.txt", day=day, uploads=uploads)
    return _send(f"<digest-{day}@{DOMAIN}>", f"Uploads of {day}", text)


def _send(message_id: str, subject: str, text: str) -> str:
    message = EmailMessage()
    message["Message-ID"] = message_id
    message["Date"] = format_datetime(localtime())
    message["From"] = current_app.config["MAIL_SENDER"]
    message["To"] = current_app.config["MAIL_RECIPIENT"]
    message["Subject"] = subject
    message.set_content(text)
    host, port = current_app.config["MAIL_HOST"], current_app.config["MAIL_PORT"]
    with smtplib.SMTP(host, port, timeout=10) as server:
        server.send_message(message)
    return message_id


# Receiving


class Mailbox:
    """Keeps each mail that the server receives as a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        content: bytes = envelope.content
        message_id = email.message_from_bytes(content, policy=policy.default)["Message-ID"]
        path = self.folder / f"{key_of(message_id or content.hex())}.eml"
        with store.replacing(path) as unfinished:
            unfinished.write_bytes(content)
        return "250 Message accepted for delivery"


@click.command("receive-mail")
@click.option("--port", type=int, help="Without it, the one that the site sends to.")
@with_appcontext
def receive_mail(port: int | None) -> None:
    """Receive mail on this machine, for the site to show."""
    port = port or current_app.config["MAIL_PORT"]
    loop = asyncio.new_event_loop()
    server = UnthreadedController(Mailbox(_folder()), hostname="127.0.0.1", port=port, loop=loop)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, loop.stop)
    server.begin()
    click.echo(f"Receiving mail on 127.0.0.1:{port}")
    try:
        loop.run_forever()
    finally:
        server.end()
        loop.close()


# Showing


def key_of(message_id: str) -> str:
    """Name the file of a mail: safe, and the same each time that the mail arrives."""
    return hashlib.sha256(message_id.encode()).hexdigest()[:16]


def received() -> dict[str, EmailMessage]:
    """Return the received mails by their keys, the newest first."""
    mails = {path.stem: _parse(path) for path in _folder().glob("*.eml")}
    return dict(sorted(mails.items(), key=lambda item: date_of(item[1]), reverse=True))


def date_of(message: EmailMessage) -> datetime:
    """When a mail was written, as it says itself."""
    header = message["Date"]
    written: datetime | None = header and header.datetime
    return (written or datetime.fromtimestamp(0)).astimezone(timezone.utc)


def text_of(message: EmailMessage) -> str:
    """The mail's plain text."""
    body = message.get_body(("plain",))
    return "" if body is None else body.get_content()


def _parse(path: Path) -> EmailMessage:
    return email.message_from_bytes(path.read_bytes(), policy=policy.default)


def _folder() -> Path:
    return Path(current_app.instance_path) / "mails"
