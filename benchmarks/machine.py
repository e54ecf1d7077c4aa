"""What the figures depend on: the machine, the versions, the disk, and who else is running."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import statistics
import time
from pathlib import Path

import psutil

_PACKAGES = (
    *("celeriac", "celery", "kombu", "billiard", "flask", "redis", "hiredis", "amqp", "sqlalchemy"),
    *("huey", "rq", "dramatiq", "taskiq", "taskiq-redis", "saq", "procrastinate", "psycopg"),
)
_NOT_A_DISK = {"tmpfs", "ramfs", "overlay", "nfs", "nfs4", "cifs", "9p"}


def describe(folder: Path) -> dict[str, str]:
    """Return the machine in words, for the report."""
    return {
        "processor": f"{os.cpu_count()} × {_processor()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "disk": f"{file_system(folder)}, fsync p50 {fsync_milliseconds(folder):.2f} ms",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **_versions(),
    }


def file_system(folder: Path) -> str:
    """Return the type of the file system that holds ``folder``."""
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    holders = (str(parent) for parent in (folder.resolve(), *folder.resolve().parents))
    return next((mounts[holder] for holder in holders if holder in mounts), "unknown")


def refuse_unreal_disk(folder: Path) -> None:
    """Raise :exc:`ValueError` where a commit costs nothing, or goes over a network."""
    kind = file_system(folder)
    if kind in _NOT_A_DISK:
        raise ValueError(f"{folder} is on {kind}, not on a disk: name another with --folder")


def fsync_milliseconds(folder: Path) -> float:
    """Return the median time of writing 4 KiB and flushing it to the disk."""
    path = folder / "fsync"
    with path.open("wb", buffering=0) as file:
        times = [_timed_fsync(file.fileno()) for _ in range(100)]
    path.unlink()
    return statistics.median(times) * 1e3


def other_load(seconds: float = 1.0) -> float:
    """Return how busy the machine is, in percent of all its processors, while nothing is done."""
    return float(psutil.cpu_percent(interval=seconds))


def _timed_fsync(descriptor: int) -> float:
    began = time.perf_counter()
    os.write(descriptor, b"x" * 4096)
    os.fsync(descriptor)
    return time.perf_counter() - began


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
