"""The worker's own process and thread: one task at a time, between two looks at its mail."""

from __future__ import annotations

import os
from typing import Any

from .child import make_claimant
from .claimant import Claimant
from .pool import Pool
from .pool import stopping

#: How long remote control may at worst wait for a worker that has nothing to do (seconds).
LOOK_SOLO = 0.1


class SoloPool(Pool):
    """One child, which is the worker itself."""

    signal_safe = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.limit = 1
        self._claimant: Claimant | None = None

    def slots(self) -> list[int]:
        return [0] if self._claimant else []

    def add_child(self) -> None:
        self._claimant = make_claimant(self.ready(), 0, lambda: self.orders)

    def tell(self) -> None:
        """Nothing to do: the claimant asks before each claim."""

    def finish(self, timeout: float) -> None:
        """Nothing to wait for: whoever calls this has interrupted the task."""

    def tick(self) -> float:
        claimant = self._claimant
        # One batch takes a few milliseconds, unless a task takes longer, which is what solo means.
        if claimant is not None and not claimant.step():
            claimant.wait(LOOK_SOLO)
        return 0.0

    def on_stop(self) -> None:
        self.orders = stopping(self.orders)
        claimant, self._claimant = self._claimant, None
        if claimant is not None:
            claimant.loop()
            self.on_death(0, os.getpid(), "the task ended the worker")

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        info.update({"max-concurrency": 1, "processes": [os.getpid()]})
        return info
