"""Remote control: on SQLite a worker answers as it does on Redis."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from contracts import Contract
from contracts import make_contract
from leaks import LASTING
from programs import celery_command
from programs import Program
from programs import run
from waiting import wait_until

SOON = 10
NAME = "worker@contract"


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contract]:
    made = make_contract(tmp_path_factory.mktemp("control"), "prefork")
    worker = made.start("-c", "2", conf={"worker_pool_restarts": True})
    LASTING.add(worker.pid)
    try:
        yield made
    finally:
        worker.stop()
        print(worker.log)


@pytest.fixture
def tasks(contract: Contract) -> Any:
    return contract.program


@pytest.fixture
def control(tasks: Any) -> Any:
    return tasks.celery.control


@pytest.fixture
def inspect(control: Any) -> Callable[..., Any]:
    """Ask the worker, and return what it answered."""

    def inspect(method: str, *args: Any) -> Any:
        answer = getattr(control.inspect(timeout=5, limit=1), method)(*args)
        assert answer is not None, f"nobody answered {method}"
        return answer[NAME]

    return inspect


@pytest.fixture
def celery(contract: Contract) -> Callable[..., str]:
    """Run a command of the program ``celery``, and return what it prints."""

    def celery(*args: str, check: bool = True) -> str:
        command = celery_command("-A", "contract_program", *args)
        done = run(command, cwd=contract.folder, env=contract.env, check=check)
        return done.stdout

    return celery


def told(control: Any, command: str, **arguments: Any) -> Any:
    """Have the worker carry out a command, and return what it says."""
    method = getattr(control, command, None)
    if method is None or command == "election":
        answers = control.broadcast(command, arguments=arguments, reply=True, timeout=5, limit=1)
    else:
        answers = method(reply=True, timeout=5, limit=1, **arguments)
    return answers[0][NAME]


# Asking


def test_ping_clock_report_and_conf(control: Any, inspect: Any) -> None:
    assert control.ping(timeout=5, limit=1) == [{NAME: {"ok": "pong"}}]
    assert inspect("ping") == {"ok": "pong"}
    assert inspect("clock")["clock"] > 0
    assert "transport:sqlite" in inspect("report")["ok"]
    assert inspect("conf")["result_extended"] is True


def test_election_has_nobody_elected(control: Any) -> None:
    assert told(control, "election", id="id", topic="topic", action=None) is None


def test_registered_and_active_queues(inspect: Any) -> None:
    assert "contract_program.add" in inspect("registered")
    (queue,) = inspect("active_queues")
    assert (queue["name"], queue["exchange"]["type"]) == ("celery", "direct")


def test_running_waiting_and_future_tasks_are_seen(
    tasks: Any, contract: Contract, inspect: Any
) -> None:
    key = contract.new_key()
    result = tasks.waiting.delay(key)
    future = tasks.add.apply_async((1, 2), countdown=3600)
    pid = int(contract.wait_for("waiting", key)[2])

    (active,) = inspect("active")
    assert (active["id"], active["name"], active["worker_pid"]) == (
        result.id,
        "contract_program.waiting",
        pid,
    )
    assert (active["args"], active["acknowledged"]) == ([key], True)
    assert isinstance(active["time_start"], float)
    assert inspect("reserved") == []
    (scheduled,) = inspect("scheduled")
    assert scheduled["request"]["id"] == future.id
    assert scheduled["eta"] == future_eta(contract, future.id)
    assert inspect("query_task", result.id)[result.id][0] == "active"

    contract.let_go(key)
    result.get(timeout=SOON)
    future.revoke()
    assert inspect("active") == []


def future_eta(contract: Contract, task_id: str) -> str:
    from celeriac.engines import open_engine
    from celeriac.envelope import Envelope

    (info,) = open_engine(contract.url).list_tasks(task_ids=[task_id])
    return str(Envelope.of(info).headers["eta"])


def test_stats_count_what_was_run(tasks: Any, inspect: Any) -> None:
    before = inspect("stats")["total"].get("contract_program.add", 0)

    for result in [tasks.add.delay(i, i) for i in range(5)]:
        result.get(timeout=SOON)

    stats = inspect("stats")
    assert stats["total"]["contract_program.add"] == before + 5
    assert stats["pool"]["max-concurrency"] == len(stats["pool"]["processes"]) == 2
    assert stats["broker"]["transport"] == "sqlite"


# Telling


def test_revoked_task_is_listed(tasks: Any, inspect: Any) -> None:
    result = tasks.add.apply_async((1, 2), countdown=3600)

    result.revoke()

    wait_until(lambda: result.id in inspect("revoked"), SOON)


def test_running_task_is_terminated(tasks: Any, contract: Contract) -> None:
    key = contract.new_key()
    result = tasks.waiting.delay(key)
    contract.wait_for("waiting", key)

    result.revoke(terminate=True)

    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=SOON)
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3


def test_running_task_is_killed(tasks: Any, contract: Contract, control: Any) -> None:
    key = contract.new_key()
    result = tasks.late_waiting.delay(key)
    contract.wait_for("waiting", key)

    control.terminate(result.id, signal="KILL")

    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=SOON)


def test_tasks_with_a_stamp_are_revoked(tasks: Any, control: Any, contract: Contract) -> None:
    key = contract.new_key()
    signature = tasks.note.si(key)
    signature.stamp(customer=key)
    answer = told(control, "revoke_by_stamped_headers", headers={"customer": [key]})
    assert "flagged as revoked" in answer["ok"]

    result = signature.apply_async()

    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=SOON)
    assert not contract.journal(key)


def test_rate_limit_is_set(tasks: Any, control: Any) -> None:
    try:
        assert told(control, "rate_limit", task_name="contract_program.nap", rate_limit="5/s") == {
            "ok": "new rate limit set successfully"
        }
        results = [tasks.now.delay() for _ in range(3)]
        assert told(control, "rate_limit", task_name="contract_program.now", rate_limit="5/s")["ok"]
        limited = [tasks.now.delay() for _ in range(3)]
        starts = sorted(result.get(timeout=SOON) for result in limited)
        assert starts[-1] - starts[0] >= 0.38
        for result in results:
            result.get(timeout=SOON)
    finally:
        told(control, "rate_limit", task_name="contract_program.now", rate_limit="0")
        told(control, "rate_limit", task_name="contract_program.nap", rate_limit="0")
    again = [tasks.now.delay() for _ in range(3)]
    starts = sorted(result.get(timeout=SOON) for result in again)
    assert starts[-1] - starts[0] < 0.35


def test_time_limit_is_set(tasks: Any, control: Any) -> None:
    from billiard.exceptions import TimeLimitExceeded

    told(control, "time_limit", task_name="contract_program.deaf", hard=0.3, soft=None)
    try:
        with pytest.raises(TimeLimitExceeded):
            tasks.deaf.delay().get(timeout=SOON)
    finally:
        answer = told(
            control, "time_limit", task_name="contract_program.deaf", hard=None, soft=None
        )
    assert answer == {"ok": "time limits set successfully"}


def test_consumer_is_added_and_cancelled(tasks: Any, control: Any, inspect: Any) -> None:
    result = tasks.add.apply_async((1, 2), queue="late-comer")

    answer = told(control, "add_consumer", queue="late-comer")
    assert answer == {"ok": "add consumer late-comer"}
    assert result.get(timeout=SOON) == 3
    assert [queue["name"] for queue in inspect("active_queues")] == ["celery", "late-comer"]

    told(control, "cancel_consumer", queue="late-comer")
    wait_until(lambda: [each["name"] for each in inspect("active_queues")] == ["celery"], SOON)
    left = tasks.add.apply_async((1, 2), queue="late-comer")
    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3
    assert left.state == "PENDING"


def test_pool_grows_shrinks_and_restarts(tasks: Any, control: Any, inspect: Any) -> None:
    processes = lambda: inspect("stats")["pool"]["processes"]  # noqa: E731
    before = processes()

    told(control, "pool_grow", n=2)
    wait_until(lambda: len(processes()) == 4, SOON)
    told(control, "pool_shrink", n=2)
    wait_until(lambda: len(processes()) == 2, SOON)
    told(control, "pool_restart")
    wait_until(lambda: len(processes()) == 2 and not set(processes()) & set(before), SOON)

    assert tasks.add.delay(1, 2).get(timeout=SOON) == 3


# Events


def test_events_tell_the_life_of_a_task(tasks: Any, control: Any) -> None:
    assert told(control, "enable_events") == {"ok": "task events enabled"}
    seen: list[dict[str, Any]] = []
    with tasks.celery.connection_for_read() as own:
        receiver = tasks.celery.events.Receiver(own, handlers={"*": seen.append})
        with receiver.consumer_context() as (connection, _, _):
            succeeding = tasks.add.delay(1, 2)
            failing = tasks.fail.delay("no")
            retrying = tasks.flaky.delay(1)
            revoked = tasks.add.apply_async((1, 2), countdown=0.2, expires=0.1)
            ids = {each.id for each in (succeeding, failing, retrying, revoked)}

            def told_all() -> bool:
                drain(connection)
                ends = {"task-succeeded", "task-failed", "task-revoked"}
                return ids <= {each["uuid"] for each in seen if each["type"] in ends}

            wait_until(told_all, SOON)

    def life(result: Any) -> list[str]:
        # In the order of their times, as monitors do: each process sends on its own.
        mine = [each for each in seen if each.get("uuid") == result.id]
        steps = [each["type"][5:] for each in sorted(mine, key=lambda each: each["timestamp"])]
        # Celery tells that it sent a task after it did so, and a worker may be quicker.
        assert "sent" in steps
        return [step for step in steps if step != "sent"]

    assert life(succeeding) == ["received", "started", "succeeded"]
    assert life(failing) == ["received", "started", "failed"]
    assert life(retrying) == "received started retried received started succeeded".split()
    assert life(revoked)[-1] == "revoked"
    (succeeded,) = [each for each in seen if each["type"] == "task-succeeded"][:1]
    assert {"hostname", "uuid", "result", "runtime", "pid", "clock"} <= succeeded.keys()


def drain(connection: Any) -> None:
    try:
        connection.drain_events(timeout=0.1)
    except TimeoutError:
        pass


def test_events_are_switched_off_and_on(control: Any) -> None:
    assert told(control, "enable_events") == {"ok": "task events already enabled"}
    assert told(control, "disable_events") == {"ok": "task events disabled"}
    assert told(control, "disable_events") == {"ok": "task events already disabled"}


# The command line


def test_celery_inspect_and_status(celery: Any) -> None:
    assert "pong" in celery("inspect", "ping", "-t", "1")
    assert "1 node online" in celery("status", "-t", "1")
    stats = json.loads(celery("inspect", "-j", "-t", "1", "stats"))
    assert stats[NAME]["broker"]["transport"] == "sqlite"


def test_celery_call_and_result(celery: Any, tasks: Any) -> None:
    task_id = celery("call", "contract_program.add", "-a", "[1, 2]").strip()
    tasks.celery.AsyncResult(task_id).get(timeout=SOON)

    assert celery("result", task_id).strip() == "3"


def test_celery_purge(celery: Any, tasks: Any) -> None:
    for _ in range(3):
        tasks.add.apply_async((1, 2), queue="to-purge")

    assert "Purged 3 messages" in celery("purge", "-f", "-Q", "to-purge")


def test_celery_events_dump(contract: Contract, tasks: Any) -> None:
    command = celery_command("-A", "contract_program", "events", "--dump")
    dump = Program(command, log_path=contract.folder / "dump", env=contract.env)
    try:
        dump.wait_for_log("heartbeat")
        assert told(tasks.celery.control, "enable_events")
        result = tasks.add.delay(1, 2)
        dump.wait_for_log(f"task succeeded: contract_program.add({result.id})")
    finally:
        dump.stop(signal.SIGINT)


def test_celery_events_with_a_camera(contract: Contract, tasks: Any) -> None:
    (contract.folder / "camera.py").write_text(
        "from celery.events.snapshot import Polaroid\n"
        "class Camera(Polaroid):\n"
        "    def on_shutter(self, state):\n"
        "        for task in state.tasks.values():\n"
        "            print('seen', task.uuid, task.state, task.name, flush=True)\n"
    )
    command = celery_command(
        "-A", "contract_program", "events", "-c", "camera.Camera", "--frequency", "0.1"
    )
    camera = Program(
        command, log_path=contract.folder / "camera.out", cwd=contract.folder, env=contract.env
    )
    try:
        assert told(tasks.celery.control, "enable_events")

        sent: list[str] = []

        def is_seen() -> bool:
            result = tasks.add.delay(1, 2)
            result.get(timeout=SOON)
            sent.append(f"seen {result.id} SUCCESS contract_program.add")
            return any(line in camera.log for line in sent)

        # Until the camera is ready, it sees nothing.
        wait_until(is_seen, 30, interval=0.5, message=lambda: f"a task in:\n{camera.log}")
    finally:
        camera.stop(signal.SIGINT)


def test_celery_migrate_to_and_from_redis(celery: Any, contract: Contract, redis_url: str) -> None:
    import redis

    contract.program.add.apply_async((1, 2), queue="to-migrate")
    contract.program.add.apply_async((1, 2), queue="to-migrate", countdown=3600)

    celery("migrate", contract.url, redis_url, "-Q", "to-migrate", "-n", "1")

    with redis.Redis.from_url(redis_url) as client:
        assert client.llen("to-migrate") == 1
