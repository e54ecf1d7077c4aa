"""Where a queue file may live, and what is said where it may not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from celeriac.engines import EngineConfigurationError
from celeriac.engines import EngineError
from celeriac.engines.base import Message
from celeriac.engines.place import file_system
from celeriac.engines.place import parse_url
from celeriac.engines.place import Place
from celeriac.engines.place import prepare
from celeriac.engines.sqlite import SQLiteEngine

NOBODY = 65534
ADVICE = (
    "SQLite can not lock files there, and messages would be lost or run twice. Put the queue file "
    "on a local disk, or use a broker for several machines (redis://, amqp://)."
)
MOUNTINFO = r"""
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:26 / /proc rw,nosuid - proc proc rw
40 22 0:30 / /mnt rw - tmpfs tmpfs rw
41 40 0:31 / /mnt/team rw,relatime shared:5 master:2 - nfs4 server:/team rw,vers=4.2
42 40 0:32 / /mnt/with\040blank rw - cifs //server/share rw
43 40 0:33 / /mnt/été\134x rw - fuse.sshfs me@server: rw
44 41 8:1 / /mnt/team/local rw - xfs /dev/sda1 rw
45 22 0:34 / /over rw - nfs server:/a rw
46 22 0:35 / /over rw - btrfs /dev/sdb rw
47 22 0:36 / /mnt/日本 rw - ceph server:/ rw
"""

#: Opens an engine in a program of its own: as another user, or with less room.
PROGRAM = """
import encodings.unicode_escape, os, sys  # As another user, Python itself may be out of reach.
from celeriac.engines import open_engine, EngineError
from celeriac.engines.base import Message

engine = open_engine(sys.argv[1])
exec(sys.argv[2])
try:
    for number in range(int(sys.argv[3])):
        engine.publish([Message("q", "{}", "x" * 5000)])
except EngineError as exc:
    print(type(exc).__name__, exc, sep=": ")
