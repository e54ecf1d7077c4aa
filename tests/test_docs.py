"""What the documentation says is so: its programs run, and nothing of ours is missing from it."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest
from celery.app.defaults import DEFAULTS
from celery.bin.celery import celery as celery_program
from flask import Flask
from programs import Program
from programs import run
from upstream import known

import celeriac
from celeriac import exceptions
from celeriac import make_celery
from celeriac.config import MAPPINGS
from celeriac.config import read_settings
from celeriac.engines import EngineConfigurationError
from celeriac.engines import open_engine

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.rst"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CHANGES.rst", ROOT / "CONTRIBUTING.rst"]
NAMES = [path.name for path in TEXTS]

_BLOCK = re.compile(
    r"^(?P<indent> *)\.\. code-block:: (?P<language>\w+)\n"
    r"(?P<options>(?:(?P=indent)    :.*\n)*)\n"
    r"(?P<text>(?:(?P=indent)    .*\n|\n)+)",
    re.MULTILINE,
)
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Block(NamedTuple):
    """One example on a page."""

    language: str
    #: The name of the file that it is, if it is one.
    caption: str
    text: str


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.rst").read_text()


def blocks(name: str, language: str) -> list[Block]:
    found = []
    for match in _BLOCK.finditer(page(name) + "\n"):
        caption = re.search(r":caption: (.*)", match["options"])
        text = dedent(match["text"]).strip() + "\n"
        found.append(Block(match["language"], caption[1] if caption else "", text))
    return [block for block in found if block.language == language]


def commands(name: str) -> list[str]:
    """Return the commands that a page has one type."""
    lines = [line for block in blocks(name, "console") for line in block.text.splitlines()]
    return [line[2:] for line in lines if line.startswith("$ ")]


def write_files(folder: Path) -> None:
    """Write the programs of the quickstart as the files that its captions name."""
    for block in blocks("quickstart", "python"):
        path = folder / block.caption
        path.parent.mkdir(exist_ok=True)
        path.write_text(block.text)


def argv(command: str) -> list[str]:
    program, *args = command.split()
    return [sys.executable, "-m", program, *args]


# The programs run


@pytest.mark.parametrize("name", [path.stem for path in PAGES])
def test_python_on_the_page_compiles(name: str) -> None:
    for block in blocks(name, "python"):
        compile(block.text, f"{name}.rst", "exec")


def test_program_of_readme_quickstart_and_example_is_one() -> None:
    readme = (ROOT / "README.md").read_text()
    first = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    example = (ROOT / "examples/guide/your_application.py").read_text()

    programs = [
        first[1] if first else "",
        blocks("index", "python")[0].text,
        blocks("quickstart", "python")[0].text,
        example.partition('"""\n')[2],
    ]

    assert len({re.sub(r"\n+", "\n", text.strip()) for text in programs}) == 1


def test_quickstart_gives_what_it_shows(program: Callable[..., Program], tmp_path: Path) -> None:
    write_files(tmp_path)
    session = "\n".join(block.text for block in blocks("quickstart", "pycon"))
    (tmp_path / "session.txt").write_text(session)
    command = next(line for line in commands("quickstart") if line.startswith("celery"))

    worker = program(*argv(command), "-l", "INFO", "-c", "1", cwd=tmp_path)
    worker.wait_for_log(" ready.")
    run([sys.executable, "-m", "doctest", "session.txt"], cwd=tmp_path)

    for line in blocks("quickstart", "text")[-1].text.splitlines():
        path = tmp_path / line.split()[0]
        assert path.exists()
        assert path.stat().st_mode & 0o077 == 0


