"""The contracts of ``[tool.importlinter]``, and the sizes that keep a module readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import celeriac

ROOT = Path(__file__).parent.parent
PACKAGE = Path(celeriac.__file__).parent
#: Lines; past 25 there is a reason, past this there is none.
LONGEST_FUNCTION = 60

_LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def test_no_module_imports_from_a_layer_above_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LINT_IMPORTS, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_no_function_is_longer_than_a_screen() -> None:
    long = [where for where, lines in _functions() if lines > LONGEST_FUNCTION]

    assert long == []


def test_importing_the_package_imports_neither_flask_nor_celery() -> None:
    code = "import sys, celeriac; print(*sorted({'flask', 'celery', 'kombu'} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def _functions() -> Iterator[tuple[str, int]]:
    """Yield where each function stands, and its length without its docstring."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(PACKAGE)}:{node.name}", _length(node)


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    docstring = ast.get_docstring(node, clean=False)
    return (node.end_lineno or 0) - node.lineno + 1 - (docstring or "").count("\n")
