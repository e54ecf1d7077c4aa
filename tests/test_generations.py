"""What Flask's documentation has told people to write since 2013 works, but for its URLs.

``generations/`` holds its programs word for word. They run here with their own factories, on
Celery's class and not ours, from a script, from ``flask shell``, under ``flask run`` and under
gunicorn; and with :func:`.make_celery` in the place of the factory.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from programs import free_port
from programs import is_listening
from programs import Program
from programs import run
from waiting import wait_until

GENERATIONS = sorted((Path(__file__).parent / "generations").glob("*.py"))
FACTORIES = ("make_celery", "celery_init_app")
DOCUMENTED_URL = "redis://localhost:6379"

# The documentation shows a call, and leaves open where it stands.
VIEW = """

@app.get("/sum")
def sum_of_two():
    return str(add_together.delay(23, 42).wait(timeout=15))


if __name__ == "__main__":
    print(add_together.delay(23, 42).wait(timeout=15))
"""
SCRIPT = """\
from your_application import add_together

result = add_together.delay(23, 42)
print(result.wait(timeout=15))
"""

Programs = Callable[..., Program]


@pytest.fixture(params=GENERATIONS, ids=lambda path: path.stem)
def snippet(request: pytest.FixtureRequest) -> str:
    """Return a documented program."""
    return str(request.param.read_text())


def write(folder: Path, snippet: str, url: str) -> None:
    assert snippet.count(DOCUMENTED_URL) == 2
    (folder / "your_application.py").write_text(snippet.replace(DOCUMENTED_URL, url) + VIEW)
    (folder / "script.py").write_text(SCRIPT)


def with_our_factory(snippet: str) -> str:
    """Import the factory instead of defining it."""
    lines = snippet.splitlines()
    for node in ast.parse(snippet).body:
        if isinstance(node, ast.FunctionDef) and node.name in FACTORIES:
            lines[node.lineno - 1] = f"from celeriac import make_celery as {node.name}"
            lines[node.lineno : node.end_lineno] = []
            return "\n".join(lines)
    raise AssertionError("no factory")


def python(*args: str, cwd: Path, stdin: str = "") -> str:
    return run([sys.executable, *args], cwd=cwd, stdin=stdin).stdout


@contextmanager
def serving(program: Programs, *args: str, cwd: Path) -> Iterator[int]:
    """Run a web server, and stop it; ``args`` ends where the address goes."""
    port = free_port()
    address = f"127.0.0.1:{port}" if args[-1] == "-b" else str(port)
    server = program(sys.executable, *args, address, cwd=cwd)
    wait_until(lambda: is_listening(port), 20, message=lambda: server.log)
    yield port
    server.stop()


def get(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/sum", timeout=20) as response:
        return str(response.read().decode())


def test_documented_factory_works_on_a_file(
    snippet: str, tmp_path: Path, worker: Programs, program: Programs
) -> None:
    write(tmp_path, snippet, "sqlite:///queue.sqlite3")
    worker("-A", "your_application.celery", "-c", "1", cwd=tmp_path)
    flask = ("-m", "flask", "--app", "your_application")
    shell = "from your_application import add_together; add_together.delay(23, 42).wait(timeout=15)"

    assert python("script.py", cwd=tmp_path) == "65\n"
    assert "65\n" in python(*flask, "shell", cwd=tmp_path, stdin=shell)
    with serving(program, *flask, "run", "--port", cwd=tmp_path) as port:
        assert get(port) == "65"
    gunicorn = ("-m", "gunicorn", "-w", "4", "your_application:app", "-b")
    with serving(program, *gunicorn, cwd=tmp_path) as port, ThreadPoolExecutor(8) as clients:
        assert set(clients.map(get, [port] * 16)) == {"65"}


def test_documented_factory_works_on_redis(
    snippet: str, tmp_path: Path, worker: Programs, redis_url: str
) -> None:
    write(tmp_path, snippet, redis_url)
    worker("-A", "your_application.celery", "-c", "1", cwd=tmp_path)

    assert python("script.py", cwd=tmp_path) == "65\n"


def test_our_factory_takes_the_place_of_the_documented_one(
    snippet: str, tmp_path: Path, worker: Programs
) -> None:
    write(tmp_path, with_our_factory(snippet), "sqlite:///queue.sqlite3")
    worker("-A", "your_application", "-c", "1", cwd=tmp_path)

    assert python("script.py", cwd=tmp_path) == "65\n"
    # Run as a script, the module has another name than the worker imports it under.
    assert python("your_application.py", cwd=tmp_path) == "65\n"
    assert (tmp_path / "instance" / "queue.sqlite3").exists()
