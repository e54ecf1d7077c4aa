"""Every command of remote control, and every event: on SQLite as on Redis with Celery's worker."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import celery
import pytest
from celery.worker.control import Panel
from contracts import Contract
from leaks import LASTING
from programs import Program
from waiting import wait_until

SOON = 10
NAME = "worker@contract"
SINCE_5_7 = tuple(map(int, celery.__version__.split(".")[:2])) >= (5, 7)


class Side:
    """A contract on one broker, its worker, and the events that are heard of it."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.tasks: Any = contract.program
        self.app: Any = contract.program.celery
        self.heard: list[dict[str, Any]] = []
        self._open = contextlib.ExitStack()
        own = self._open.enter_context(self.app.connection_for_read())
        receiver = self.app.events.Receiver(own, handlers={"*": self.heard.append})
        self.connection, _, _ = self._open.enter_context(receiver.consumer_context())
        self.results: dict[str, Any] = {}
        self.worker: Program
        self._drain()  # Over Redis one subscribes only now.

    def start(self) -> None:
        self.worker = self.contract.start(
            *("-E", "--autoscale=3,2"), conf={"worker_pool_restarts": True}
        )
        LASTING.add(self.worker.pid)
        # At once: events that nobody fetches are gone after five seconds.
        self.hear(lambda: "worker-online" in self.kinds(), "worker-online")

    def hear(self, predicate: Callable[[], Any], what: str) -> None:
        """Listen until ``predicate`` holds of what was heard."""

        def listen() -> Any:
            self._drain()
            return predicate()

        wait_until(listen, SOON, message=lambda: f"{what} in {self.kinds()}")

    def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            self.connection.drain_events(timeout=0.05)

    def kinds(self, label: str = "") -> list[str]:
        """Return the kinds of events heard, or of one task."""
        task_id = self.results[label].id if label else None
        return sorted(
            each["type"]
            for each in self.heard
            if task_id is None or each.get("uuid") == task_id
            # What expires before it is due, no worker of ours has to receive.
            if (label, each["type"]) != ("expiring", "task-received")
        )

    def ask(self, command: str, arguments: dict[str, Any]) -> Any:
        answers = self.app.control.broadcast(
            command, arguments=arguments, reply=True, timeout=SOON, limit=1
        )
        assert answers, f"nobody answered {command}"
        return answers[0][NAME]

    def close(self) -> None:
        self._open.close()
        self.results.clear()
        self.worker.stop()
        print(self.worker.log)
        self.app.close()


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory, module_redis_url: str) -> Iterator[list[Side]]:
    """Return ours and theirs, with all kinds of tasks done, one running and one of tomorrow."""
    folder = tmp_path_factory.mktemp("control")
    urls = {
        "ours": f"sqlite:///{folder}/queue.sqlite3?durability=normal",
        "theirs": module_redis_url,
    }
    made = []
    for name, url in urls.items():
        (folder / name).mkdir()
        made.append(Side(Contract(folder / name, url, name)))
    try:
        for side in made:
            side.start()
        for side in made:
            live(side)
        yield made
    finally:
        for side in made:
            (side.contract.folder / "running").touch()
            side.close()
        made[1].app.backend.client.close()


def live(side: Side) -> None:
    """Have each thing happen that an event tells of."""
    sys.modules["contract_program"] = tasks = side.tasks
    side.results = {
        "succeeding": tasks.add.apply_async((1,), {"y": 2}),
        "failing": tasks.fail.delay("no"),
        "retrying": tasks.flaky.delay(1),
        "rejecting": tasks.rejecting.delay(False),
        "expiring": tasks.add.apply_async((1, 2), countdown=0.3, expires=0.1),
        "ended": tasks.waiting.delay("ended"),
    }
    ends = {"task-succeeded", "task-failed", "task-revoked", "task-rejected"}
    side.contract.wait_for("waiting", "ended", timeout=SOON)
    side.results["ended"].revoke(terminate=True)
    ids = {each.id for each in side.results.values()}
    side.hear(
        lambda: ids <= {each["uuid"] for each in side.heard if each["type"] in ends},
        "the end of each task",
    )
    side.hear(lambda: "worker-heartbeat" in side.kinds(), "a heartbeat")
    side.results["running"] = tasks.waiting.delay("running")
    side.results["future"] = tasks.add.apply_async((1, 2), countdown=3600)
    side.contract.wait_for("waiting", "running", timeout=SOON)
    wait_until(lambda: side.ask("scheduled", {}), SOON)


