"""Threads that publish at the same time share one transaction, and nothing else."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import FrameType

import pytest
from waiting import wait_until

from celeriac.engines import EngineError
from celeriac.engines.base import Message
from celeriac.engines.group_commit import GroupCommit
from celeriac.engines.sqlite import SQLiteEngine


class Interrupted(BaseException):
    """What a time limit raises, wherever the program is."""


class Disk:
    """Commits to a list, once told to."""

    def __init__(self) -> None:
        self.commits: list[list[str]] = []
        self.begun = threading.Event()
        self.may_go_on = threading.Event()
        self.error = ""
        self.interrupts = False

    def commit(self, messages: Sequence[Message], then: Callable[[None], None]) -> None:
        """Refuse what can not be encoded, as SQLite does."""
        bodies = [str(message.body) for message in messages]
        self.begun.set()
        assert self.may_go_on.wait(10)
        if self.error:
            raise EngineError(self.error)
        for body in bodies:
            body.encode()
        self.commits.append(bodies)
        then(None)
        if self.interrupts:
            raise Interrupted


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def publishers() -> GroupCommit[Message, None]:
    return GroupCommit()


@pytest.fixture
def publish(
    publishers: GroupCommit[Message, None], disk: Disk
) -> Iterator[Callable[..., Future[None]]]:
    """Return a function that publishes in a thread of its own, and returns once that waits."""
    with ThreadPoolExecutor(8) as threads:

        def publish(*bodies: str) -> Future[None]:
            messages = [Message("q", "{}", body) for body in bodies]
            # The first one commits, the others wait for it.
            waiting = len(publishers) if disk.begun.is_set() else -1
            future = threads.submit(publishers.commit, messages, disk.commit)
            wait_until(lambda: disk.begun.is_set() and len(publishers) > waiting)
            return future

        try:
            yield publish
        finally:
            disk.may_go_on.set()


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Return a function that interrupts this thread a moment later."""

    def strike(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, strike)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.1) and None
    finally:
        signal.signal(signal.SIGALRM, before)


def test_those_who_come_during_a_commit_share_the_next_one(
    disk: Disk, publish: Callable[..., Future[None]]
) -> None:
    futures = [publish("a"), publish("b"), publish("c", "c"), publish("d")]
    disk.may_go_on.set()

    assert [future.result(10) for future in futures] == [None] * 4
    assert disk.commits == [["a"], ["b", "c", "c", "d"]]


def test_a_shared_commit_does_not_grow_without_end(
    disk: Disk, publish: Callable[..., Future[None]]
) -> None:
    futures = [publish("a"), publish(*"b" * 150), publish(*"c" * 150), publish("d")]
    disk.may_go_on.set()

    assert [future.result(10) for future in futures] == [None] * 4
    assert [len(commit) for commit in disk.commits] == [1, 150, 151]


def test_where_others_can_not_come_during_a_commit_they_come_before(disk: Disk) -> None:
    others_came = threading.Event()
    group: GroupCommit[Message, None] = GroupCommit(lambda: others_came.wait(10))
    disk.may_go_on.set()

    with ThreadPoolExecutor(2) as threads:
        futures = []
        for name in "ab":
            futures.append(threads.submit(group.commit, [Message("q", "{}", name)], disk.commit))
            wait_until(lambda: len(group) == len(futures))
        others_came.set()

    assert [future.result(10) for future in futures] == [None, None]
    assert disk.commits == [["a", "b"]]


def test_each_who_shared_a_commit_is_told_its_error(
    disk: Disk, publish: Callable[..., Future[None]]
) -> None:
    futures = [publish("a"), publish("b"), publish("c")]
    disk.error = "There is no room left."
    disk.may_go_on.set()

    errors = [future.exception(10) for future in futures]

    assert [type(error) for error in errors] == [EngineError] * 3
    assert [str(error) for error in errors] == ["There is no room left."] * 3
    assert len(set(map(id, errors))) == 3


def test_what_can_not_be_stored_fails_its_own_caller_only(
    disk: Disk, publish: Callable[..., Future[None]]
) -> None:
    futures = [publish("a"), publish("b"), publish("\ud800"), publish("c")]
    disk.may_go_on.set()

    errors = [future.exception(10) for future in futures]

    assert [type(error) for error in errors] == [type(None)] * 2 + [UnicodeEncodeError, type(None)]
    assert sorted(body for commit in disk.commits for body in commit) == ["a", "b", "c"]