"""
AS_NOBODY = f"os.setgid({NOBODY}); os.setuid({NOBODY})"


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """Return a folder that other users can get to."""
    for each in (tmp_path, *tmp_path.parents[:2]):
        if each.owner() == tmp_path.owner():
            each.chmod(0o755)
    return tmp_path


def refused(place: Path) -> str:
    with closing(SQLiteEngine(f"sqlite:///{place}")) as engine:
        with pytest.raises(EngineConfigurationError) as caught:
            engine.publish([Message("q", "{}", "")])
        return str(caught.value)


def told(path: Path, setup: str, *, before: tuple[str, ...] = (), count: int = 1) -> str:
    command = [*before, sys.executable, "-c", PROGRAM, f"sqlite:///{path}", setup, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert not done.stderr, done.stderr
    return done.stdout.strip()


def unwritable(path: Path, why: str) -> str:
    return (
        f"EngineConfigurationError: The queue file {path} can not be written: {why}. Give the user "
        f"that runs the application and its workers write access to {path.parent} and the files "
        "in it, or name another file in broker_url."
    )


# URLs


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////var/lib/queue.db", "/var/lib/queue.db"),
        ("sqlite:////with%20blank/%3Fodd%23.db", "/with blank/?odd#.db"),
        ("sqlite:////a/été.db", "/a/été.db"),
    ],
)
def test_an_absolute_path_is_taken_as_it_is(url: str, path: str) -> None:
    assert parse_url(url) == Place(Path(path))


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///queue.db", "queue.db"),
        ("sqlite:///a/b.db", "a/b.db"),
        ("sqlite:///", "celeriac.sqlite3"),
        ("sqlite://", "celeriac.sqlite3"),
    ],
)
def test_a_relative_path_starts_at_the_working_directory(url: str, path: str) -> None:
    assert parse_url(url) == Place(Path.cwd() / path)


def test_options_are_read() -> None:
    assert parse_url("sqlite:////q?durability=normal&busy_timeout=0.5") == Place(
        Path("/q"), full=False, busy_timeout=0.5
    )
    assert parse_url("sqlite:////q?durability=full&busy_timeout=5").busy_timeout == 5.0


def test_what_is_not_said_is_safe() -> None:
    place = parse_url("sqlite:////q")

    assert (place.full, place.busy_timeout, place.max_size) == (True, 30.0, 4_000_000_000)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1000000", 1_000_000),
        ("2000kB", 2_000_000),
        ("500MB", 500_000_000),
        ("1.5G", 1_500_000_000),
        ("2 tb", 2_000_000_000_000),
    ],
)
def test_sizes_are_read_with_their_units(written: str, size: int) -> None:
    assert parse_url(f"sqlite:////q?max_size={written}").max_size == size


@pytest.mark.parametrize(
    "option",
    [
        *("durability=none", "busy_timeout=soon", "busy_timeout=", "busy_timeout=²", "x="),
        *("max_size=", "max_size=0", "max_size=9kB", "max_size=2XB", "max_size=-5MB", "max_size=²"),
    ],
)
def test_an_option_that_is_not_understood_is_refused(option: str) -> None:
    with pytest.raises(EngineConfigurationError) as caught:
        parse_url(f"sqlite:////q?{option}")

    assert str(caught.value) == (
        f"{option} in sqlite:////q?{option} is not understood. The options are durability=full, "
        "durability=normal, busy_timeout=<seconds> and max_size=<bytes>, such as 500MB or 2GB, "
        "at least 1MB."
    )


@pytest.mark.parametrize(
    "url", ["sqlite:///:memory:", "sqlite://:memory:", "sqlite://queue.db", "sqlite://host/q.db"]
)
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(EngineConfigurationError) as caught:
        parse_url(url)

    assert str(caught.value) == (
        f"{url} names no file. Write sqlite:///queue.sqlite3 for a file in the instance folder, "
        "sqlite:////var/lib/app/queue.sqlite3 for an absolute path. A queue in memory could not "
        "be reached by a worker; for tests use a temporary file."
    )


# File systems


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTINFO.lstrip(), "utf-8")
    return path


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/q.db", "ext4"),
        ("/mnt/q.db", "tmpfs"),
        ("/mnt/teammate/q.db", "tmpfs"),
        ("/mnt/team/a/q.db", "nfs4"),
        ("/mnt/team/local/q.db", "xfs"),
        ("/mnt/with blank/q.db", "cifs"),
        ("/mnt/été\\x/q.db", "fuse.sshfs"),
        ("/mnt/日本/q.db", "ceph"),
        ("/over/q.db", "btrfs"),
    ],
)
def test_the_file_system_of_a_path_is_told(mounts: Path, path: str, kind: str) -> None:
    assert file_system(Path(path), mounts) == kind


def test_a_link_is_followed(mounts: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/mnt/team")

    assert file_system(tmp_path / "link" / "q.db", mounts) == "nfs4"


def test_where_nothing_is_told_nothing_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing"

    assert file_system(Path("/mnt/team/q.db"), missing) is None
    prepare(Place(tmp_path / "q.db"), missing)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("/mnt/team", "nfs4"), ("/mnt/with blank", "cifs"), ("/mnt/日本", "ceph")],
)
def test_a_network_file_system_is_refused(mounts: Path, folder: str, kind: str) -> None:
    with pytest.raises(EngineConfigurationError) as caught:
        prepare(Place(Path(folder, "q.db")), mounts)

    assert str(caught.value) == (
        f"The queue file {folder}/q.db is on a network file system ({kind}). {ADVICE}"
    )


# Places that can not be used


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing" / "q.db") == (
        f"The folder {tmp_path}/missing of the queue file does not exist. Create it, or name "
        "another file in broker_url."
    )


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert refused(tmp_path / "file" / "q.db") == (
        f"The folder {tmp_path}/file of the queue file does not exist. Create it, or name "
        "another file in broker_url."
    )


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    assert refused(tmp_path) == (
        f"{tmp_path} is a folder, and the queue needs a file. Name a file in broker_url."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"not a database " * 100, b"SQLite format 3\0" + b"x" * 9000])
def test_a_file_that_is_no_database_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "q.db"
    path.write_bytes(content)

    assert refused(path) == damaged(path, "file is not a database")
    assert path.read_bytes() == content


def test_a_database_that_was_damaged_is_told(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with closing(SQLiteEngine(f"sqlite:///{path}")) as engine:
        engine.publish([Message("q", "{}", "x" * 100)] * 1000)
    content = bytearray(path.read_bytes())
    content[4096:] = b"x" * (len(content) - 4096)
    path.write_bytes(content)

    assert refused(path) == damaged(path, "database disk image is malformed")


def damaged(path: Path, text: str) -> str:
    return (
        f"The queue file {path} is damaged ({text}). Stop the workers, keep a copy, and try "
        f"'sqlite3 {path} .recover | sqlite3 recovered.sqlite3'; or move it away, and an empty "
        "one is made."
    )


needs_root = pytest.mark.skipif(
    "os.geteuid() != 0", reason="only root can act as another user, or mount"
)


@needs_root
def test_a_folder_that_can_not_be_written_is_told(open_folder: Path) -> None:
    path = open_folder / "q.db"

    assert told(path, AS_NOBODY) == unwritable(path, "Permission denied")


@needs_root
def test_a_folder_that_can_not_be_entered_is_told(open_folder: Path) -> None:
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    path = closed / "q.db"

    assert told(path, AS_NOBODY) == unwritable(path, "Permission denied")


@needs_root
def test_a_file_of_another_user_is_told(open_folder: Path) -> None:
    path = open_folder / "q.db"
    with closing(SQLiteEngine(f"sqlite:///{path}")) as engine:
        engine.queue_sizes()

    assert told(path, AS_NOBODY) == unwritable(path, "Permission denied")


@needs_root
def test_a_folder_beside_the_file_of_another_user_is_told(open_folder: Path) -> None:
    open_folder.chmod(0o777)
    path = open_folder / "q.db"
    (open_folder / "q.db.d").mkdir(mode=0o700)

    assert told(path, AS_NOBODY) == unwritable(path, "Permission denied")


@pytest.fixture
def mounted(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """Return what to write before a command so that it finds something mounted on the folder."""

    def command(options: str) -> tuple[str, ...]:
        mount = f"mount -t tmpfs -o {options} tmpfs {tmp_path}"
        before = ("unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh")
        tried = shutil.which("unshare") and subprocess.run([*before, "true"], capture_output=True)
        if not tried or tried.returncode:
            pytest.skip("mounting is not allowed here")
        return before

    return command


@needs_root
def test_a_disk_that_can_only_be_read_is_told(
    tmp_path: Path, mounted: Callable[[str], tuple[str, ...]]
) -> None:
    path = tmp_path / "q.db"

    assert told(path, "", before=mounted("ro")) == unwritable(path, "Read-only file system")


@needs_root
@pytest.mark.parametrize("size", ["4k", "8k", "16k", "64k", "128k", "256k", "512k"])
def test_a_full_disk_is_told_at_whatever_moment(
    tmp_path: Path, mounted: Callable[[str], tuple[str, ...]], size: str
) -> None:
    path = tmp_path / "q.db"

    text = told(path, "", before=mounted(f"size={size}"), count=200)

    assert text in (
        f"EngineError: There is no room left for the queue file {path}. Nothing was written. Free "
        "some space on its disk; workers go on by themselves.",
        f"EngineError: The disk refused to read or write the queue file {path} (disk I/O error). "
        "Nothing was written. See whether its disk is full or failing (df, dmesg).",
    )


def test_a_full_disk_loses_nothing_and_workers_go_on(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with closing(SQLiteEngine(f"sqlite:///{path}")) as engine:
        engine.publish([Message("q", "{}", "before")])
        limit(engine, pages=40)

        with pytest.raises(EngineError) as caught:
            engine.publish([Message("q", "{}", "x" * 500_000), Message("q", "{}", "small")])

        assert str(caught.value) == (
            f"There is no room left for the queue file {path}. Nothing was written. Free some "
            "space on its disk; workers go on by themselves."
        )
        assert engine.queue_sizes() == {"q": 1}
        limit(engine, pages=100_000)
        engine.publish([Message("q", "{}", "after")])
        assert engine.queue_sizes() == {"q": 2}


def limit(engine: SQLiteEngine, pages: int) -> None:
    with engine._connections.get() as connection:
        connection.db.execute(f"PRAGMA max_page_count = {pages}")