#: Each command with the arguments that it is sent with: those of :func:`Side.results` by label.
COMMANDS: dict[str, dict[str, Any]] = {
    # inspect
    "active": {},
    "active_queues": {},
    "clock": {},
    "conf": {},
    "hello": {"from_node": "other@contract"},
    "memdump": {},
    "memsample": {},
    "objgraph": {},
    "ping": {},
    "query_task": {"ids": ["running", "future", "succeeding", "nonsense"]},
    "registered": {"taskinfoitems": ["rate_limit", "acks_late"]},
    "report": {},
    "reserved": {},
    "revoked": {},
    "scheduled": {},
    "stats": {},
    # control
    "disable_events": {},
    "enable_events": {},
    "heartbeat": {},
    "election": {"id": "1", "topic": "nonsense", "action": None},
    "add_consumer": {"queue": "more", "exchange": "more", "exchange_type": "topic"},
    "cancel_consumer": {"queue": "more"},
    "rate_limit": {"task_name": "contract_program.now", "rate_limit": "100/m"},
    "time_limit": {"task_name": "contract_program.now", "soft": 20.0, "hard": 30.0},
    "revoke": {"task_id": "future"},
    "revoke_by_stamped_headers": {"headers": {"customer": ["nobody"]}},
    "terminate": {"task_id": "running", "signal": "TERM"},
    "pool_grow": {"n": 1},
    "pool_shrink": {"n": 1},
    "pool_restart": {},
    "autoscale": {"max": 4, "min": 2},
    "shutdown": {},
}

#: Tested below: Celery's own worker does not outlive an election over Redis.
OTHERWISE = ("election", "shutdown")

#: What is to be refused, and how.
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("rate_limit", {"task_name": "contract_program.now", "rate_limit": "nonsense"}),
    ("rate_limit", {"task_name": "nonsense", "rate_limit": "1/s"}),
    ("time_limit", {"task_name": "nonsense", "soft": 1.0, "hard": 2.0}),
    ("terminate", {"task_id": "running", "signal": "NONSENSE"}),
    ("nonsense", {}),
]


def test_no_command_is_forgotten() -> None:
    assert COMMANDS.keys() == Panel.meta.keys()


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in OTHERWISE])
def test_answer_is_that_on_redis(command: str, sides: list[Side]) -> None:
    ours, theirs = (answer(side, command, COMMANDS[command]) for side in sides)

    if command == "query_task" and not SINCE_5_7:
        ours.pop("future")  # Celery's worker did not find it.
    assert ours == theirs


def test_election_is_nothing_to_workers_that_need_no_leader(sides: list[Side]) -> None:
    assert sides[0].ask("election", COMMANDS["election"]) is None
    assert sides[0].ask("ping", {}) == {"ok": "pong"}


@pytest.mark.parametrize(("command", "arguments"), REFUSED)
def test_refusal_is_that_on_redis(
    command: str, arguments: dict[str, Any], sides: list[Side]
) -> None:
    ours, theirs = (answer(side, command, arguments) for side in sides)

    assert ours == theirs


def answer(side: Side, command: str, arguments: dict[str, Any]) -> Any:
    """Return an answer without what differs by nature."""
    ids = {label: result.id for label, result in side.results.items()}

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(each) for each in value]
        return ids.get(value, value) if isinstance(value, str) else value

    told = side.ask(command, {name: named(value) for name, value in arguments.items()})
    if command in ("hello", "revoked"):
        # Celery's worker counts what expired among what was revoked; ours has it from the store.
        expired = ids["expiring"]
        if command == "hello":
            told["revoked"] = [task_id for task_id in told["revoked"] if task_id != expired]
        else:
            told = [task_id for task_id in told if task_id != expired]
    return shape(told, {task_id: label for label, task_id in ids.items()})


#: Values that only have to be there: times, numbers of processes, the broker's own matters.
_OWN = set(
    "clock time_start worker_pid pid processes uptime rusage broker total conf "
    "prefetch_count implementation eta expires correlation_id reply_to hostname "
    "max-concurrency put-guarded-by-semaphore current broker_url result_backend".split()
)


