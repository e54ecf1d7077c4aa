"""The examples as people run them: real programs, real HTTP, real mail."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import flit_core.buildapi
import kombu
import pytest
from programs import free_port
from programs import is_listening
from programs import Program
from programs import run
from waiting import wait_until

EXAMPLES = Path(__file__).parents[1] / "examples"

# The guide


ASK = """
from your_application import add_together

result = add_together.delay(23, 42)
print(result.wait())
"""


@pytest.fixture
def amqp_queue(amqp_url: str, queue_name: str) -> Iterator[str]:
    """Return the name of a queue that is deleted when the test ends."""
    yield queue_name
    with kombu.Connection(amqp_url) as connection:
        connection.default_channel.queue_delete(queue_name)


def the_answer(worker: Callable[..., Program], folder: Path) -> str:
    """Run the guide's program as the guide says, and return what it prints."""
    worker("-A", "your_application.celery", cwd=folder)
    return run([sys.executable, "-c", ASK], cwd=folder).stdout


def write_classic(folder: Path, *, broker: str, backend: str) -> Path:
    """Write the guide's program with its own factory, and with other URLs."""
    program = (EXAMPLES / "guide/classic/your_application.py").read_text()
    program = program.replace("BROKER_URL='sqlite:///queue.sqlite3'", f"BROKER_URL={broker!r}")
    program = program.replace("BACKEND='sqlite:///queue.sqlite3'", f"BACKEND={backend!r}")
    assert "sqlite" not in program
    path = folder / "your_application.py"
    path.write_text(program)
    return path


def write_guide(folder: Path, **config: str) -> None:
    """Write the guide's program with our factory, and with some configuration."""
    program = (EXAMPLES / "guide/your_application.py").read_text()
    if config:
        update = f"flask_app.config.update({config!r})"
        program = program.replace("\ncelery = ", f"\n{update}\ncelery = ")
    (folder / "your_application.py").write_text(program)


def test_guide_without_any_url(worker: Callable[..., Program], tmp_path: Path) -> None:
    write_guide(tmp_path)

    assert the_answer(worker, tmp_path) == "65\n"
    assert (tmp_path / "instance/celeriac.sqlite3").exists()


def test_classic_guide_on_sqlite(worker: Callable[..., Program], tmp_path: Path) -> None:
    program = (EXAMPLES / "guide/classic/your_application.py").read_text()
    (tmp_path / "your_application.py").write_text(program)

    assert the_answer(worker, tmp_path) == "65\n"
    assert (tmp_path / "queue.sqlite3").exists()


def test_classic_guide_on_redis(
    worker: Callable[..., Program], redis_url: str, tmp_path: Path
) -> None:
    write_classic(tmp_path, broker=redis_url, backend=redis_url)

    assert the_answer(worker, tmp_path) == "65\n"


def test_classic_guide_on_rabbitmq_with_results_in_redis(
    worker: Callable[..., Program], amqp_url: str, amqp_queue: str, redis_url: str, tmp_path: Path
) -> None:
    program = write_classic(tmp_path, broker=amqp_url, backend=redis_url)
    # The only other change, because this RabbitMQ may be anybody's.
    queue = f"flask_app.config['CELERY_DEFAULT_QUEUE'] = {amqp_queue!r}"
    program.write_text(program.read_text().replace("\ncelery = ", f"\n{queue}\ncelery = "))

    assert the_answer(worker, tmp_path) == "65\n"


def test_guide_on_redis(worker: Callable[..., Program], redis_url: str, tmp_path: Path) -> None:
    write_guide(tmp_path, CELERY_BROKER_URL=redis_url, CELERY_RESULT_BACKEND=redis_url)

    assert the_answer(worker, tmp_path) == "65\n"


def test_guide_on_rabbitmq_with_results_in_redis(
    worker: Callable[..., Program], amqp_url: str, amqp_queue: str, redis_url: str, tmp_path: Path
) -> None:
    write_guide(
        tmp_path,
        CELERY_BROKER_URL=amqp_url,
        CELERY_RESULT_BACKEND=redis_url,
        CELERY_TASK_DEFAULT_QUEUE=amqp_queue,
    )

    assert the_answer(worker, tmp_path) == "65\n"


# Uploads


