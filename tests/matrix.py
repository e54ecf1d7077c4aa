"""``python -m tests.matrix``: run the tests on every Python found, and with the lowest Celery.

Arguments are passed on to pytest. Environments are kept in ``.venvs`` and made again when a lock
file or ``pyproject.toml`` changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
NEWEST = "dev"
LOWEST = "tests-min"


class Environment(NamedTuple):
    """One column of the matrix."""

    version: str
    interpreter: str
    #: Name of the lock file.
    lock: str

    @property
    def name(self) -> str:
        return f"{self.version}-{self.lock}"

    @property
    def folder(self) -> Path:
        return ROOT / ".venvs" / self.name

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def requirements(self) -> Path:
        return ROOT / "requirements" / f"{self.lock}.txt"


def main() -> int:
    """Run every environment; return 1 if the tests failed in any."""
    environments = list(find_environments())
    passed = {environment.name: run_tests(environment) for environment in environments}
    missing = sorted(set(VERSIONS) - {environment.version for environment in environments})
    print()
    for name, success in passed.items():
        print(f"{name:20} {'passed' if success else 'FAILED'}")
    for version in missing:
        print(f"{version:20} not installed here")
    return 0 if passed and all(passed.values()) else 1


def find_environments() -> Iterator[Environment]:
    """Yield the newest of everything on each Python, and the lowest on the oldest."""
    found = {version: python for version in VERSIONS if (python := find_python(version))}
    for version, python in found.items():
        yield Environment(version, python, NEWEST)
    for version, python in list(found.items())[:1]:
        yield Environment(version, python, LOWEST)


def find_python(version: str) -> str | None:
    """Return an interpreter of this version, from the PATH or from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates = [shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")]
    return next((str(found) for found in candidates if found and _works(str(found), version)), None)


def run_tests(environment: Environment) -> bool:
    """Run pytest in an environment; say whether it passed."""
    print(f"\n=== {environment.name}", flush=True)
    install(environment)
    command = [environment.python, "-m", "pytest", *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def install(environment: Environment) -> None:
    """Make the environment, unless it is there and its pins did not change."""
    stamp = environment.folder / ".installed"
    pins = environment.requirements.read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    digest = hashlib.sha256(pins).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    subprocess.run(
        [environment.interpreter, "-m", "venv", "--clear", environment.folder], check=True
    )
    pip = [environment.python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    pip += ["--no-deps"]
    subprocess.run([*pip, "-r", environment.requirements], check=True)
    projects = [ROOT, *(path.parent for path in sorted(ROOT.glob("examples/*/pyproject.toml")))]
    editable = [option for project in projects for option in ("-e", str(project))]
    subprocess.run([*pip, "--no-build-isolation", *editable], check=True)
    stamp.write_text(digest)


def _works(python: str, version: str) -> bool:
    """Say whether it runs and is what it is called: pyenv's shims may be neither."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() == version


if __name__ == "__main__":
    sys.exit(main())