def test_view_of_the_quickstart_finds_the_result(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    write_files(tmp_path)
    (tmp_path / "visit.py").write_text(
        dedent(
            """
            from views import add_together, flask_app

            with flask_app.test_client() as client:
                answer = client.post("/add/23/42")
                add_together.AsyncResult(answer.json["id"]).wait(timeout=10)
                print(answer.status_code, client.get(f"/result/{answer.json['id']}").json)
            """
        )
    )

    worker = program(*argv("celery -A your_application.celery worker -c 1 -l INFO"), cwd=tmp_path)
    worker.wait_for_log(" ready.")
    visited = run([sys.executable, "visit.py"], cwd=tmp_path)

    assert visited.stdout == "202 {'state': 'SUCCESS', 'value': 65}\n"


def test_waiting_without_a_worker_prints_what_the_quickstart_shows(tmp_path: Path) -> None:
    write_files(tmp_path)
    shown = next(
        block.text.splitlines()[1]
        for block in blocks("quickstart", "console")
        if block.text.startswith("$ python ask.py")
    )

    asked = run([sys.executable, "ask.py"], cwd=tmp_path, check=False)
    printed = asked.stderr.splitlines()

    assert _ID.sub("", printed[0].replace(str(tmp_path), "/srv/app")) == _ID.sub("", shown)
    assert printed[-1].startswith("celery.exceptions.TimeoutError")


def test_factory_of_the_quickstart_has_its_worker(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    write_files(tmp_path)
    (tmp_path / "visit.py").write_text(
        dedent(
            """
            from shop import create_app
            from shop.library import resize
            from shop.tasks import greet

            with create_app().app_context():
                print(greet.delay("Ada").wait(timeout=10))
                print(resize.delay("a.png").wait(timeout=10))
            """
        )
    )
    command = next(line for line in commands("quickstart") if "--include" in line)

    worker = program(*argv(f"{command},shop.library"), "-c", "1", "-l", "INFO", cwd=tmp_path)
    worker.wait_for_log(" ready.")
    visited = run([sys.executable, "visit.py"], cwd=tmp_path)

    assert visited.stdout == "shop greets Ada\nresized a.png\n"


# Configuration


def test_three_spellings_say_the_same() -> None:
    first, second, third, *_ = blocks("configuration", "python")
    read = []
    for block in (first, second, third):
        app = Flask("spelt")
        exec(block.text, {"app": app})
        read.append(read_settings(app.config))

    assert read[0] == read[1] == read[2]
    assert len(read[0]) == 3


def test_every_default_of_ours_is_documented(tmp_path: Path) -> None:
    celery = make_celery(Flask("plain", instance_path=str(tmp_path)), set_as_current=False)
    ours = {name for name, default in DEFAULTS.items() if celery.conf[name] != default}
    section = page("configuration").partition("\nDefaults\n")[2].partition("\n\n\n")[0]

    assert ours == set(re.findall(r"^`(\w+)`$", section, re.MULTILINE))


def test_every_option_of_the_url_is_documented() -> None:
    with pytest.raises(EngineConfigurationError) as caught:
        open_engine("sqlite:////tmp/queue.sqlite3?colour=red")
    options = set(re.findall(r"(\w+)=(?!red)", str(caught.value)))
    section = page("configuration").partition("Three options may follow")[2]

    assert options == {"durability", "busy_timeout", "max_size"}
    assert options <= set(re.findall(r"^`(\w+)`$", section, re.MULTILINE))


def test_every_mapping_that_is_read_is_documented() -> None:
    assert all(f"`{name}`" in page("configuration") for name in MAPPINGS)


def test_warning_about_an_unknown_name_is_the_one_shown() -> None:
    shown = blocks("configuration", "text")[0].text.strip()

    with pytest.warns(exceptions.ConfigurationWarning) as caught:
        read_settings({"CELERY_BROKER_ULR": "redis://localhost"})

    assert f"ConfigurationWarning: {caught[0].message}" == shown


# Everything is there


def test_every_command_is_documented() -> None:
    terms = re.findall(r"^(`.*`)$", page("command-line"), re.MULTILINE)
    documented = {name for term in terms for name in re.findall(r"`(\w+)`", term)}

    assert set(celery_program.commands) <= documented


def test_every_public_name_is_in_the_reference() -> None:
    reference = page("reference")

    assert all(f":: celeriac.{name}\n" in reference for name in celeriac.__all__)
    assert ".. automodule:: celeriac.exceptions\n    :members:\n" in reference
    # Without a docstring a name would be left out.
    assert all(getattr(exceptions, name).__doc__ for name in exceptions.__all__)


def test_deaths_are_told_by_the_module_that_deals_with_them() -> None:
    assert ".. automodule:: celeriac.worker.redelivery\n" in page("guarantees")


def test_what_is_left_out_of_celerys_suite_is_listed() -> None:
    listed = re.findall(r"^`(test_\S+::\S+)`\n    (.*)$", page("upstream"), re.MULTILINE)

    assert dict(listed) == known.NOT_APPLICABLE
    assert all(f"`{name.removesuffix('.py')}`" in page("upstream") for name in known.PROMISED)


@pytest.mark.parametrize("path", TEXTS, ids=NAMES)
def test_every_file_that_is_mentioned_exists(path: Path) -> None:
    text = path.read_text()
    folders = "src|tests|docs|examples|benchmarks|requirements"
    mentioned = re.findall(rf"`((?:{folders})/[\w./-]+)`", text)
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    missing = [name for name in mentioned + linked if not (ROOT / name).exists()]

    # What the documentation's own build makes.
    assert [name for name in missing if "_build" not in name] == []


@pytest.mark.parametrize("path", TEXTS, ids=NAMES)
def test_every_module_that_is_mentioned_can_be_imported(path: Path) -> None:
    for name in re.findall(r":mod:`(celeriac[\w.]*)`", path.read_text()):
        importlib.import_module(name)


@pytest.mark.parametrize("path", TEXTS, ids=NAMES)
def test_every_make_target_that_is_mentioned_exists(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)

    assert set(re.findall(r"(?:\$ |`)make ([a-z-]+)", path.read_text())) <= set(targets)


@pytest.mark.parametrize("name", [path.stem for path in PAGES])
def test_every_celery_command_that_is_shown_exists(name: str) -> None:
    shown = [line for line in commands(name) if re.match(r"celery|flask .*celery ", line)]
    words = [re.sub(r".*celery( -A \S+)? ", "", line, count=1).split()[0] for line in shown]

    assert set(words) <= set(celery_program.commands)


# Monitoring


def test_request_id_reaches_all_that_a_request_sends(
    worker: Callable[..., Program], tmp_path: Path, queue_url: str
) -> None:
    (module,) = [block for block in blocks("monitoring", "python") if block.caption]
    (tmp_path / module.caption).write_text(module.text)
    (tmp_path / "shop.py").write_text(
        "from flask import Flask\n"
        "from celeriac import make_celery\n"
        "from tracing import request_id\n"
        "flask_app = Flask(__name__)\n"
        f"flask_app.config['CELERY_BROKER_URL'] = {queue_url!r}\n"
        "celery = make_celery(flask_app)\n"
        "@celery.task(bind=True)\n"
        "def first(self):\n"
        "    if not self.request.retries:\n"
        "        self.retry(countdown=0)\n"
        "    return second.delay(None).id, request_id()\n"
        "@celery.task\n"
        "def second(before):\n"
        "    return before, request_id()\n"
        "@flask_app.get('/')\n"
        "def index():\n"
        "    results = first.delay(), (first.si() | second.s()).apply_async()\n"
        "    return [result.id for result in results]\n"
    )
    call = (
        "import json, shop\n"
        "client = shop.flask_app.test_client()\n"
        "ids = client.get('/', headers={'X-Request-ID': 'the-id'}).json\n"
        "got = [shop.celery.AsyncResult(id).get(timeout=20) for id in ids]\n"
        "got.append(shop.celery.AsyncResult(got[0][0]).get(timeout=20))\n"
        "print(json.dumps(got))\n"
    )
    worker("-A", "shop.celery", "-P", "threads", "-c", "2", cwd=tmp_path)

    done = run([sys.executable, "-c", call], cwd=tmp_path)

    direct, chained, inner = json.loads(done.stdout)
    assert direct[1] == "the-id"
    assert chained[1] == "the-id" and chained[0][1] == "the-id"
    assert inner == [None, "the-id"]


def test_documented_logging_works_in_every_process() -> None:
    (setup,) = [
        block.text for block in blocks("monitoring", "python") if "dictConfig" in block.text
    ]
    program = f"{setup}\nlogging.getLogger('shop').info('hello')\n"

    done = run([sys.executable, "-c", program])

    assert re.search(r" INFO shop None hello$", done.stderr.strip())
