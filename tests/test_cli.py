"""``flask celery …`` and ``celery -A …`` find the Celery app behind a Flask app."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from celery.bin.celery import celery as celery_program
from click.testing import CliRunner
from flask.cli import FlaskGroup
from programs import Program
from programs import run
from waiting import wait_until

from celeriac import Celeriac

FACTORY = """\
from celery import Celery
from flask import Flask, has_app_context
from celeriac import Celeriac

celery = Celeriac()

@celery.task
def add(a, b):
    return a + b

def create_app(url="sqlite:///"):
    app = Flask(__name__, instance_path={instance!r})
    app.config.update(CELERY_BROKER_URL=url, SECRET_KEY={canary!r})
    celery.init_app(app)
    return app

def without():
    return Flask("bare", instance_path={instance!r})
"""

FLAT = """\
from shop import create_app
app = create_app()
"""

#: The commands of Celery's own program, which a plugin may add to.
COMMANDS = sorted(celery_program.commands)


INSPECT_CONF = ("celery", "inspect", "conf", "true")

CANARY = "canary-7f3a"


def factory(folder: Path) -> str:
    return FACTORY.format(instance=str(folder / "instance"), canary=CANARY)


@pytest.fixture(autouse=True)
def shop(tmp_path: Path) -> Path:
    """Write a module with an application factory, and return its folder."""
    (tmp_path / "shop.py").write_text(factory(tmp_path))
    (tmp_path / "flat.py").write_text(FLAT)
    return tmp_path


def flask(*args: str, cwd: Path, check: bool = True) -> str:
    done = run([sys.executable, "-m", "flask", *args], cwd=cwd, check=check)
    return done.stdout + done.stderr


# Celery's own: the option -d of `celery events`.
@pytest.mark.filterwarnings("ignore:The parameter -d is used more than once:UserWarning")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_celery_is_there(
    command: str, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop)
    monkeypatch.syspath_prepend(shop)
    monkeypatch.setenv("FLASK_APP", "shop:create_app")
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "true")

    result = CliRunner().invoke(FlaskGroup(), ["celery", command, "--help"], prog_name="flask")

    for name in ("shop", "flat"):
        sys.modules.pop(name, None)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: flask celery {command} ")


def test_factory_needs_no_module_of_its_own(shop: Path) -> None:
    report = flask("--app", "shop:create_app('memory://')", "celery", "report", cwd=shop)

    assert "settings -> transport:memory results:disabled" in report


def test_help_needs_no_app(shop: Path) -> None:
    (shop / "shop.py").unlink()

    assert "Celery's commands" in flask("--help", cwd=shop)
    assert flask("celery", cwd=shop).startswith("Usage: python -m flask celery [OPTIONS] [COMMAND]")
    assert flask("celery", "--help", cwd=shop).startswith("Usage: python -m flask celery [OPTIONS]")
    assert flask("celery", "--version", cwd=shop)[0].isdigit()


def test_mistakes_are_told_as_flask_tells_them(shop: Path) -> None:
    mistakes = {
        ("--app", "shop", "celery", "wroker"): "Error: No such command 'wroker'.\n\n"
        "Did you mean one of these?\n    worker\n",
        ("--app", "shop", "celery", "worker", "--concurency"): "Error: No such option",
        ("--app", "nowhere", "celery", "report"): "Error: Could not import 'nowhere'.\n",
        ("--app", "shop:without", "celery", "report"): "Error: The Flask app 'bare' has no "
        "Celery app. Call make_celery(app), or celery.init_app(app) in the function that makes "
        "the app.\n",
    }
    for args, message in mistakes.items():
        done = run([sys.executable, "-m", "flask", *args], cwd=shop, check=False)
        assert done.returncode == 2
        assert message in done.stderr


def test_explaining_an_unknown_task_is_a_failure_to_the_shell(shop: Path) -> None:
    command = [sys.executable, "-m", "flask", "--app", "shop", "celery", "explain", "no-such-id"]

    done = run(command, cwd=shop, check=False)

    assert done.returncode == 1
    assert done.stdout.startswith("No task no-such-id is known here: ")


def test_explaining_without_a_queue_file_names_the_command_and_no_password(shop: Path) -> None:
    app = 'shop:create_app("amqp://me:secret@127.0.0.1//")'
    command = [sys.executable, "-m", "flask", "--app", app, "celery", "explain", "an-id"]

    done = run(command, cwd=shop, check=False)

    assert done.returncode == 2
    assert (
        "Error: explain looks into a queue file, and the broker is amqp://me:**@127.0.0.1//. "
        "Ask its workers instead: flask --app shop celery inspect query_task an-id\n"
    ) in done.stderr


@pytest.mark.parametrize("args", [("-A", "flat", "report"), ("report", "-A", "flat")])
def test_both_orders_of_celery_4_and_5_are_understood(args: tuple[str, ...], shop: Path) -> None:
    assert "celeriac.sqlite3" in flask("celery", *args, cwd=shop)


def test_module_whose_app_is_the_flask_app_is_understood_by_celery(shop: Path) -> None:
    for name in ("flat", "flat:app", "flat.app"):
        done = run([sys.executable, "-m", "celery", "-A", name, "report"], cwd=shop)
        assert "celeriac.sqlite3" in done.stdout


def test_celery_without_its_flask_app_says_what_to_type(shop: Path) -> None:
    command = [sys.executable, "-m", "celery", "-A", "shop.celery", "worker"]
    done = run(command, cwd=shop, check=False)

    assert done.returncode
    assert "flask --app your_application celery worker" in done.stderr


@pytest.mark.parametrize("url", ["sqlite:///", "redis"])
def test_worker_is_started_for_a_factory(
    url: str, shop: Path, program: Callable[..., Program], request: pytest.FixtureRequest
) -> None:
    if url == "redis":
        url = request.getfixturevalue("redis_url")
    flask_app = ("--app", f"shop:create_app({url!r})")
    worker = program(
        *(sys.executable, "-m", "flask", *flask_app),
        *("celery", "worker", "-c", "1", "-l", "INFO"),
        cwd=shop,
    )
    worker.wait_for_log(" ready.")

    assert "pong" in flask(*flask_app, "celery", "inspect", "ping", cwd=shop)
    flask(*flask_app, "celery", "call", "shop.add", "-a", "[23, 42]", cwd=shop)
    worker.wait_for_log("succeeded in")
    assert "shop.add" in flask(*flask_app, "celery", "inspect", "registered", cwd=shop)
    assert "task_acks_late" in (conf := flask(*flask_app, *INSPECT_CONF, cwd=shop))
    assert CANARY not in conf + worker.log
    for file in (shop / "instance").glob("*.sqlite3*"):
        assert file.is_dir() or CANARY.encode() not in file.read_bytes()


def test_worker_detaches(shop: Path) -> None:
    pid_file, log_file = shop / "worker.pid", shop / "worker.log"
    options = f"-P solo -l INFO --pidfile {pid_file} --logfile {log_file}".split()

    flask("--app", "shop:create_app", "celery", "worker", "-D", *options, cwd=shop)

    try:
        wait_until(lambda: log_file.exists() and " ready." in log_file.read_text(), 20)
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        wait_until(lambda: not pid_file.exists(), 20)
    finally:
        # It is nobody's child, so that no fixture would find it.
        for process in psutil.process_iter(["cmdline"]):
            if str(pid_file) in (process.info["cmdline"] or ()):
                process.kill()


def test_commands_are_run_outside_of_any_context(shop: Path) -> None:
    (shop / "shop.py").write_text(
        factory(shop)
        + "\nfrom celery import signals\n"
        + "@signals.import_modules.connect\n"
        + "def note(**kwargs): print('context:', has_app_context())\n"
    )

    assert "context: False\n" in flask("--app", "shop:create_app", "celery", "report", cwd=shop)


def test_flask_app_answers_celerys_program_only(shop: Path) -> None:
    from flask import Flask

    app = Flask("shop", instance_path=str(shop))
    celery = Celeriac(app, broker="memory://")
    celery.user_options["worker"] = {"an option"}

    assert app.user_options.get("worker") == {"an option"}  # type: ignore[attr-defined]
    assert app.user_options.get("preload", ()) == ()  # type: ignore[attr-defined]
