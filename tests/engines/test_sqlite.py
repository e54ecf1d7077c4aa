"""What is special about SQLite: one file, its locks, forks, and processes that die."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from programs import Program
from programs import run
from waiting import wait_until

from celeriac.engines import close_engines
from celeriac.engines import EngineError
from celeriac.engines import open_engine
from celeriac.engines.base import ChordPart
from celeriac.engines.base import Delivery
from celeriac.engines.base import Message
from celeriac.engines.base import Outcome
from celeriac.engines.base import Queue
from celeriac.engines.base import Result
from celeriac.engines.base import Worker
from celeriac.engines.bell import mask
from celeriac.engines.bell import MESSAGES
from celeriac.engines.sqlite import SQLiteEngine
from celeriac.engines.statements import load_migrations
from celeriac.engines.statements import load_statements

SRC = Path(sys.modules[SQLiteEngine.__module__].__file__ or "").parent
#: More than any wait takes that was woken, less than the floor of polling.
AT_ONCE = 0.5


@pytest.fixture
def url(queue_path: Path) -> str:
    return f"sqlite:///{queue_path}?durability=normal&busy_timeout=10"


@pytest.fixture
def engine(url: str) -> Iterator[SQLiteEngine]:
    engine = SQLiteEngine(url)
    introduce(engine, "w")
    yield engine
    engine.deregister("w")
    engine.close()


def introduce(engine: SQLiteEngine, worker_id: str) -> None:
    engine.register(Worker(worker_id, f"{worker_id}@host", os.getpid(), ["q"], ["t"]))


def publish(engine: SQLiteEngine, *texts: str, queue: str = "q", task: str = "t") -> None:
    engine.publish([Message(queue, "{}", text, task, text) for text in texts])


def claim(engine: SQLiteEngine, limit: int = 100, **options: object) -> list[Delivery]:
    options.setdefault("worker", "w")
    return engine.claim(["q"], limit, **options)  # type: ignore[arg-type]


def pragma(engine: SQLiteEngine, name: str) -> object:
    return engine._connections.get().db.execute(f"PRAGMA {name}").fetchone()[0]


def files(path: Path) -> dict[str, Path]:
    return {each.name: each for each in path.with_name(f"{path.name}.d").iterdir()}


@contextmanager
def locked(path: Path, mode: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
    """Hold the file's lock as another program would that writes to it."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute(f"BEGIN {mode}")
        yield other


