"""``python -m tests.upstream``: fetch Celery's integration suite, run both columns, compare.

Arguments are passed on to pytest. Everything is kept below ``.venvs``: the environment
(``requirements/upstream.txt``), the suite, and what the last run wrote.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests import sources
from tests.matrix import Environment
from tests.matrix import install

from . import known
from .column import Column
from .column import ROOT
from .report import Comparison

_FOLDER = ROOT / ".venvs" / "upstream"
#: Seconds between two lines that tell how far it is.
_PROGRESS = 30.0


def main() -> int:
    """Run the suite; return 1 if a test passes on Redis and not on SQLite, but should."""
    version = "{}.{}".format(*sys.version_info)
    environment = Environment(version, sys.executable, "upstream")
    install(environment)
    suite = prepare_suite(environment)
    columns = (
        Column(known.REDIS, "Redis, Celery's worker", _empty(_FOLDER / "redis")),
        Column(known.SQLITE, "SQLite, our worker", _empty(_FOLDER / "sqlite")),
    )
    run(columns, environment.python, suite, sys.argv[1:])
    comparison = Comparison(*columns)
    print(f"\n{comparison.text()}\n\nThe logs are in {_FOLDER}.")
    return conclude(columns, comparison)


def prepare_suite(environment: Environment) -> Path:
    """Fetch the suites of the versions that are installed, and unpack Celery's."""
    pins = environment.requirements.read_text()
    archives = {}
    for project in ("celery", "kombu"):
        version = re.findall(rf"^{project}==(\S+)", pins, re.MULTILINE)[0]
        archive = sources.fetch(project, version, environment.python)
        if archive is None:
            sys.exit(f"{project} {version}'s source distribution could not be fetched.")
        archives[project] = archive
    suite = _empty(_FOLDER / "suite")
    names = ("pyproject.toml", "t/__init__.py", "t/skip.py", "t/canvas_helpers.py", "t/integration")
    sources.unpack(archives["celery"], suite, *names)
    known.let_run_on_sqlite(suite)
    return suite


def run(columns: Sequence[Column], python: str, suite: Path, options: Sequence[str]) -> None:
    """Run the columns side by side, since they mostly wait, and tell how far they are."""
    threads = [thread for column in columns for thread in column.start(python, suite, options)]
    started = time.monotonic()
    while threads:
        threads[0].join(_PROGRESS)
        threads = [thread for thread in threads if thread.is_alive()]
        seconds = time.monotonic() - started
        print(f"{seconds:5.0f} s  {'   '.join(map(_progress, columns))}", flush=True)


def conclude(columns: Sequence[Column], comparison: Comparison) -> int:
    """Say what the run was worth, as an exit code."""
    broken = comparison.broken()
    for name in broken:
        print(f"passes on Redis and not on SQLite: {name}")
    failures = [path for column in columns for path in column.failures]
    for path in failures:
        print(f"not run to its end, see {path}")
    return 1 if broken or failures else 0


def _progress(column: Column) -> str:
    counts = Counter(each.outcome for each in column.outcomes.values())
    return f"{column.title}: {counts['passed']} passed, {counts['failed']} failed"


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
