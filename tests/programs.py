"""Real programs that tests start, read and stop: above all, Celery's worker."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

import psutil
from waiting import wait_until

#: Given in seconds to a program that was asked to end.
STOP_TIMEOUT = 15.0


class Program:
    """A running program, its output in a file.

    It leads a process group of its own, so that nothing it started outlives the test.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log_path: Path,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> None:
        self.log_path = log_path
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                cwd=cwd,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def log(self) -> str:
        """Return what the program wrote so far."""
        return self.log_path.read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """Return its living children, a worker's pool for instance."""
        found = psutil.Process(self.pid).children(recursive=True) if self.running else []
        return [child for child in found if child.status() != psutil.STATUS_ZOMBIE]

    def wait_for_log(self, text: str, timeout: float = 20.0) -> None:
        """Wait until ``text`` stands in the log; fail if the program ends before."""
        wait_until(
            lambda: text in self.log or not self.running,
            timeout,
            message=lambda: f"{text!r} in this log:\n{self.log}",
        )
        if text not in self.log:
            code = self.process.returncode
            raise AssertionError(f"ended with {code} before it wrote {text!r}:\n{self.log}")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the program and all it started, as the system would without memory."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """Wait for the program to end by itself, and return its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s:\n{self.log}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = STOP_TIMEOUT) -> int:
        """Ask the program to end, and return its exit code; safe to call twice."""
        if self.running:
            self.send(number)
        try:
            return self.wait(timeout)
        finally:
            self.kill()


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Return this process's environment for a program; ``None`` takes a name out."""
    merged: dict[str, str | None] = {**os.environ, "PYTHONUNBUFFERED": "1", **(changes or {})}
    return {name: value for name, value in merged.items() if value is not None}


def celery_command(*args: str) -> list[str]:
    """Return the command line of ``celery …`` for this Python."""
    return [sys.executable, "-m", "celery", *args]


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    stdin: str = "",
    timeout: float = 30.0,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; fail with its output if it fails."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment(env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and done.returncode:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """Say whether something answers on a port."""
    with socket.socket() as caller:
        caller.settimeout(1)
        return caller.connect_ex((host, port)) == 0
