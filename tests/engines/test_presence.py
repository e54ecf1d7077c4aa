"""The presence files on a disk that takes nothing more."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celeriac.engines.presence import Presence


@contextmanager
def no_room() -> Iterator[None]:
    """Have every file refuse to grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_nobody_from_sleeping(tmp_path: Path) -> None:
    presence = Presence(tmp_path)
    presence.hold("worker")

    with no_room():
        presence.sleeps_on("worker", 0, 3)

    assert presence.bell_slot("worker", 0) is None
    presence.sleeps_on("worker", 0, 3)
    assert presence.bell_slot("worker", 0) == 3
    presence.close()