def in_child(action: Callable[[], object]) -> Callable[[], None]:
    """Fork, run ``action`` in the child; return a function that waits for it to succeed."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            action()
            code = 0
        except BaseException as exc:
            os.write(2, f"child: {exc!r}\n".encode())
        finally:
            os._exit(code)

    def join() -> None:
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 20)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    return join


# The file


def test_nobody_else_can_read_what_lies_beside_the_file(
    engine: SQLiteEngine, queue_path: Path
) -> None:
    engine.wait_for_messages(["q"], 0, place=("w", 0))

    assert stat.S_IMODE(engine.folder.stat().st_mode) == 0o700
    modes = {name: stat.S_IMODE(path.stat().st_mode) for name, path in files(queue_path).items()}
    assert modes == {"bell": 0o600, "pipe-0": 0o600, "worker-w": 0o600}
    assert stat.S_IMODE(queue_path.with_name(f"{queue_path.name}-shm").stat().st_mode) == 0o600


def test_a_file_made_by_its_owner_keeps_its_mode(queue_path: Path, url: str) -> None:
    queue_path.touch()
    queue_path.chmod(0o660)

    open_engine(url).queue_sizes()

    assert stat.S_IMODE(queue_path.stat().st_mode) == 0o660


def test_the_log_is_written_ahead(engine: SQLiteEngine) -> None:
    assert pragma(engine, "journal_mode") == "wal"
    assert pragma(engine, "wal_autocheckpoint") == 4000


#: What each kind of transaction waits for: 2 is FULL (the disk), 1 is NORMAL.
TRANSACTIONS: list[tuple[Callable[[SQLiteEngine], object], int]] = [
    (lambda e: publish(e, "a"), 2),
    (lambda e: e.publish([Message("q", "{}", "", transient=True)]), 1),
    (lambda e: publish(e, "a") or claim(e), 1),
    (lambda e: publish(e, "a") or e.complete([Outcome(each) for each in claim(e)]), 2),
    (lambda e: publish(e, "a") or e.release(claim(e)), 1),
    (lambda e: publish(e, "a") or e.redeliver(claim(e), died=True), 2),
    (lambda e: e.store_results([Result("a", "SUCCESS", b"")]), 2),
    (lambda e: e.forget(["a"]), 1),
    (lambda e: e.revive([1]), 2),
    (lambda e: e.discard([1]), 2),
    (lambda e: e.revoke(["a"]), 2),
    (lambda e: e.declare_queue(Queue("q")), 1),
    (lambda e: e.finish_chord("g"), 2),
    (lambda e: e.heartbeat("w"), 1),
    (lambda e: e.maintain(time.time()), 1),
]


@pytest.mark.parametrize(("transaction", "synchronous"), TRANSACTIONS)
def test_only_what_must_survive_the_loss_of_power_waits_for_the_disk(
    queue_path: Path, transaction: Callable[[SQLiteEngine], object], synchronous: int
) -> None:
    with closing(SQLiteEngine(f"sqlite:///{queue_path}")) as engine:
        introduce(engine, "w")
        transaction(engine)
        assert pragma(engine, "synchronous") == synchronous
        engine.deregister("w")


def test_with_normal_durability_nothing_waits_for_the_disk(engine: SQLiteEngine) -> None:
    publish(engine, "a")

    assert pragma(engine, "synchronous") == 1


def test_a_file_that_somebody_removed_is_made_anew(engine: SQLiteEngine, queue_path: Path) -> None:
    publish(engine, "a", queue="other")
    publish(engine, "gone")
    for suffix in ("", "-wal", "-shm"):
        queue_path.with_name(queue_path.name + suffix).unlink()

    publish(engine, "b")

    with closing(SQLiteEngine(engine.url)) as another:
        assert another.queue_sizes() == {"q": 1}
    engine.heartbeat("w")
    assert [worker.id for worker in engine.list_workers()] == ["w"]
    assert [each.body for each in claim(engine)] == ["b"]


# Statements


def test_a_worker_goes_on_beside_a_newer_version_that_lists_more(
    engine: SQLiteEngine, queue_path: Path
) -> None:
    publish(engine, "one")
    before = engine.list_tasks()
    find = "SELECT sql FROM sqlite_schema WHERE name = 'celeriac_tasks'"
    with closing(sqlite3.connect(queue_path)) as db:
        ((view,),) = db.execute(find).fetchall()
        db.execute("DROP VIEW celeriac_tasks")
        db.execute(view.replace("m.report\n", "m.report, 1 AS more\n"))

    assert engine.list_tasks() == before


def test_every_statement_is_used_and_can_be_prepared(engine: SQLiteEngine) -> None:
    source = "".join(path.read_text() for path in SRC.glob("*.py"))

    for name, sql in load_statements("sqlite").items():
        named = dict.fromkeys(re.findall(r":(\w+)", sql))
        marks = [None] * (sql.count("?") if "?1" not in sql else len(set(re.findall(r"\?\d", sql))))
        engine._read(lambda db, sql=sql, p=named or marks: db.execute(f"EXPLAIN {sql}", p))  # type: ignore[misc]
        assert f'"{name}"' in source or name.startswith("list_")


@pytest.mark.parametrize(
    "name",
    [
        *("head", "busy_lanes", "next_due", "take_due", "delete_ready", "insert_claim"),
        *("claimed_messages", "end_claims", "delete_messages", "restore_ready", "get_results"),
        *("store_result", "revoked", "complete_chord", "chord_parts", "list_tasks_by_id"),
        *("list_claimed_tasks", "list_scheduled_tasks", "expire_results", "forget"),
        *("list_dead_tasks", "expire_dead", "end_dead", "renew", "forget_failures"),
        *("add_report", "forget_expiry", "waiting_tasks", "waiting_expired", "restore_queues"),
        *("trim_results", "last_result"),
    ],
)
def test_what_is_done_often_reads_no_whole_table(engine: SQLiteEngine, name: str) -> None:
    sql = engine._sql[name]
    named = dict.fromkeys(re.findall(r":(\w+)", sql), 1)
    parameters = named or [1] * sql.count("?")

    plan = engine._read(lambda db: db.execute(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchall())

    scans = [row[3] for row in plan if row[3].startswith("SCAN")]
    # Claims and what is scheduled are read whole where they are what is asked for.
    allowed = {"SCAN json_each VIRTUAL TABLE INDEX 1:", "SCAN busy", "SCAN CONSTANT ROW"}
    allowed |= (
        {"SCAN c", "SCAN s", "SCAN d USING INDEX celeriac_dead_by_time"}
        if name.startswith("list_")
        else set()
    )
    assert {scan for scan in scans if "json_each" not in scan} <= allowed, plan


def test_claiming_costs_the_same_however_much_waits(engine: SQLiteEngine) -> None:
    def cost() -> float:
        def once() -> float:
            began = time.perf_counter()
            engine.release(claim(engine, 10))
            return time.perf_counter() - began

        return min(once() for _ in range(50))

    publish(engine, *map(str, range(100)))
    few = cost()
    publish(engine, *map(str, range(100_000)))

    assert cost() < 3 * few


# Locks


def test_a_writer_waits_for_another_programs_lock(engine: SQLiteEngine, queue_path: Path) -> None:
    with locked(queue_path) as other, ThreadPoolExecutor(1) as thread:
        published = thread.submit(publish, engine, "a")
        with pytest.raises(futures.TimeoutError):
            published.result(0.1)
        other.execute("COMMIT")
        published.result(5)

    assert engine.queue_sizes() == {"q": 1}


def test_a_lock_that_stays_is_an_error_and_nothing_is_stored(queue_path: Path) -> None:
    with closing(SQLiteEngine(f"sqlite:///{queue_path}?busy_timeout=0.2")) as engine:
        publish(engine, "a")
        with locked(queue_path), pytest.raises(EngineError) as caught:
            publish(engine, "b")

        assert str(caught.value) == (
            f"The queue file {queue_path} stayed locked for 0.2 s. Another program holds a "
            "transaction open on it: only Celeriac should write to this file."
        )
        publish(engine, "c")
        introduce(engine, "w")
        assert [each.body for each in claim(engine)] == ["a", "c"]
        engine.deregister("w")


def test_a_reader_waits_while_another_process_has_the_file_for_itself(
    engine: SQLiteEngine, queue_path: Path
) -> None:
    publish(engine, "a")
    engine.close()
    with closing(sqlite3.connect(queue_path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("DELETE FROM celeriac_revoked")
        with ThreadPoolExecutor(1) as thread:
            read = thread.submit(engine.queue_sizes)
            with pytest.raises(futures.TimeoutError):
                read.result(0.1)
            other.close()
            assert read.result(5) == {"q": 1}


class TimeLimit(Exception):
    pass


def test_a_time_limit_at_any_moment_leaves_no_lock_behind(engine: SQLiteEngine, url: str) -> None:
    # A soft time limit is an exception out of a signal handler, anywhere in the task: also
    # inside of its delay().
    def interrupt(*_: object) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, interrupt)
    told, interrupted = 0, 0
    try:
        for number in range(600):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00001 + number % 100 * 0.000002)
                publish(engine, str(number))
                told += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
            except TimeLimit:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert interrupted > 50
    with closing(SQLiteEngine(url)) as another:
        publish(another, "after")
        assert another.queue_sizes()["q"] > told


def test_a_signal_handler_does_not_tear_the_transaction_that_it_interrupts(
    engine: SQLiteEngine,
) -> None:
    refused: list[str] = []

    def claim_as_well(*_: object) -> None:
        try:
            claim(engine)
        except EngineError as exc:
            refused.append(str(exc))

    publish(engine, "a")
    with engine._write() as db:
        claim_as_well()
        db.execute("DELETE FROM celeriac_ready")

    assert refused == [
        "A signal handler uses the queue in the midst of a transaction of the thread that it "
        "interrupts: let the handler only note what is to be done, and do it later."
    ]
    assert claim(engine) == []


def test_threads_see_each_others_new_lanes(engine: SQLiteEngine) -> None:
    # The picture of the lanes is shared, and each thread has a connection of its own.
    def work(number: int) -> None:
        introduce(engine, f"w{number}")
        for each in range(60):
            task = f"t{number}-{each}"
            publish(engine, task, task=task)
            found = engine.claim(["q"], 1, worker=f"w{number}", tasks={task})
            assert [delivery.task for delivery in found] == [task]
        engine.deregister(f"w{number}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))


# Forks


def test_both_sides_of_a_fork_go_on(engine: SQLiteEngine) -> None:
    publish(engine, "before")

    join = in_child(lambda: publish(engine, "child"))
    publish(engine, "parent")
    join()

    assert {each.body for each in claim(engine)} == {"before", "child", "parent"}


def test_no_connection_and_no_lock_comes_through_a_fork(
    engine: SQLiteEngine, queue_path: Path
) -> None:
    publish(engine, "a")
    engine.wait_for_messages(["q"], 0, place=("w", 0))

    def look() -> None:
        links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        assert not [link for link in links if link.startswith(str(queue_path))], links

    in_child(look)()


def test_a_fork_while_threads_work_and_sleep(engine: SQLiteEngine) -> None:
    over = threading.Event()

    def work(number: int) -> None:
        while not over.is_set():
            publish(engine, f"{number}", queue="threads")

    def sleep() -> None:
        while not over.is_set():
            engine.wait_for_messages(["q"], 1)
            time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    threads += [threading.Thread(target=sleep)]
    for thread in threads:
        thread.start()
    try:
        for number in range(15):
            # New URLs: their engines are made and opened in the child, under the same locks.
            url = f"{engine.url}&busy_timeout={20 + number}"
            in_child(lambda url=url: publish(open_engine(url), "child"))()  # type: ignore[arg-type, misc]
    finally:
        over.set()
        publish(engine, "wake")
        for thread in threads:
            thread.join()

    assert engine.queue_sizes()["q"] == 16


def test_a_child_of_a_worker_is_a_stranger_to_its_parents_places(engine: SQLiteEngine) -> None:
    publish(engine, "a")
    claim(engine)

    def look() -> None:
        assert engine.lost() == []
        engine.attend("w", 0)
        assert len(engine.lost("w", -1)) == 1

    in_child(look)()

    assert engine.lost() == []


# Processes that wait, live and die

CLAIMANT = """
import os, sys, time
from celeriac.engines import open_engine
from celeriac.engines.base import Worker