def test_who_is_interrupted_while_waiting_takes_its_messages_away(
    disk: Disk,
    publishers: GroupCommit[Message, None],
    publish: Callable[..., Future[None]],
    interrupt: Callable[[], None],
) -> None:
    leading = publish("a")

    with pytest.raises(Interrupted):
        interrupt()
        publishers.commit([Message("q", "{}", "mine")], disk.commit)
    following = publish("b")
    disk.may_go_on.set()

    assert leading.result(10) is following.result(10) is None
    assert disk.commits == [["a"], ["b"]]


def test_when_a_commit_is_interrupted_the_others_are_committed_by_the_next(
    disk: Disk, publishers: GroupCommit[Message, None], interrupt: Callable[[], None]
) -> None:
    def follow() -> None:
        assert disk.begun.wait(10)
        publishers.commit([Message("q", "{}", "other")], disk.commit)

    with ThreadPoolExecutor() as threads:
        following = threads.submit(follow)
        with pytest.raises(Interrupted):
            interrupt()
            publishers.commit([Message("q", "{}", "mine")], disk.commit)
        disk.may_go_on.set()

        assert following.result(10) is None
    assert disk.commits == [["other"]]
    assert len(publishers) == 0


def test_what_was_committed_when_an_interrupt_came_is_not_committed_again(
    disk: Disk, publish: Callable[..., Future[None]]
) -> None:
    futures = [publish("a"), publish("b"), publish("c")]
    disk.interrupts = True
    disk.may_go_on.set()

    errors = [type(future.exception(10)) for future in futures]

    assert errors[0] is Interrupted
    assert {*errors[1:]} == {Interrupted, type(None)}
    assert disk.commits == [["a"], ["b", "c"]]


def test_who_publishes_in_a_signal_handler_gets_an_error_and_no_deadlock(
    disk: Disk, publishers: GroupCommit[Message, None]
) -> None:
    disk.may_go_on.set()

    def commit(messages: Sequence[Message], then: Callable[[None], None]) -> None:
        publishers.commit([Message("q", "{}", "inner")], disk.commit)

    with pytest.raises(EngineError) as caught:
        publishers.commit([Message("q", "{}", "outer")], commit)

    assert str(caught.value) == (
        "A signal handler publishes while it interrupts a thread that does so: let the handler "
        "only note what is to be sent, and send it later."
    )
    publishers.commit([Message("q", "{}", "later")], disk.commit)
    assert disk.commits == [["later"]]


def test_what_threads_published_at_once_is_all_stored(queue_path: Path) -> None:
    with closing(SQLiteEngine(f"sqlite:///{queue_path}")) as engine:

        def publish(number: int) -> None:
            for _ in range(20):
                engine.publish([Message(f"q{number}", "{}", "x") for _ in range(number)])

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(publish, range(8)))

        assert engine.queue_sizes() == {f"q{number}": 20 * number for number in range(1, 8)}


def test_a_time_limit_in_the_midst_of_publishing_stores_nothing_twice(
    queue_path: Path, interrupt: Callable[[], None]
) -> None:
    with closing(SQLiteEngine(f"sqlite:///{queue_path}")) as engine:
        over = threading.Event()
        published = 0

        def publish() -> int:
            count = 0
            while not over.is_set():
                engine.publish([Message("other", "{}", "x")])
                count += 1
            return count

        with ThreadPoolExecutor() as threads:
            others = [threads.submit(publish) for _ in range(2)]
            try:
                for _ in range(5):
                    with pytest.raises(Interrupted):
                        interrupt()
                        while True:
                            engine.publish([Message("own", "{}", "x")])
                            published += 1
            finally:
                over.set()
            count = sum(future.result(10) for future in others)

        sizes = engine.queue_sizes()
        assert sizes["other"] == count
        assert published <= sizes["own"] <= published + 5


def test_a_program_ends_while_its_threads_publish(queue_path: Path) -> None:
    program = f"""
import threading
from celeriac.engines import open_engine
from celeriac.engines.base import Message

engine = open_engine("sqlite:///{queue_path}")

class Late:
    def __del__(self, publish=engine.publish, error=BaseException):
        try:
            publish([Message("late", "{{}}", "x")])
        except error as exc:
            print(type(exc).__name__, exc)

def work():
    while True:
        engine.publish([Message("q", "{{}}", "x")])

late = Late()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
while engine.queue_sizes().get("q", 0) < 20:
    pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=20)

    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_an_error_of_one_message_rolls_back_what_came_with_it(queue_path: Path) -> None:
    with closing(SQLiteEngine(f"sqlite:///{queue_path}")) as engine:
        with pytest.raises(UnicodeEncodeError):
            engine.publish([Message("q", "{}", "good"), Message("q", "{}", "\ud800")])

        assert engine.queue_sizes() == {}
        with closing(sqlite3.connect(queue_path)) as other:
            other.execute("BEGIN IMMEDIATE")
