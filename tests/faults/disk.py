"""A small disk of its own for a run, which can be filled without filling anybody else's."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: More than a run of an hour writes (bytes). The image has holes: it takes what is written.
SIZE = 2 * 1024**3


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a file system of its own on a folder; say whether this process may.

    Its image, beside the folder, stays.
    """
    folder.mkdir()
    image = folder.with_suffix(".img")
    mounted = _mount(image, folder)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> Path:
    """Take all room on a disk; return the file to delete."""
    filler = folder / "filler"
    file = os.open(filler, os.O_WRONLY | os.O_CREAT, 0o600)
    size, piece = 0, SIZE
    try:
        while piece >= 512:
            try:
                os.posix_fallocate(file, size, piece)
                size += piece
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
                piece //= 2
    finally:
        os.close(file)
    return filler


def _mount(image: Path, folder: Path) -> bool:
    with image.open("wb") as file:
        file.truncate(SIZE)
    commands = (["mkfs.ext4", "-q", "-m", "0", image], ["mount", "-o", "loop", image, folder])
    try:
        return all(subprocess.run(each, capture_output=True).returncode == 0 for each in commands)
    except FileNotFoundError:
        return False
