"""Flower, driven over HTTP: on SQLite it shows and does what it does on Redis."""

from __future__ import annotations

import json
import re
import signal
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts import Contract
from leaks import LASTING
from programs import celery_command
from programs import free_port
from programs import Program
from waiting import wait_until

WORKER = "worker@contract"
ADD = "contract_program.add"


class Flower:
    """A worker on one broker, Flower beside it, and its HTTP API."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        conf = {"worker_pool_restarts": True}
        self.worker = contract.start("-c", "2", "-E", conf=conf)
        self.port = free_port()
        self.program = Program(
            celery_command(
                *("-A", "contract_program", "flower", "--address=127.0.0.1"),
                *(f"--port={self.port}", "--inspect-timeout=1000"),
            ),
            log_path=contract.folder / "flower.out",
            cwd=contract.folder,
            env={**contract.env, "FLOWER_UNAUTHENTICATED_API": "1"},
        )

    def wait(self) -> None:
        self.program.wait_for_log("Connected to", timeout=40)
        wait_until(lambda: self.get("/api/workers")[1], 20, message="a worker in Flower")

    def get(self, path: str) -> tuple[int, Any]:
        return self._ask(path, None)

    def post(self, path: str, form: dict[str, Any] | None = None, **body: Any) -> tuple[int, Any]:
        data = json.dumps(body) if body else urllib.parse.urlencode(form or {})
        return self._ask(path, data.encode())

    def _ask(self, path: str, data: bytes | None) -> tuple[int, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                status, text = response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                status, text = error.code, error.read().decode()
        return status, json.loads(text) if text.startswith("{") else text

    def told(self, task_id: str, state: str) -> Any:
        """Wait until events told Flower of a task's state; return what it knows of it."""

        def info() -> Any:
            status, found = self.get(f"/api/task/info/{task_id}")
            return found if status == 200 and found["state"] == state else None

        return wait_until(info, 20, message=lambda: f"{state} of {task_id} in Flower")

    def asked(self) -> Any:
        """Have Flower ask the worker, and return what it then knows of it."""
        return self.get(f"/api/workers?refresh=1&workername={WORKER}")[1][WORKER]

    def stop(self) -> None:
        for program in (self.program, self.worker):
            program.stop()
            print(program.log)
        self.contract.program.celery.close()


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory, module_redis_url: str) -> Iterator[Any]:
    """Return Flower on SQLite and Flower on Redis."""
    folder = tmp_path_factory.mktemp("flower")
    (folder / "ours").mkdir()
    (folder / "theirs").mkdir()
    ours = Contract(folder / "ours", f"sqlite:///{folder}/queue.sqlite3?durability=normal", "")
    theirs = Contract(folder / "theirs", module_redis_url, "reference")
    sys.modules["contract_program"] = ours.program
    started = [Flower(ours), Flower(theirs)]
    LASTING.update(each.pid for flower in started for each in (flower.program, flower.worker))
    try:
        for flower in started:
            flower.wait()
        yield started
    finally:
        for flower in started:
            flower.stop()
        theirs.program.celery.backend.client.close()


@pytest.fixture
def flower(flowers: Any) -> Flower:
    """Return Flower on SQLite."""
    return flowers[0]


def test_answers_are_those_on_redis(flowers: Any) -> None:
    ours, theirs = (dict(drive(each)) for each in flowers)

    assert ours.keys() == theirs.keys()
    for step, answer in ours.items():
        assert answer == theirs[step], step


