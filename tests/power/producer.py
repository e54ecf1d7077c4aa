"""Sends tasks, and notes each that was confirmed, and each result that was seen."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from faults.program import early
from faults.program import late

#: Of so many tasks the result of one is waited for.
WAITED_FOR = 10
# The recorder asks where a line was written after it was: another thread's must not come between,
# or one of the two takes the other's place in the record.
_noting = threading.Lock()


def main(folder: Path, seconds: float) -> None:
    """Send from three threads for so many seconds."""
    file = os.open(folder / "confirmed", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    deadline = time.monotonic() + seconds
    threads = [threading.Thread(target=send, args=(file, deadline)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def send(file: int, deadline: float) -> None:
    """Send until the deadline."""
    count = 0
    while time.monotonic() < deadline:
        count += 1
        # Those that are due tomorrow stay messages.
        countdown = 86400 if count % 5 == 0 else None
        result = (early, late)[count % 2].apply_async((0,), countdown=countdown)
        note(file, "sent", result.id)
        if not countdown and count % WAITED_FOR == 1:
            result.get(timeout=30)
            note(file, "seen", result.id)


def note(file: int, what: str, task_id: str) -> None:
    """Append a line by one write, which the record holds in its place among the others."""
    with _noting:
        os.write(file, f"{what} {task_id} {time.time():.6f}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