def shape(value: Any, labels: dict[str, str]) -> Any:
    """Return a value with ids replaced by labels, and only the types of what is each side's own."""
    if isinstance(value, dict):
        return {
            labels.get(key, key): type(each).__name__ if key in _OWN else shape(each, labels)
            for key, each in value.items()
            if key != "writes"  # Who wrote to which child; here nobody writes to them.
        }
    if isinstance(value, list):
        found = [shape(each, labels) for each in value]
        return sorted(found, key=str)
    if isinstance(value, str):
        for task_id, label in labels.items():
            value = value.replace(task_id, label)
        value = re.sub(r"(?s)\nsoftware -> .*", "(report)", value)
        return re.sub(r"\d+(\.\d+)?(MB|KB|b)|0x[0-9a-f]+", "(memory)", value)
    return value


# Events

LABELS = ["succeeding", "failing", "retrying", "expiring", "ended"]
if SINCE_5_7:  # Before, nobody heard any more of a task that rejected its message.
    LABELS.append("rejecting")


@pytest.mark.parametrize("label", LABELS)
def test_events_of_a_task_are_those_on_redis(label: str, sides: list[Side]) -> None:
    ours, theirs = (dict(events(side, label)) for side in sides)

    assert sides[0].kinds(label) == sides[1].kinds(label)
    for kind in sides[0].kinds(label):
        assert ours[kind] == theirs[kind], kind


def test_events_of_a_worker_are_those_on_redis(sides: list[Side]) -> None:
    for kind in ("worker-online", "worker-heartbeat"):
        ours, theirs = (next(each for each in side.heard if each["type"] == kind) for side in sides)
        names = {name: type(value).__name__ for name, value in ours.items()}
        assert names == {name: type(value).__name__ for name, value in theirs.items()}
        same = ("hostname", "sw_ident", "sw_ver", "sw_sys", "freq", "utcoffset")
        assert [ours[name] for name in same] == [theirs[name] for name in same]


def test_clocks_and_times_are_in_order(sides: list[Side]) -> None:
    ours = sides[0]
    mine = [each for each in ours.heard if each.get("uuid") == ours.results["succeeding"].id]
    steps = {each["type"]: each for each in mine}
    order = ["task-received", "task-started", "task-succeeded"]

    for field in ("clock", "timestamp"):
        told = [steps[kind][field] for kind in order]
        assert told == sorted(told), field
    assert all(abs(each["timestamp"] - each["local_received"]) < 60 for each in mine)


def test_state_made_of_the_events_is_that_on_redis(sides: list[Side]) -> None:
    ours, theirs = (picture(side) for side in sides)

    assert ours == theirs


def picture(side: Side) -> dict[str, Any]:
    """Return what a monitor makes of the events."""
    state = side.app.events.State()
    for event in sorted(side.heard, key=lambda event: event["clock"]):
        state.event(dict(event))
    names = "name args kwargs result exception retries routing_key exchange eta".split()
    worker = state.workers[NAME]
    found = {
        label: {name: getattr(state.tasks[side.results[label].id], name) for name in names}
        for label in LABELS
    }
    ended = {
        label: state.tasks[side.results[label].id].state
        for label in LABELS
        # Told of by two processes at once on Redis: either may be the last.
        if label != "retrying"
    }
    del found["expiring"]
    del found["retrying"]["eta"]
    return {
        "tasks": found,
        "states": ended,
        "worker": (worker.hostname, worker.freq, worker.sw_ident, worker.sw_ver),
        "types": sorted(state.task_types()),
    }


def events(side: Side, label: str) -> Iterator[tuple[str, Any]]:
    """Yield the kinds of a task's events, each with the fields of the first."""
    result = side.results[label]
    seen = set()
    for event in side.heard:
        if event.get("uuid") == result.id and event["type"] not in seen:
            seen.add(event["type"])
            yield event["type"], {name: field(name, event[name], result.id) for name in event}


_VARIES = set("clock timestamp local_received pid runtime traceback eta expires".split())


def field(name: str, value: Any, task_id: str) -> Any:
    """Return a field's value without what is different in each run."""
    if name in _VARIES:
        return type(value).__name__
    if name == "hostname":
        return re.sub(r"gen\d+@.*", "the caller", value)
    return "its id" if value == task_id else value


def test_worker_leaves_with_a_word(sides: list[Side]) -> None:
    for side in sides:
        (side.contract.folder / "running").touch()
        side.app.control.broadcast("shutdown", destination=[NAME])
        side.hear(lambda side=side: "worker-offline" in side.kinds(), "worker-offline")
    ours, theirs = (
        next(each for each in side.heard if each["type"] == "worker-offline") for side in sides
    )

    assert ours.keys() == theirs.keys()
    assert sides[0].worker.wait() == sides[1].worker.wait() == 0