def drive(flower: Flower) -> Iterator[tuple[str, Any]]:
    """Do everything that Flower's API can; yield each answer, without what differs by nature."""
    get, post, contract = flower.get, flower.post, flower.contract

    # Tasks
    status, sent = post(f"/api/task/async-apply/{ADD}", args=[1, 2])
    yield "async-apply", (status, sent.keys())
    flower.told(sent["task-id"], "SUCCESS")
    yield "result", told(get(f"/api/task/result/{sent['task-id']}?timeout=20"))
    yield "info", told(get(f"/api/task/info/{sent['task-id']}"))
    yield "apply", told(post(f"/api/task/apply/{ADD}", args=[3, 4]))
    status, sent = post(f"/api/task/send-task/{ADD}", args=[5], kwargs={"y": 6})
    yield "send-task", (status, sent.keys())
    flower.told(sent["task-id"], "SUCCESS")
    yield "info of kwargs", told(get(f"/api/task/info/{sent['task-id']}"))
    failed = post("/api/task/async-apply/contract_program.fail", args=["no"])[1]["task-id"]
    flower.told(failed, "FAILURE")
    yield "failed", told(get(f"/api/task/info/{failed}"))
    yield "result of failed", told(get(f"/api/task/result/{failed}"))
    yield "unknown task", post("/api/task/async-apply/contract_program.nonsense", args=[])
    yield "types", get("/api/task/types")
    yield "found by state", [*told(get("/api/tasks?state=FAILURE&limit=1"))[1].values()]

    # A running task, and one of tomorrow
    key = "seen-by-flower"
    running = post("/api/task/async-apply/contract_program.waiting", args=[key])[1]["task-id"]
    body = {"args": [1, 2], "countdown": 3600}
    future = post(f"/api/task/async-apply/{ADD}", **body)[1]["task-id"]
    contract.wait_for("waiting", key, timeout=20)
    flower.told(running, "STARTED")
    yield "active", told((0, wait_until(lambda: flower.asked()["active"], 20)))
    yield "scheduled", len(wait_until(lambda: flower.asked()["scheduled"], 20))
    yield "abort", told(post(f"/api/task/abort/{running}"))
    yield "terminate", told(post(f"/api/task/revoke/{running}?terminate=true"))
    flower.told(running, "REVOKED")
    yield "result of revoked", told(get(f"/api/task/result/{running}?timeout=20"))
    yield "revoke", told(post(f"/api/task/revoke/{future}"))
    yield "revoked", wait_until(lambda: {running, future} == set(flower.asked()["revoked"]), 20)

    # Limits
    for step, form in {
        "rate limit": {"workername": WORKER, "ratelimit": "100/m"},
        "rate limit that is none": {"workername": WORKER, "ratelimit": "nonsense"},
    }.items():
        yield step, post("/api/task/rate-limit/contract_program.now", form)
    form = {"workername": WORKER, "hard": "30", "soft": "20"}
    yield "timeout", post("/api/task/timeout/contract_program.now", form)
    yield "timeout of nothing", post("/api/task/timeout/contract_program.nonsense", form)

    # The worker
    yield "registered", flower.asked()["registered"]
    yield "grow", post(f"/api/worker/pool/grow/{WORKER}?n=2")
    yield "grown", wait_until(lambda: processes(flower) == 4, 20)
    yield "shrink", post(f"/api/worker/pool/shrink/{WORKER}?n=2")
    yield "shrunk", wait_until(lambda: processes(flower) == 2, 20)
    yield "autoscale", post(f"/api/worker/pool/autoscale/{WORKER}?min=2&max=4")
    yield "restart", post(f"/api/worker/pool/restart/{WORKER}")
    yield "add consumer", post(f"/api/worker/queue/add-consumer/{WORKER}?queue=more")
    yield "queues", wait_until(lambda: len(flower.asked()["active_queues"]) == 2, 20)
    yield "cancel consumer", post(f"/api/worker/queue/cancel-consumer/{WORKER}?queue=more")
    yield "queue", wait_until(lambda: len(flower.asked()["active_queues"]) == 1, 20)
    yield "unknown worker", post("/api/worker/pool/grow/nobody@nowhere")
    known = flower.asked()
    yield "stats", shape(known["stats"])
    yield "active queues", known["active_queues"]
    yield "conf", known["conf"].keys()

    # Queues, which Redis says less of
    status, lengths = get("/api/queues/length")
    yield (
        "lengths",
        (status, [(each["name"], each["messages"]) for each in lengths["active_queues"]]),
    )

    # Pages
    for path in ("/", "/workers", f"/worker/{WORKER}", "/tasks", f"/task/{failed}", "/broker"):
        status, page = get(path)
        title = re.findall(r"<title>.*?</title>", page, re.S)
        yield path.replace(failed, "…"), (status, [each.replace(failed[:8], "…") for each in title])
    metrics = get("/metrics")[1]
    yield "events", sorted(counted(metrics))
    yield "metrics", sorted(set(re.findall(r"^flower_\w+", metrics, re.M)))


