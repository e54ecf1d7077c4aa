"""Where a queue file may live: reading its URL, making it, and refusing what can not work.

SQLite's locks and shared memory do not work over network file systems; a queue there would lose
messages or run them twice. So that is found out at the opening, with advice.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from urllib.parse import unquote

from .base import EngineConfigurationError
from .base import EngineError

#: The file used when a URL names none.
DEFAULT_NAME = "celeriac.sqlite3"
#: Where Linux tells what is mounted; absent elsewhere.
MOUNTS = Path("/proc/self/mountinfo")

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
#: An empty queue file takes 0.1 MB.
_SMALLEST = 1_000_000

_NETWORK = frozenset(
    "nfs nfs4 cifs smb smb2 smb3 smbfs 9p afs ceph glusterfs lustre ncpfs sshfs fuse.sshfs "
    "fuse.glusterfs fuse.s3fs fuse.rclone davfs fuse.davfs2 gfs2 ocfs2 beegfs".split()
)
_ADVICE = (
    "SQLite can not lock files there, and messages would be lost or run twice. Put the queue "
    "file on a local disk, or use a broker for several machines (redis://, amqp://)."
)


@dataclass(frozen=True)
class Place:
    """A queue file and how to treat it, as its URL says."""

    path: Path
    #: Whether a commit survives the loss of power (``?durability=full``, the default) or only
    #: the death of every process (``?durability=normal``).
    full: bool = True
    #: How long an operation waits for the lock before it fails (seconds).
    busy_timeout: float = 30.0
    #: What it may hold before the oldest results are deleted early (bytes). A day's results of a
    #: hundred tasks a second fit into the default, and it leaves room on the small disk of a
    #: rented machine.
    max_size: int = 4_000_000_000

    @property
    def folder(self) -> Path:
        """The folder beside the file, for the bell and the presence files."""
        return self.path.with_name(self.path.name + ".d")


def parse_url(url: str) -> Place:
    """Read ``sqlite:///relative``, ``sqlite:////absolute`` and the options behind ``?``."""
    _, _, rest = url.partition("://")
    name, _, query = rest.partition("?")
    host, slash, file = name.partition("/")
    if host or ":memory:" in file:
        raise EngineConfigurationError(
            f"{url} names no file. Write sqlite:///queue.sqlite3 for a file in the instance "
            "folder, sqlite:////var/lib/app/queue.sqlite3 for an absolute path. A queue in "
            "memory could not be reached by a worker; for tests use a temporary file."
        )
    path = Path(unquote(file)) if slash and file else Path(DEFAULT_NAME)
    return Place(path.absolute(), **_options(url, query))


def _options(url: str, query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "durability" and value in ("full", "normal"):
            options["full"] = value == "full"
        elif name == "busy_timeout" and _is_seconds(value):
            options["busy_timeout"] = float(value)
        elif name == "max_size" and _bytes(value) >= _SMALLEST:
            options["max_size"] = _bytes(value)
        else:
            raise EngineConfigurationError(
                f"{name}={value} in {url} is not understood. The options are durability=full, "
                "durability=normal, busy_timeout=<seconds> and max_size=<bytes>, such as 500MB or "
                "2GB, at least 1MB."
            )
    return options


def _is_seconds(value: str) -> bool:
    return value.replace(".", "", 1).isdecimal()


def _bytes(value: str) -> int:
    """Read a size with or without a unit; one that is not understood is zero."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([kMGT]?)B?", value, re.IGNORECASE)
    if match is None:
        return 0
    return int(float(match[1]) * _UNITS[match[2].upper()])


def prepare(place: Place, mounts: Path = MOUNTS) -> None:
    """Make the file (mode 0600) and the folder beside it (0700), if they do not exist.

    :raises EngineError: when they can not be made, or not be used.
    """
    _refuse_network(place.path, mounts)
    try:
        _make(place.path)
        place.folder.mkdir(mode=0o700, exist_ok=True)
    except IsADirectoryError:
        raise EngineConfigurationError(
            f"{place.path} is a folder, and the queue needs a file. Name a file in broker_url."
        ) from None
    except (FileNotFoundError, NotADirectoryError) as exc:
        if os.path.isdir(place.path.parent):
            raise unwritable(place, exc) from exc
        raise EngineConfigurationError(
            f"The folder {place.path.parent} of the queue file does not exist. Create it, or name "
            "another file in broker_url."
        ) from None
    except OSError as exc:
        raise unwritable(place, exc) from exc


def unwritable(place: Place, exc: OSError) -> EngineError:
    """Return an error that says what to do about the system's."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_room(place.path)
    return EngineConfigurationError(
        f"The queue file {place.path} can not be written: {exc.strerror}. Give the user "
        f"that runs the application and its workers write access to {place.path.parent} and the "
        "files in it, or name another file in broker_url."
    )


def no_room(path: Path) -> EngineError:
    """Return the error of a full disk."""
    return EngineError(
        f"There is no room left for the queue file {path}. Nothing was written. Free some "
        "space on its disk; workers go on by themselves."
    )


def _make(path: Path) -> None:
    """Make the file, or see that it can be written, without opening it.

    Closing any descriptor of a file gives up all the locks that this process holds on it: another
    process would then take itself for the last user, and delete the log under our connections.
    """
    if path.is_dir():
        raise IsADirectoryError
    if path.exists():
        if not os.access(path, os.R_OK | os.W_OK):
            is_read_only = os.statvfs(path).f_flag & os.ST_RDONLY
            code = errno.EROFS if is_read_only else errno.EACCES
            raise OSError(code, os.strerror(code))
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    os.close(handle)
    try:
        os.link(name, path)
    except FileExistsError:
        pass  # Another thread or process was faster.
    finally:
        os.unlink(name)


def _refuse_network(path: Path, mounts: Path) -> None:
    kind = file_system(path, mounts)
    if kind in _NETWORK:
        raise EngineConfigurationError(
            f"The queue file {path} is on a network file system ({kind}). {_ADVICE}"
        )


def file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the type of the file system that ``path`` is on; ``None`` where it is not told."""
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    found, kind = "", None
    for line in lines:
        before, _, after = line.partition(" - ")
        # Blanks are written as octal escapes; all other characters stand for themselves.
        escaped = before.split(" ")[4].encode("latin-1", "backslashreplace")
        point = escaped.decode("unicode_escape")
        if len(point) >= len(found) and _contains(point, real):
            found, kind = point, after.split()[0]
    return kind


def _contains(point: str, path: str) -> bool:
    return point == "/" or path == point or path.startswith(point + "/")