engine = open_engine(sys.argv[1])
engine.register(Worker("victim", "victim@host", os.getpid(), ["q"], []))
engine.attend("victim", 1)
print(len(engine.claim(["q"], 10, worker="victim", slot=1)), "claimed", flush=True)
engine.wait_for_messages(["nothing"], 600)
time.sleep(600)
"""
PARENT = """
import os, sys, time
from celeriac.engines import open_engine
from celeriac.engines.base import Worker

engine = open_engine(sys.argv[1])
engine.register(Worker("victim", "victim@host", os.getpid(), ["q"], []))
if not os.fork():
    engine.attend("victim", 1)
    print(len(engine.claim(["q"], 10, worker="victim", slot=1)), "claimed", flush=True)
time.sleep(600)
"""
PUBLISH = """
import sys
from celeriac.engines import open_engine
from celeriac.engines.base import Message

sys.stdin.readline()
open_engine(sys.argv[1]).publish([Message("q", "{}", "a", "t")])
"""


@pytest.fixture
def victim(
    engine: SQLiteEngine, url: str, program: Callable[..., Program]
) -> Callable[[str], Program]:
    """Start a process that claims the two messages there are."""

    def start(code: str) -> Program:
        publish(engine, "a", "b")
        started = program(sys.executable, "-c", code, url)
        started.wait_for_log("2 claimed")
        return started

    return start


def test_what_a_killed_process_held_is_lost_at_once(
    engine: SQLiteEngine, victim: Callable[[str], Program]
) -> None:
    process = victim(CLAIMANT)
    assert engine.lost() == []

    process.kill()

    lost = engine.lost()
    assert [each.delivery.body for each in lost] == ["a", "b"]
    assert {each[1:] for each in lost} == {("victim", 1, "victim@host")}
    engine.redeliver([each.delivery for each in lost], died=True)
    assert [(each.body, each.deaths) for each in claim(engine)] == [("a", 1), ("b", 1)]


def test_a_process_that_is_stopped_is_not_dead(
    engine: SQLiteEngine, victim: Callable[[str], Program]
) -> None:
    process = victim(CLAIMANT)

    process.send(signal.SIGSTOP)

    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    assert engine.lost() == []
    assert all(worker.alive for worker in engine.list_workers())
    process.kill()


def test_a_dead_workers_row_and_file_go_after_its_deliveries(
    engine: SQLiteEngine, queue_path: Path, victim: Callable[[str], Program]
) -> None:
    victim(CLAIMANT).kill()
    assert [w.alive for w in engine.list_workers()] == [True, False]

    engine.maintain(time.time())
    assert "worker-victim" in files(queue_path)
    assert len(engine.lost()) == 2

    engine.release([each.delivery for each in engine.lost()])
    engine.maintain(time.time())
    assert "worker-victim" not in files(queue_path)
    assert [worker.id for worker in engine.list_workers()] == ["w"]


def test_a_child_that_outlives_its_parent_keeps_what_it_holds(
    engine: SQLiteEngine, victim: Callable[[str], Program]
) -> None:
    process = victim(PARENT)
    (child,) = process.children()

    os.kill(process.pid, signal.SIGKILL)
    process.process.wait()

    assert [w.alive for w in engine.list_workers()] == [True, False]
    engine.maintain(time.time())
    assert engine.lost() == []
    child.kill()
    assert len(wait_until(engine.lost)) == 2


def test_who_loses_its_presence_file_is_judged_by_its_heartbeat(
    engine: SQLiteEngine, queue_path: Path, victim: Callable[[str], Program]
) -> None:
    process = victim(CLAIMANT)
    files(queue_path)["worker-victim"].unlink()

    assert engine.lost() == []
    engine.maintain(time.time())
    assert len(engine.list_workers()) == 2

    with closing(sqlite3.connect(queue_path)) as db:
        db.execute("UPDATE celeriac_workers SET heartbeat_at = heartbeat_at - 61")
        db.commit()
    assert len(engine.lost()) == 2
    process.kill()


def test_a_child_that_starts_after_the_file_was_removed_declares_nobody_dead(
    engine: SQLiteEngine, queue_path: Path
) -> None:
    publish(engine, "a")
    claim(engine)
    files(queue_path)["worker-w"].unlink()

    in_child(lambda: engine.attend("w", 1))()

    with closing(SQLiteEngine(engine.url)) as another:
        assert another.lost() == []
    assert "worker-w" not in files(queue_path)


def test_a_presence_file_that_belongs_to_nobody_is_removed(
    engine: SQLiteEngine, queue_path: Path
) -> None:
    (engine.folder / "worker-stray").touch()

    engine.maintain(time.time())

    assert set(files(queue_path)) - {"upkeep"} == {"bell", "worker-w"}


def test_looking_for_the_dead_does_not_stop_a_child_from_starting(engine: SQLiteEngine) -> None:
    over = threading.Event()
    with closing(SQLiteEngine(engine.url)) as another:

        def look() -> None:
            while not over.is_set():
                another.list_workers()

        def attend() -> None:
            for number in range(300):
                introduce(another, f"x{number}")
                another.deregister(f"x{number}")

        joins = [in_child(attend)]
        thread = threading.Thread(target=look)
        thread.start()
        for join in joins:
            join()
        over.set()
        thread.join()


# Waking between processes


def test_a_message_from_another_process_wakes(
    engine: SQLiteEngine, url: str, program: Callable[..., Program]
) -> None:
    publish(engine, "x")
    engine.complete([Outcome(each) for each in claim(engine)])
    stdin, send = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", PUBLISH, url],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, stdin, 0)],
    )
    os.close(stdin)
    timer = threading.Timer(0.3, os.write, (send, b"\n"))
    timer.start()

    wait_until(lambda: engine.wait_for_messages(["q"], 5))

    published_at = engine.list_tasks()[0].published_at
    assert time.time() - published_at < AT_ONCE / 2
    timer.join()
    os.close(send)
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("workers", "messages", "woken"),
    [("ww", 1, 1), ("ww", 2, 2), ("www", 2, 2), ("wo", 1, 2), ("wwo", 1, 2)],
    ids=str,
)
def test_of_a_workers_children_as_many_are_woken_as_there_are_messages(
    engine: SQLiteEngine, workers: str, messages: int, woken: int
) -> None:
    """Each other worker is woken too: this one may have been stopped."""

    def wait(slot: int, worker: str) -> float:
        engine.attend(worker, slot)
        began = time.monotonic()
        engine.wait_for_messages(["q"], 1, place=(worker, slot))
        return time.monotonic() - began

    bell = engine._connections.bell()
    with ThreadPoolExecutor(len(workers)) as threads:
        waits = list(threads.map(lambda each: threads.submit(wait, *each), enumerate(workers)))
        wait_until(lambda: bell._map[: len(workers)] == bytes([MESSAGES]) * len(workers))
        time.sleep(0.1)  # They look once more before they sleep.
        publish(engine, *map(str, range(messages)))

        assert sum(each.result() < AT_ONCE for each in waits) == woken


@pytest.mark.parametrize("first", ["child", "parent"])
def test_a_parent_whose_mailbox_shares_the_queues_bit_takes_no_childs_turn(
    engine: SQLiteEngine, first: str
) -> None:
    mailbox = next(name for name in map(str, range(1000)) if mask([name]) == mask(["q"]))
    queues = {"child": ["q"], "parent": [mailbox]}
    bell = engine._connections.bell()

    with ThreadPoolExecutor(2) as threads:
        waits = {}
        for slot, who in enumerate(sorted(queues, key=lambda who: who != first)):
            place = ("w", slot)
            waits[who] = threads.submit(engine.wait_for_messages, queues[who], 1, place=place)
            wait_until(lambda: bell._map[slot] == MESSAGES)  # noqa: B023  (waited for)
        began = time.monotonic()
        publish(engine, "x")

        assert waits["child"].result()
        assert time.monotonic() - began < AT_ONCE


def test_a_sleeper_that_was_killed_leaves_its_slot_to_others(
    engine: SQLiteEngine, queue_path: Path, victim: Callable[[str], Program]
) -> None:
    process = victim(CLAIMANT)
    wait_until(lambda: "pipe-0" in files(queue_path))
    process.kill()

    publish(engine, "c")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(engine.wait_for_results, ["r"], 5)
        engine.store_results([Result("r", "SUCCESS", b"")])
        assert waiting.result(AT_ONCE)
    assert set(files(queue_path)) == {"bell", "pipe-0", "worker-w", "worker-victim"}


def test_when_all_slots_are_taken_waiting_polls(engine: SQLiteEngine, queue_path: Path) -> None:
    engine.queue_sizes()
    reading, told = os.pipe()
    ending, end = os.pipe()

    def take_all() -> None:
        with files(queue_path)["bell"].open("r+b") as bell:
            fcntl.lockf(bell, fcntl.LOCK_EX, 512, 0)
            os.write(told, b"!")
            os.read(ending, 1)

    join = in_child(take_all)
    os.read(reading, 1)

    timer = threading.Timer(0.1, publish, (engine, "a"))
    timer.start()
    began = time.monotonic()
    assert engine.wait_for_messages(["q"], 5)
    assert 0.05 < time.monotonic() - began < AT_ONCE
    timer.join()
    assert set(files(queue_path)) - {"upkeep"} == {"bell", "worker-w"}

    # Afterwards there are slots again.
    os.write(end, b"!")
    join()
    assert not engine.wait_for_messages(["other"], 0.01)
    assert "pipe-0" in files(queue_path)
    for each in (reading, told, ending, end):
        os.close(each)


def test_closing_leaves_no_file_open(url: str, queue_path: Path) -> None:
    engine = SQLiteEngine(url)
    introduce(engine, "w")
    publish(engine, "a")
    assert not engine.wait_for_messages(["other"], 0.01, place=("w", 0))
    publish(engine, "b")
    engine.deregister("w")

    engine.close()

    links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [link for link in links if link.startswith(str(queue_path))]


# Migrations


def test_a_new_file_has_the_newest_version(engine: SQLiteEngine) -> None:
    assert pragma(engine, "user_version") == load_migrations("sqlite")[-1][0]
    assert pragma(engine, "application_id") == int.from_bytes(b"Clrc", "big")


def test_migrations_are_numbered_without_gaps() -> None:
    numbers = [number for number, _, _ in load_migrations("sqlite")]

    assert numbers == list(range(1, len(numbers) + 1))


def test_a_file_of_a_newer_version_is_refused(engine: SQLiteEngine, queue_path: Path) -> None:
    publish(engine, "a")
    newest = load_migrations("sqlite")[-1][0]
    with closing(sqlite3.connect(queue_path)) as db:
        db.execute("PRAGMA user_version = 99")
    engine.close()

    with pytest.raises(EngineError) as caught:
        engine.queue_sizes()

    assert str(caught.value) == (
        f"The queue file {queue_path} has schema version 99, and this version of Celeriac knows "
        f"up to {newest}. Upgrade Celeriac, or use another queue file."
    )
    with closing(sqlite3.connect(queue_path)) as db:
        db.execute(f"PRAGMA user_version = {newest}")


def test_a_sqlite_that_is_too_old_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.34.1")
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))

    with pytest.raises(EngineError) as caught:
        SQLiteEngine(url).queue_sizes()

    assert str(caught.value) == (
        "This Python has SQLite 3.34.1, and the queue needs 3.35.0 or newer. Use a newer build of "
        "Python, or another broker."
    )


def test_another_programs_database_is_refused_and_left_as_it_is(queue_path: Path, url: str) -> None:
    with closing(sqlite3.connect(queue_path)) as db:
        db.execute("CREATE TABLE users (name)")
    before = queue_path.read_bytes()

    with pytest.raises(EngineError) as caught:
        publish(SQLiteEngine(url), "a")

    assert str(caught.value) == (
        f"{queue_path} is a SQLite database of another program. The queue needs a file of its "
        "own: name another one in broker_url, for example sqlite:///celeriac.sqlite3."
    )
    assert queue_path.read_bytes() == before


def test_eight_processes_make_the_file_at_once(url: str, queue_path: Path, tmp_path: Path) -> None:
    engine = SQLiteEngine(url)
    go = tmp_path / "go"

    def start() -> None:
        wait_until(go.exists, interval=0.0001)
        publish(engine, "a")

    joins = [in_child(start) for _ in range(8)]
    go.touch()
    for join in joins:
        join()

    assert engine.queue_sizes() == {"q": 8}
    engine.close()


def test_eight_threads_make_the_file_at_once(url: str) -> None:
    engine = SQLiteEngine(url)
    together = threading.Barrier(8)

    def start(_: int) -> None:
        together.wait()
        publish(engine, "a")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(start, range(8)))

    assert engine.queue_sizes() == {"q": 8}
    engine.close()


def test_a_migration_that_fails_leaves_the_file_empty(queue_path: Path, url: str) -> None:
    # A disk with room for a few pages only.
    with closing(sqlite3.connect(queue_path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    code = (
        "import resource, signal, sys\n"
        "from celeriac.engines import open_engine\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))\n"
        "open_engine(sys.argv[1]).queue_sizes()\n"
    )

    failed = run([sys.executable, "-c", code, url], check=False)

    assert "EngineError: " in failed.stderr
    engine = SQLiteEngine(url)
    publish(engine, "a")
    assert engine.queue_sizes() == {"q": 1}
    engine.close()


# Engines of a process


def test_a_process_has_one_engine_for_each_url(url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        engines = set(threads.map(lambda _: open_engine(url), range(20)))

    assert len(engines) == 1
    assert open_engine(f"{url}0") not in engines


def test_two_urls_of_one_file_do_not_disturb_each_other(url: str, queue_path: Path) -> None:
    one, two = open_engine(url), open_engine(f"sqlite:///{queue_path}")
    introduce(one, "w")  # type: ignore[arg-type]
    publish(two, "a")  # type: ignore[arg-type]

    two.close()

    code = "import sys; from celeriac.engines import open_engine as o; "
    code += "print([w.alive for w in o(sys.argv[1]).list_workers()])"
    assert run([sys.executable, "-c", code, url]).stdout == "[True]\n"
    one.deregister("w")
    close_engines()


@pytest.mark.parametrize("order", ["size first", "size in between", "size last"])
def test_a_failed_chord_is_there_until_its_last_part(
    engine: SQLiteEngine, queue_path: Path, order: str
) -> None:
    def rows() -> int:
        with closing(sqlite3.connect(queue_path)) as db:
            tables = ("celeriac_chords", "celeriac_chord_parts")
            return sum(db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables)

    parts = [ChordPart("g", f"{n}", n, b"", b"callback", failed=n == 0) for n in range(3)]
    if order == "size first":
        engine.set_chord_size("g", 3)
    assert engine.join_chord(parts[0])
    assert not engine.join_chord(parts[1])
    assert engine.finish_chord("g")
    if order == "size in between":
        assert not engine.set_chord_size("g", 3)
    assert rows() == 3
    assert engine.chord_parts("g") == engine.ready_chords(time.time() + 1) == []

    assert not engine.join_chord(parts[2])
    if order == "size last":
        assert not engine.set_chord_size("g", 3)

    assert rows() == 0


def test_a_chord_that_was_completed_before_the_clock_was_set_back_is_ready(
    engine: SQLiteEngine, queue_path: Path
) -> None:
    engine.set_chord_size("g", 1)
    part = ChordPart("g", "m", 0, b"1", b"callback")
    assert engine.join_chord(part)
    assert engine.ready_chords(time.time() - 10) == []

    with closing(sqlite3.connect(queue_path)) as db, db:
        db.execute("UPDATE celeriac_chords SET completed_at = completed_at + 3600")

    assert engine.ready_chords(time.time() - 10) == [part]
