"""Sends as fast as tasks are worked off, and notes how long each call took.

The times go to one file as doubles (seconds), the ids to another, and errors to the log.
"""

from __future__ import annotations

import sys
import time
from array import array
from pathlib import Path

from faults.program import celery
from faults.program import early

from celeriac.engines import EngineError
from celeriac.engines import open_engine

#: With so many waiting there is no need for more; looked at after so many calls.
ENOUGH, OFTEN = 500, 20


def main(path: Path, seconds: float) -> None:
    """Send for so many seconds."""
    engine = open_engine(celery.conf.broker_url)
    times, ids = array("d"), []
    deadline = time.monotonic() + seconds
    while (began := time.monotonic()) < deadline:
        try:
            result = early.delay(0)
        except (EngineError, ConnectionError, OSError) as exc:
            print(f"refused: {exc}", flush=True)
            continue
        times.append(time.monotonic() - began)
        ids.append(result.id)
        while len(ids) % OFTEN == 0 and sum(engine.queue_sizes().values()) > ENOUGH:
            time.sleep(0.05)
    path.with_suffix(".times").write_bytes(times.tobytes())
    path.with_suffix(".ids").write_text("\n".join(ids))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
