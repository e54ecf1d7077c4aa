"""The queue file keeps its locks, whoever opens and closes it."""

from __future__ import annotations

import stat
import sys
import threading
from pathlib import Path

from programs import run

from celeriac.engines import open_engine
from celeriac.engines.base import Message

COUNT = """
import sys
from celeriac.engines import open_engine

print(open_engine(sys.argv[1]).queue_sizes(["q"])["q"])
"""


def test_a_second_thread_does_not_give_up_the_locks_of_the_first(queue_url: str) -> None:
    # The kernel drops all locks of a process on a file when it closes any descriptor of it.
    # Another process that closed the file then deleted the log under the first one's feet.
    engine = open_engine(queue_url)

    def publish() -> None:
        engine.publish([Message("q", "{}", "x")])

    def count_elsewhere() -> str:
        return run([sys.executable, "-c", COUNT, queue_url]).stdout.strip()

    publish()
    thread = threading.Thread(target=publish)
    thread.start()
    thread.join()
    assert count_elsewhere() == "2"

    publish()

    assert count_elsewhere() == "3"


def test_queue_file_is_for_its_owner_only(queue_url: str, queue_path: Path) -> None:
    open_engine(queue_url).publish([Message("q", "{}", "x")])

    assert stat.S_IMODE(queue_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(queue_path.with_name(f"{queue_path.name}-wal").stat().st_mode) == 0o600
    assert [path for path in queue_path.parent.iterdir() if "sqlite3." in path.name] == [
        queue_path.with_name(f"{queue_path.name}.d")
    ]