@dataclass
class Site:
    """The running site of ``examples/uploads``, and how to run its other programs."""

    url: str
    app: str
    env: dict[str, str]
    start: Callable[..., Program]
    mail_port: int

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "flask", "--app", self.app, *args]

    def start_worker(self) -> Program:
        worker = self.start(*self.command("celery", "worker", "-c", "1", "-l", "INFO"))
        worker.wait_for_log(" ready.")
        return worker

    def start_mail_server(self) -> Program:
        server = self.start(*self.command("receive-mail"))
        server.wait_for_log("Receiving mail")
        return server

    def upload(self, name: str, content: bytes) -> tuple[int, str, str]:
        """Upload a file as a browser does; return the status, the address and the page."""
        head = f'--limit\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + b"\r\n--limit--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=limit"}
        return get(urllib.request.Request(self.url, body, headers))

    def wait_for(self, page: str, state: str, timeout: float = 20.0) -> dict[str, Any]:
        """Wait until an upload is in a state, and return its status."""
        status: dict[str, Any] = {}

        def reached() -> bool:
            status.clear()
            status.update(get_json(f"{page}/status.json"))
            return bool(status["state"] == state)

        wait_until(reached, timeout, message=lambda: f"{state}, it is {status}")
        return status


def get(url: str | urllib.request.Request) -> tuple[int, str, str]:
    """Return the status, the address after redirects, and the text of a page."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.url, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.url, error.read().decode()


def get_json(url: str) -> dict[str, Any]:
    status, _, text = get(url)
    assert status == 200, text
    content: dict[str, Any] = json.loads(text)
    return content


@pytest.fixture
def start_site(program: Callable[..., Program], tmp_path: Path) -> Callable[..., Site]:
    """Start the site with everything it keeps in a folder of the test."""

    def start(**env: str) -> Site:
        port, mail_port = free_port(), free_port()
        env |= {"PYTHONPATH": str(EXAMPLES / "uploads"), "FLASK_MAIL_PORT": str(mail_port)}
        site = Site(
            url=f"http://127.0.0.1:{port}/",
            app=f"uploads:create_app({str(tmp_path / 'instance')!r})",
            env=env,
            start=lambda *command: program(*command, env=env),
            mail_port=mail_port,
        )
        program(*site.command("run", "--port", str(port)), env=env)
        wait_until(lambda: is_listening(port))
        return site

    return start


def rows(count: int) -> bytes:
    """Make a CSV file of so many rows."""
    lines = (f"{'AB'[i % 2]},{i},{i / 4}\n" for i in range(count))
    return ("letter,number,quarter\n" + "".join(lines)).encode()


@pytest.mark.parametrize("broker", [None, "redis_url"], ids=["sqlite", "redis"])
def test_upload_is_summarised_and_mailed(
    start_site: Callable[..., Site], broker: str | None, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(broker) if broker else None
    names = ["FLASK_CELERY_BROKER_URL", "FLASK_CELERY__RESULT_BACKEND"] if url else []
    site = start_site(**dict.fromkeys(names, url))
    site.start_mail_server()
    site.start_worker()

    status, page, text = site.upload("letters & <numbers>.csv", rows(1000))
    done = site.wait_for(page, "done")

    assert status == 200
    assert "<h1>letters &amp; &lt;numbers&gt;.csv</h1>" in text
    summary = get_json(f"{page}/summary.json")
    assert summary["rows"] == 1000
    assert summary["columns"][1] == {
        "name": "number",
        "type": "integer",
        "count": 1000,
        "missing": 0,
        "distinct": 1000,
        "min": 0,
        "mean": 499.5,
        "max": 999,
    }
    assert summary["groups"] == {
        "by": "letter",
        "measured": ["quarter"],
        "rows": [
            {"value": "A", "count": 500, "means": [124.75]},
            {"value": "B", "count": 500, "means": [125.0]},
        ],
    }
    assert "1,000 rows in 3 columns" in get(page)[2]
    mail = get(site.url + done["mail"].lstrip("/"))[2]
    assert "Summary of letters &amp; &lt;numbers&gt;.csv" in mail
    assert f"&lt;{page.rpartition('/')[2]}@uploads.example.org&gt;" in mail
    assert get(f"{site.url}mails")[2].count("Summary of letters") == 1


def test_progress_is_shown_while_a_long_file_is_read(start_site: Callable[..., Site]) -> None:
    site = start_site()
    site.start_mail_server()
    site.start_worker()
    seen = []

    def is_done() -> bool:
        status = get_json(f"{page}/status.json")
        seen.append((status.get("current"), status.get("total"), status["text"]))
        return bool(status["state"] == "done")

    _, page, text = site.upload("long.csv", rows(300_000))
    wait_until(is_done, 45)

    assert '<progress id="progress"' in text
    assert '<noscript><meta http-equiv="refresh"' in text
    reports = sorted({status for status in seen if status[0]})
    assert len(reports) > 1
    current, total, text = reports[-1]
    assert (total, text) == (300_000, f"Reading the rows: {current:,} of 300,000")


REFUSED = {
    "empty.csv": (b"", "The file is empty."),
    "mark.csv": (b"\xef\xbb\xbf\n", "The file is empty."),
    "image.csv": (b"\x89PNG\0\0", "The file holds binary data, not text."),
    "latin-1.csv": (b"caf\xe9,b\n1,2\n", "The file is not text in UTF-8 (byte 0xe9)."),
    "prose.csv": (
        b"Once upon a time\n",
        "The first line has no comma, semicolon or tab: this does not look like a CSV file.",
    ),
    "letters.txt": (b"a,b\n1,2\n", "Only CSV files are taken: the name must end in .csv."),
    "": (b"", "No file was chosen."),
}
FAILED = {
    "ragged.csv": (b"a,b\n1,2\n3\n", "Line 3 has 1 field, but the header has 2."),
    "header.csv": (b"a,b\n", "The file has a header but no rows."),
    "wide.csv": (b"a," * 300 + b"a\n", "The file has 301 columns; at most 200 are read."),
    "quotes.csv": (b'a,b\n"1"1,2\n', "Line 2 is not CSV: ',' expected after '\"'."),
    "late.csv": (
        b"a,b\n" + b"1,2\n" * 100_000 + b"caf\xe9,3\n",
        "The file is not text in UTF-8 (byte 0xe9).",
    ),
}


def test_bad_files_are_refused_with_the_reason(start_site: Callable[..., Site]) -> None:
    site = start_site(FLASK_MAX_CONTENT_LENGTH=str(2**20))
    site.start_worker()

    for name, (content, reason) in REFUSED.items():
        status, _, page = site.upload(name, content)
        assert (status, reason in page) == (400, True), name
    status, _, page = site.upload("huge.csv", bytes(2**20))
    assert (status, "at most 1 MB are taken" in page) == (413, True)
    for name, (content, reason) in FAILED.items():
        _, address, _ = site.upload(name, content)
        assert site.wait_for(address, "failed") == {"state": "failed", "text": reason}
    listed = get(site.url)[2]
    assert listed.count("<td>failed</td>") == len(FAILED)
    assert "<td>done</td>" not in listed


def test_names_in_addresses_lead_nowhere_else(start_site: Callable[..., Site]) -> None:
    site = start_site()
    nothing = "12345678-1234-1234-1234-123456789012"

    for path in ["mails/..%2Fuploads", "mails/x.eml", "uploads/..", f"uploads/{nothing}", "x"]:
        status, _, page = get(site.url + path)
        assert (status, "Not Found</h1>" in page) == (404, True), path


def test_mail_is_sent_when_the_server_is_there_again(start_site: Callable[..., Site]) -> None:
    site = start_site()
    site.start_worker()
    _, page, _ = site.upload("letters.csv", rows(10))

    retry = "Sending the mail did not work; it will be tried again."
    wait_until(lambda: get_json(f"{page}/status.json")["text"] == retry)
    site.start_mail_server()

    site.wait_for(page, "done")


def test_upload_is_finished_by_another_worker_when_one_dies(
    start_site: Callable[..., Site],
) -> None:
    site = start_site()
    site.start_mail_server()
    worker = site.start_worker()
    _, page, _ = site.upload("long.csv", rows(300_000))
    wait_until(lambda: "current" in get_json(f"{page}/status.json"))

    worker.kill()
    site.start_worker()

    site.wait_for(page, "done", timeout=30)
    assert get_json(f"{page}/summary.json")["rows"] == 300_000
    assert get(f"{site.url}mails")[2].count("Summary of long.csv") == 1


def test_digest_lists_the_uploads_of_a_day(start_site: Callable[..., Site]) -> None:
    site = start_site()
    site.start_mail_server()
    site.start_worker()
    day = datetime.now(timezone.utc).date().isoformat()
    _, page, _ = site.upload("letters.csv", rows(10))
    site.wait_for(page, "done")

    for _ in range(2):
        call = ["celery", "call", "uploads.tasks.send_digest", "--args", json.dumps([day])]
        run(site.command(*call), env=site.env)
    digest = f"Uploads of {day}"
    wait_until(lambda: digest in get(f"{site.url}mails")[2])

    # Sent twice, but the same mail.
    assert get(f"{site.url}mails")[2].count(digest) == 1


def test_digest_stands_in_the_schedule(start_site: Callable[..., Site]) -> None:
    site = start_site()

    report = run(site.command("celery", "report"), env=site.env)

    assert "uploads.tasks.send_digest" in report.stdout
    assert "<crontab: 5 0 * * * (m/h/dM/MY/d)>" in report.stdout


@pytest.mark.parametrize("example", ["guide", "uploads"])
def test_example_can_be_installed(
    example: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(EXAMPLES / example)

    wheel = ZipFile(tmp_path / flit_core.buildapi.build_wheel(str(tmp_path)))

    with wheel:
        files = set(wheel.namelist())
    if example == "guide":
        assert "your_application.py" in files
    else:
        assert {"uploads/templates/base.html", "uploads/static/style.css"} <= files
