"""A wall clock that jumps, for programs that tests start: the machine's own is left alone."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).parent


class Clock:
    """The wall clock of programs started with its :attr:`env`.

    It jumps for all of them at the same moment, also for those that run. Their monotonic clocks
    go on as if nothing had happened, as when somebody sets the time of a machine.
    """

    def __init__(self, folder: Path) -> None:
        self._offset = folder / "clock-offset"
        self._library = folder / "clock.so"
        self._compile()
        self.set(0)

    @property
    def env(self) -> dict[str, str]:
        """What is to be in the environment of a program that goes by this clock."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_OFFSET": str(self._offset)}

    @property
    def offset(self) -> float:
        """How far it is ahead of the machine's clock (seconds)."""
        (nanoseconds,) = struct.unpack("=q", self._offset.read_bytes())
        return float(nanoseconds / 1e9)

    def time(self) -> float:
        """Return what the programs take for the time (Unix time)."""
        return time.time() + self.offset

    def jump(self, seconds: float) -> None:
        """Set it forward, or back if ``seconds`` are negative."""
        self.set(self.offset + seconds)

    def set(self, offset: float) -> None:
        """Let it be so far ahead of the machine's clock (seconds)."""
        # Not truncated: the programs have the file mapped.
        file = os.open(self._offset, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, struct.pack("=q", round(offset * 1e9)))
        finally:
            os.close(file)

    def _compile(self) -> None:
        source = str(HERE / "clock.c")
        command = ["gcc", "-shared", "-fPIC", "-O2", "-o", str(self._library), source, "-ldl"]
        subprocess.run(command, check=True)
