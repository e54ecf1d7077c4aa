"""The uploads, each in a folder of its own under the instance folder.

A folder is named after the upload's id, never after what the person called the file. A file
appears in it complete or not at all, so that a step that is run again after a crash finds
either its whole result or none of it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any

from flask import current_app
from werkzeug.datastructures import FileStorage


@dataclass(frozen=True)
class Upload:
    """An uploaded file and what became of it."""

    id: str
    filename: str
    received: datetime

    @property
    def folder(self) -> Path:
        return _root() / self.id

    @property
    def csv(self) -> Path:
        """The file as it came."""
        return self.folder / "upload.csv"

    @property
    def table(self) -> Path:
        """The rows of the file, as a SQLite table."""
        return self.folder / "table.sqlite3"

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.csv.stat().st_size

    @property
    def summary(self) -> dict[str, Any] | None:
        """What :func:`uploads.table.summarize` found, when it is there."""
        text = _read(self.folder / "summary.json")
        return None if text is None else json.loads(text)

    @property
    def error(self) -> str | None:
        """Why the upload could not be finished, for the person who sent it."""
        return _read(self.folder / "error.txt")

    @property
    def mail_id(self) -> str | None:
        """``Message-ID`` of the mail that was sent about it, when it was sent."""
        return _read(self.folder / "mail_id.txt")

    def save_summary(self, summary: dict[str, Any]) -> None:
        _write(self.folder / "summary.json", json.dumps(summary, indent=2))

    def save_error(self, error: str) -> None:
        _write(self.folder / "error.txt", error)

    def save_mail_id(self, mail_id: str) -> None:
        _write(self.folder / "mail_id.txt", mail_id)

    def remove(self) -> None:
        """Forget the upload and everything made from it."""
        shutil.rmtree(self.folder)


def add(file: FileStorage) -> Upload:
    """Keep an uploaded file; the upload is listed once it is completely written."""
    filename = _displayable(file.filename or "")
    upload = Upload(str(uuid.uuid4()), filename, datetime.now(timezone.utc))
    upload.folder.mkdir(parents=True)
    file.save(upload.csv)
    record = {"filename": upload.filename, "received": upload.received.isoformat()}
    _write(upload.folder / "upload.json", json.dumps(record))
    return upload


def find(upload_id: str) -> Upload | None:
    """Find an upload by its id."""
    text = _read(_root() / upload_id / "upload.json")
    if text is None:
        return None
    record = json.loads(text)
    return Upload(upload_id, record["filename"], datetime.fromisoformat(record["received"]))


def get(upload_id: str) -> Upload:
    """Find an upload that must be there."""
    upload = find(upload_id)
    if upload is None:
        raise LookupError(f"There is no upload {upload_id}.")
    return upload


def newest() -> list[Upload]:
    """List all uploads, the newest first."""
    found = [find(path.parent.name) for path in _root().glob("*/upload.json")]
    return sorted(filter(None, found), key=lambda upload: upload.received, reverse=True)


def of_day(day: date) -> list[Upload]:
    """List the uploads received on a day (UTC), the oldest first."""
    return [upload for upload in reversed(newest()) if upload.received.date() == day]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write in place of *path*, which it replaces when all went well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _root() -> Path:
    return Path(current_app.instance_path) / "uploads"


def _displayable(filename: str) -> str:
    """Keep what can stand on one line of a page or a mail: the name is only ever shown."""
    return "".join(character for character in filename if character.isprintable())[-100:]


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(text, "utf-8")
