"""What a fresh engine finds after a cut, and what of it is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from faults.story import integrity

from celeriac.engines import open_engine
from power.replay import Cut


class Finding(NamedTuple):
    """What a cut did."""

    #: After how many operations, and what became of what was not synced.
    moment: int
    fate: str
    #: How many messages had been confirmed, and how many results had been seen.
    confirmed: int
    seen: int
    #: Seconds before the cut at which what is missing was confirmed.
    missing: list[float]
    #: Results that callers had seen, and that are gone.
    unseen: int
    #: What SQLite says of the file: ``ok``.
    integrity: str


def check(cut: Cut, folder: Path, durability: str) -> Finding:
    """Put the files back, open them as the next worker would, and look."""
    folder.mkdir()
    try:
        for name, content in cut.files.items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
        return _look(cut, folder, durability)
    finally:
        shutil.rmtree(folder)


def _look(cut: Cut, folder: Path, durability: str) -> Finding:
    lines = [line.split() for line in cut.confirmed.decode().splitlines()]
    sent = {task_id: float(at) for what, task_id, at in lines if what == "sent"}
    seen = [task_id for what, task_id, _ in lines if what == "seen"]
    engine = open_engine(f"sqlite:///{folder}/queue.sqlite3?durability={durability}")
    try:
        stored = {task.task_id for task in engine.list_tasks(limit=10**9)}
        results = engine.get_results([*sent]) if sent else {}
    finally:
        engine.close()
    now = max(sent.values(), default=0.0)
    missing = [now - at for task_id, at in sent.items() if task_id not in stored | results.keys()]
    unseen = sum(task_id not in results or results[task_id].state != "SUCCESS" for task_id in seen)
    return Finding(cut.moment, cut.fate, len(sent), len(seen), missing, unseen, integrity(folder))
