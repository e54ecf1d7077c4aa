"""Processes in a namespace of their own, the first of which is process 1, as in a container."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys

import psutil
from programs import Program
from waiting import wait_until

#: Put before a command, it makes this process 1. All that it started ends with it.
ALONE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@functools.cache
def why_not() -> str:
    """Return why this can not be had here; nothing if it can."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "there is no unshare here"
    if os.geteuid() != 0:
        return "only root may make namespaces of processes"
    done = subprocess.run([*ALONE, "true"], capture_output=True, text=True)
    return f"no namespace to be had: {done.stderr.strip()}" if done.returncode else ""


def process_1(program: Program) -> psutil.Process:
    """Return the process that is number 1 in the namespace of a program."""
    (process,) = wait_until(psutil.Process(program.pid).children)
    return process