def processes(flower: Flower) -> int:
    return len(flower.asked()["stats"]["pool"]["processes"])


_TIMES = set("received sent started succeeded failed retried revoked rejected".split())
_OWN = {*_TIMES, "timestamp", "runtime", "clock", "worker_pid", "time_start", "client", "traceback"}


def told(answer: tuple[int, Any]) -> tuple[int, Any]:
    """Return an answer without its ids and times, but which of them there are."""
    return answer[0], _without_ids(answer[1])


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            _without_ids(key): type(each).__name__ if key in _OWN else _without_ids(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [_without_ids(each) for each in value]
    return (
        re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", value)
        if (isinstance(value, str))
        else value
    )


def shape(value: Any) -> Any:
    """Return keys and the types of values; those that are named are only to be there."""
    named = set("writes hostname heartbeat port virtual_host total transport_options".split())
    if isinstance(value, dict):
        return {key: None if key in named else shape(each) for key, each in value.items()}
    return type(value).__name__


def counted(metrics: str) -> Iterator[str]:
    """Yield how many events there were of each kind and task.

    Celery's worker receives a task of tomorrow today, and tells tomorrow that it was revoked;
    ours leaves it in the file, and tells at once.
    """
    for line in metrics.splitlines():
        if line.startswith("flower_events_total") and f'worker="{WORKER}"' in line:
            if 'type="task-' in line and "received" not in line and "revoked" not in line:
                yield line


def test_broker_page_shows_the_queues(flower: Flower) -> None:
    tasks, key = flower.contract.program, flower.contract.new_key()
    waiting = [tasks.waiting.delay(key) for _ in range(5)]
    flower.contract.wait_for("waiting", key, timeout=20)

    def rows() -> list[list[str]]:
        page = flower.get("/broker")[1]
        found = re.findall(r"<tr id=.*?</tr>", page, re.S)
        return [re.findall(r"<td.*?>(.*?)</td>", row)[:5] for row in found]

    # Messages, unacknowledged, ready, consumers.
    busy = [["celery", "5", "2", "3", "1"]]
    try:
        wait_until(lambda: rows() == busy, 20, message=lambda: f"{rows()} to be {busy}")
        lengths = flower.get("/api/queues/length")[1]["active_queues"]
    finally:
        flower.contract.let_go(key)
    assert lengths == [
        {
            "name": "celery",
            "messages": 5,
            "messages_ready": 3,
            "messages_unacknowledged": 2,
            "consumers": 1,
        }
    ]

    for result in waiting:
        result.get(timeout=20)
    wait_until(lambda: rows() == [["celery", "0", "0", "0", "1"]], 20)


def test_worker_is_shut_down(flower: Flower) -> None:
    assert flower.post(f"/api/worker/shutdown/{WORKER}") == (200, {"message": "Shutting down!"})

    assert flower.worker.wait() == 0
    assert "Got shutdown from remote" in flower.worker.log


def test_flower_ends_without_a_word(flower: Flower) -> None:
    assert flower.program.stop(signal.SIGTERM) == 0
    assert "Traceback" not in flower.program.log


def test_api_is_closed_unless_it_is_opened(tmp_path: Path, queue_url: str, program: Any) -> None:
    contract = Contract(tmp_path, queue_url, "")
    port = free_port()
    started = program(
        *celery_command(
            "-A", "contract_program", "flower", f"--port={port}", "--address=127.0.0.1"
        ),
        env={**contract.env, "FLOWER_UNAUTHENTICATED_API": None},
    )
    started.wait_for_log("Connected to", timeout=40)

    with pytest.raises(urllib.error.HTTPError, match="401") as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/queues/length", timeout=20)
    caught.value.close()
