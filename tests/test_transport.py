"""The kombu transport over an engine: exchanges, consuming, and what survives what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from celery import Celery
from celery.worker.consumer import Consumer
from kombu.exceptions import ChannelError
from kombu.exceptions import OperationalError
from programs import Program
from stock_worker import stock_worker
from waiting import wait_until

from celeriac.engines import Engine
from celeriac.engines import EngineError
from celeriac.engines import open_engine
from celeriac.engines.base import Message
from celeriac.engines.base import Worker
from celeriac.engines.routing import topic_matches
from celeriac.envelope import Envelope
from celeriac.transport import Transport


@pytest.fixture
def connection(queue_url: str) -> Iterator[kombu.Connection]:
    with kombu.Connection(queue_url) as connection:
        yield connection


@pytest.fixture
def engine(queue_url: str) -> Engine:
    return open_engine(queue_url)


@pytest.fixture
def publish(connection: kombu.Connection) -> Callable[..., None]:
    def publish(body: object = "hello", queue: str = "mail", **options: Any) -> None:
        kombu.Producer(connection.default_channel).publish(body, routing_key=queue, **options)

    return publish


class Inbox:
    """A consumer that remembers what it was given."""

    def __init__(self, connection: kombu.Connection, *queues: Any, **options: Any) -> None:
        self.messages: list[Any] = []
        self.ack = options.pop("ack", True)
        self.channel = connection.channel()
        declared = [each if isinstance(each, kombu.Queue) else kombu.Queue(each) for each in queues]
        self._consumer = kombu.Consumer(self.channel, declared, on_message=self._receive, **options)
        self._connection = connection

    def __enter__(self) -> Inbox:
        self._consumer.consume()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._consumer.cancel()

    @property
    def bodies(self) -> list[Any]:
        return [message.decode() for message in self.messages]

    def drain(self, timeout: float = 0.2) -> list[Any]:
        """Consume until nothing comes for ``timeout`` seconds; return all bodies so far."""
        try:
            while True:
                self._connection.drain_events(timeout=timeout)
        except TimeoutError:
            return self.bodies

    def _receive(self, message: Any) -> None:
        self.messages.append(message)
        if self.ack and not self._consumer.no_ack:
            message.ack()


# The connection


def test_connection_keeps_its_url_whole(queue_path: Path) -> None:
    url = f"sqlite:///{queue_path}?durability=normal&busy_timeout=5"

    with kombu.Connection(url) as connection:
        connection.connect()

        assert connection.as_uri() == url
        assert connection.as_uri(include_password=True) == url
        assert connection.clone().as_uri() == url
        assert isinstance(connection.transport, Transport)
        assert connection.transport.driver_type == "sqlite"
        assert connection.transport.driver_version().startswith("3.")


def test_errors_of_the_engine_are_connection_errors(connection: kombu.Connection) -> None:
    assert EngineError in connection.connection_errors


def test_queue_file_that_can_not_be_made_is_an_error_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    connection = kombu.Connection(f"sqlite:///{folder}/queue.sqlite3")

    with pytest.raises(OperationalError) as raised:
        connection.ensure_connection(max_retries=100)

    assert str(raised.value) == (
        f"The folder {folder} of the queue file does not exist. Create it, or name another file "
        "in broker_url."
    )


def test_url_that_names_no_file_is_an_error_at_once() -> None:
    with pytest.raises(OperationalError, match="names no file"):
        kombu.Connection("sqlite:///:memory:").connect()


# Messages


def test_body_is_stored_as_it_is(
    engine: Engine, publish: Callable[..., None], connection: kombu.Connection
) -> None:
    publish(b"\x00\xff", content_type="application/data", content_encoding="binary")
    publish("plain", serializer="json")

    assert [info.body for info in engine.list_tasks()] == [b"\x00\xff", '"plain"']
    with Inbox(connection, "mail", accept=["json", "application/data"]) as inbox:
        assert inbox.drain() == [b"\x00\xff", "plain"]


def test_task_is_stored_with_what_the_engine_must_know(engine: Engine, queue_url: str) -> None:
    app = Celery(broker=queue_url, set_as_current=False)

    sent = app.send_task(
        "mails.send", (1,), queue="mail", priority=7, countdown=60, expires=120, ignore_result=True
    )

    (info,) = engine.list_tasks()
    now = time.time()
    assert (info.task, info.task_id, info.queue) == ("mails.send", sent.id, "mail")
    assert (info.priority, info.status) == (7, "scheduled")
    assert info.due_at == pytest.approx(now + 60, abs=5)
    assert info.expires_at == pytest.approx(now + 120, abs=5)
    app.close()


def test_message_of_no_task_has_no_name(engine: Engine, publish: Callable[..., None]) -> None:
    publish({"type": "worker-online"}, headers={"hostname": "x"})

    (info,) = engine.list_tasks()
    assert (info.task, info.task_id, info.due_at) == ("", "", None)


def test_future_task_is_not_delivered_before_it_is_due(
    connection: kombu.Connection, queue_url: str
) -> None:
    app = Celery(broker=queue_url, set_as_current=False)
    before = time.time()
    app.send_task("later", queue="mail", countdown=0.6)
    published = time.time()

    with Inbox(connection, "mail") as inbox:
        connection.drain_events(timeout=5)

    received = time.time()
    assert received - before >= 0.6
    assert received - published < 1.0
    assert inbox.messages[0].headers["task"] == "later"
    app.close()


def test_message_published_through_the_engine_is_consumed(
    engine: Engine, connection: kombu.Connection
) -> None:
    envelope = Envelope({"task": "add", "id": "1"}, {"priority": 3}, "application/json", "utf-8")
    engine.publish([Message("mail", envelope.pack(), "[[1, 2], {}, {}]", "add", "1")])

    with Inbox(connection, "mail") as inbox:
        assert inbox.drain() == [[[1, 2], {}, {}]]

    (message,) = inbox.messages
    assert message.headers == {"task": "add", "id": "1"}
    assert message.properties["priority"] == 3
    assert message.delivery_info == {"exchange": "", "routing_key": "mail", "redelivered": False}


def test_message_published_through_kombu_is_claimed_from_the_engine(
    engine: Engine, publish: Callable[..., None]
) -> None:
    publish([[1], {}, {}], headers={"task": "add", "id": "1"}, correlation_id="1", priority=2)
    engine.register(Worker("w", "host", os.getpid(), ["mail"], {"add"}))

    (delivery,) = engine.claim(["mail"], 10, worker="w", tasks={"add"})

    envelope = Envelope.of(delivery)
    assert (delivery.task, delivery.task_id, delivery.priority) == ("add", "1", 2)
    assert delivery.body == "[[1], {}, {}]"
    assert envelope.headers == {"task": "add", "id": "1"}
    assert envelope.properties["correlation_id"] == "1"
    assert (envelope.content_type, envelope.content_encoding) == ("application/json", "utf-8")
    engine.deregister("w")


def test_higher_priority_comes_first(
    connection: kombu.Connection, publish: Callable[..., None]
) -> None:
    for priority in (0, 9, 3, 9, 255):
        publish(priority, priority=priority)

    with Inbox(connection, "mail") as inbox:
        assert inbox.drain() == [255, 9, 9, 3, 0]


def test_expired_message_is_dropped(
    connection: kombu.Connection, engine: Engine, publish: Callable[..., None]
) -> None:
    publish("old", expiration=0.05)
    publish("new", expiration=60)
    time.sleep(0.1)

    with Inbox(connection, "mail") as inbox:
        assert inbox.drain() == ["new"]
    assert engine.list_tasks() == []


def test_expired_task_is_delivered_for_its_worker_to_revoke(
    connection: kombu.Connection, queue_url: str
) -> None:
    app = Celery(broker=queue_url, set_as_current=False)
    app.send_task("late", queue="mail", expires=0.05)
    time.sleep(0.1)

    with Inbox(connection, "mail") as inbox:
        inbox.drain()

    assert [message.headers["task"] for message in inbox.messages] == ["late"]
    app.close()


def test_messages_expire_with_the_time_to_live_of_their_queue(
    connection: kombu.Connection,
) -> None:
    queue = kombu.Queue("brief", message_ttl=0.05, routing_key="brief")
    producer = kombu.Producer(connection.default_channel)
    producer.publish("old", routing_key="brief", declare=[queue])
    time.sleep(0.1)

    with Inbox(connection, queue) as inbox:
        assert inbox.drain() == []


def test_queue_expires_when_it_is_not_used(engine: Engine, connection: kombu.Connection) -> None:
    with Inbox(connection, kombu.Queue("fleeting", expires=0.05)):
        engine.maintain(time.time() + 1)
        assert engine.queue_sizes() == {"fleeting": 0}

    engine.maintain(time.time() + 1)

    assert engine.queue_sizes() == {}


# Exchanges


@pytest.mark.parametrize(
    ("pattern", "routing_key", "matches"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("*.b", "a.b", True),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("a.#.d", "a.d", True),
        ("a.#.d", "a.b.c.d", True),
        ("#", "", True),
        ("#", "a.b", True),
        ("#.b", "b", True),
        ("a+.b", "aa.b", False),
    ],
)
def test_topic_matches_as_amqp_says(pattern: str, routing_key: str, matches: bool) -> None:
    assert topic_matches(pattern, routing_key) is matches


@pytest.mark.parametrize(
    ("type", "key", "expected"),
    [
        ("direct", "a", {"one": 1, "two": 0}),
        ("topic", "b.x", {"one": 0, "two": 1}),
        ("fanout", "", {"one": 1, "two": 1}),
    ],
)
def test_exchange_declared_by_another_process_routes(
    queue_url: str, engine: Engine, type: str, key: str, expected: dict[str, int]
) -> None:
    declare = textwrap.dedent(
        f"""
        import celeriac.entry
        import kombu
        with kombu.Connection({queue_url!r}) as connection:
            exchange = kombu.Exchange("orders", {type!r})
            for name, key in ("one", "a"), ("two", "b.*"):
                kombu.Queue(name, exchange, key, channel=connection.channel()).declare()
        """
    )
    subprocess.run([sys.executable, "-c", declare], check=True)

    with kombu.Connection(queue_url) as connection:
        # The exchange is not declared here: only the database knows its type.
        kombu.Producer(connection.channel(), auto_declare=False).publish(
            1, exchange="orders", routing_key=key
        )

    assert engine.queue_sizes(["one", "two"]) == expected


def test_unbound_queue_gets_nothing_more(connection: kombu.Connection, engine: Engine) -> None:
    exchange = kombu.Exchange("orders", "direct")
    queue = kombu.Queue("one", exchange, "a", channel=connection.default_channel)
    queue.declare()
    producer = kombu.Producer(connection.default_channel, exchange)
    producer.publish(1, routing_key="a")

    queue.unbind_from(exchange, "a")
    producer.publish(2, routing_key="a")

    assert engine.queue_sizes(["one"]) == {"one": 1}


def test_message_that_no_queue_wants_goes_to_the_dead_letter_queue(queue_url: str) -> None:
    options = {"deadletter_queue": "lost"}
    with kombu.Connection(queue_url, transport_options=options) as connection:
        exchange = kombu.Exchange("orders", "direct")
        kombu.Producer(connection.default_channel, exchange).publish(1, routing_key="nobody")

    assert open_engine(queue_url).queue_sizes() == {"lost": 1}


def test_bindings_are_listed(connection: kombu.Connection) -> None:
    exchange = kombu.Exchange("orders", "topic")
    kombu.Queue("one", exchange, "a.*", channel=connection.default_channel).declare()

    # The manager has a channel of its own, of the same connection.
    bindings = connection.get_manager().get_bindings()

    assert bindings == [{"destination": "one", "source": "orders", "routing_key": "a.*"}]


# Queues


def test_declaring_tells_how_many_messages_and_consumers_there_are(
    connection: kombu.Connection, publish: Callable[..., None]
) -> None:
    publish()
    publish()
    channel = connection.default_channel

    assert channel.queue_declare("mail", passive=True) == ("mail", 2, 0)
    with Inbox(connection, "mail"):
        assert channel.queue_declare("mail") == ("mail", 2, 1)
    assert channel.queue_declare("mail") == ("mail", 2, 0)


def test_declaring_an_unknown_queue_passively_is_an_error(connection: kombu.Connection) -> None:
    with pytest.raises(ChannelError, match="NOT_FOUND - no queue 'unknown'"):
        connection.default_channel.queue_declare("unknown", passive=True)


def test_queue_without_a_name_gets_one(connection: kombu.Connection) -> None:
    declared = connection.default_channel.queue_declare()

    assert declared.queue.startswith("amq.gen-")


def test_purge_and_delete(
    connection: kombu.Connection, engine: Engine, publish: Callable[..., None]
) -> None:
    publish()
    publish()
    channel = connection.default_channel

    assert channel.queue_purge("mail") == 2
    publish()
    channel.queue_delete("mail", if_empty=True)
    assert engine.queue_sizes() == {"mail": 1}
    with Inbox(connection, "mail"):
        channel.queue_delete("mail", if_unused=True)
        assert engine.queue_sizes() == {"mail": 1}
    channel.queue_delete("mail")
    assert engine.queue_sizes() == {}


def test_queue_is_deleted_with_its_last_consumer(
    connection: kombu.Connection, engine: Engine
) -> None:
    queue = kombu.Queue("reply", auto_delete=True)

    with Inbox(connection, queue), kombu.Connection(connection.as_uri()) as other:
        with Inbox(other, queue):
            pass
        assert "reply" in engine.queue_sizes()

    assert "reply" not in engine.queue_sizes()


def test_auto_delete_queue_of_a_killed_consumer_is_deleted(queue_url: str, engine: Engine) -> None:
    consumer = _consume_elsewhere(queue_url, "kombu.Queue('reply', auto_delete=True)")
    assert "reply" in engine.queue_sizes()

    engine.maintain(time.time() + 3600)
    assert "reply" in engine.queue_sizes()
    _kill(consumer)
    engine.maintain(time.time() + 3600)

    assert "reply" not in engine.queue_sizes()


# Consuming


def test_get_returns_a_message_or_none(
    connection: kombu.Connection, engine: Engine, publish: Callable[..., None]
) -> None:
    publish("one")
    publish("two")
    channel = connection.default_channel

    first = channel.basic_get("mail")
    assert first.decode() == "one"
    assert channel.basic_get("mail", no_ack=True).decode() == "two"
    assert channel.basic_get("mail") is None
    assert len(engine.list_tasks()) == 1
    first.ack()
    assert engine.list_tasks() == []


def test_requeued_message_keeps_its_place_and_says_so(
    connection: kombu.Connection, publish: Callable[..., None]
) -> None:
    publish("one")
    publish("two")
    channel = connection.default_channel

    channel.basic_get("mail").requeue()
    again = channel.basic_get("mail")

    assert again.decode() == "one"
    assert again.delivery_info["redelivered"] is True
    again.reject()
    assert channel.basic_get("mail").decode() == "two"
    assert channel.basic_get("mail") is None


def test_consumer_without_acknowledgement_takes_messages_for_good(
    connection: kombu.Connection, engine: Engine, publish: Callable[..., None]
) -> None:
    publish("one")
    publish("two")

    with Inbox(connection, "mail", no_ack=True) as inbox:
        assert inbox.drain() == ["one", "two"]

    assert engine.list_tasks() == []


def test_prefetch_count_bounds_what_is_out(
    connection: kombu.Connection, engine: Engine, publish: Callable[..., None]
) -> None:
    for number in range(5):
        publish(number)

    with Inbox(connection, "mail", prefetch_count=3, ack=False) as inbox:
        assert inbox.drain() == [0, 1, 2]
        assert engine.queue_sizes() == {"mail": 2}
        inbox.messages[1].ack()
        assert inbox.drain() == [0, 1, 2, 3]


def test_all_up_to_a_message_are_acknowledged_at_once(
    connection: kombu.Connection, engine: Engine, publish: Callable[..., None]
) -> None:
    for number in range(3):
        publish(number)

    with Inbox(connection, "mail", ack=False) as inbox:
        inbox.drain()
        inbox.messages[1].ack(multiple=True)

        assert [info.body for info in engine.list_tasks()] == ["2"]


def test_closed_channel_gives_back_what_it_holds(
    connection: kombu.Connection, publish: Callable[..., None]
) -> None:
    for number in range(3):
        publish(number)
    with Inbox(connection, "mail", prefetch_count=3, ack=False) as inbox:
        # Claims three, delivers one.
        connection.drain_events(timeout=1)
        inbox.channel.close()

    with Inbox(connection, "mail") as again:
        assert again.drain() == [0, 1, 2]

    redelivered = [message.delivery_info["redelivered"] for message in again.messages]
    assert redelivered == [True, False, False]


def test_error_in_a_callback_loses_nothing(
    connection: kombu.Connection, publish: Callable[..., None]
) -> None:
    publish("one")
    publish("two")

    def fail(message: object) -> None:
        raise ZeroDivisionError

    with kombu.Consumer(connection.channel(), [kombu.Queue("mail")], on_message=fail) as consumer:
        with pytest.raises(ZeroDivisionError):
            connection.drain_events(timeout=1)
        consumer.channel.close()

    with Inbox(connection, "mail") as inbox:
        assert inbox.drain() == ["one", "two"]


def test_timeout_is_kept_exactly(connection: kombu.Connection) -> None:
    with Inbox(connection, "mail"):
        for timeout in (0, 0.2, 1.3):
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=timeout)
            assert timeout <= time.monotonic() - started < timeout + 0.15


def test_message_is_delivered_as_soon_as_it_is_published(queue_url: str) -> None:
    arrived: list[float] = []
    sent: list[float] = []

    def publish() -> None:
        with kombu.Connection(queue_url) as connection:
            sent.append(time.monotonic())
            kombu.Producer(connection.channel()).publish(1, routing_key="mail")

    with kombu.Connection(queue_url) as connection, Inbox(connection, "mail"):
        thread = threading.Timer(0.3, publish)
        thread.start()
        connection.drain_events(timeout=5)
        arrived.append(time.monotonic())
        thread.join()

    assert arrived[0] - sent[0] < 0.1


def test_acknowledging_in_another_thread_lets_the_consumer_go_on(
    connection: kombu.Connection, publish: Callable[..., None]
) -> None:
    publish("one")
    publish("two")

    with Inbox(connection, "mail", prefetch_count=1, ack=False) as inbox:
        connection.drain_events(timeout=1)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.05)
        thread = threading.Timer(0.2, inbox.messages[0].ack)
        thread.start()
        started = time.monotonic()
        connection.drain_events(timeout=5)
        thread.join()

    assert inbox.bodies == ["one", "two"]
    assert time.monotonic() - started < 0.5


# Processes


def test_child_of_a_fork_holds_its_own_messages(
    connection: kombu.Connection, engine: Engine, publish: Callable[..., None]
) -> None:
    publish("parent's")
    publish("child's")
    channel = connection.default_channel
    held = channel.basic_get("mail")

    pid = os.fork()
    if not pid:
        ok = channel.basic_get("mail").decode() == "child's"
        connection.release()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    # The child gave back its own message, and not its parent's.
    assert [info.status for info in engine.list_tasks()] == ["claimed", "ready"]
    held.ack()
    again = channel.basic_get("mail")
    assert (again.decode(), again.delivery_info["redelivered"]) == ("child's", True)


def test_messages_of_a_killed_consumer_come_back(
    queue_url: str, publish: Callable[..., None], engine: Engine
) -> None:
    publish("precious")
    consumer = _consume_elsewhere(queue_url, "kombu.Queue('mail')")
    wait_until(lambda: [info.status for info in engine.list_tasks()] == ["claimed"])

    _kill(consumer)

    with kombu.Connection(queue_url) as connection, Inbox(connection, "mail") as inbox:
        assert inbox.drain() == ["precious"]
    assert inbox.messages[0].delivery_info["redelivered"] is True


def _consume_elsewhere(url: str, queue: str) -> subprocess.Popen[str]:
    """Start a process that consumes and acknowledges nothing; return when it does."""
    program = textwrap.dedent(
        f"""
        import celeriac.entry
        import kombu
        with kombu.Connection({url!r}) as connection:
            with kombu.Consumer(connection, [{queue}], on_message=lambda message: None):
                print("ready", flush=True)
                while True:
                    try:
                        connection.drain_events(timeout=1)
                    except TimeoutError:
                        pass
        """
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


# Stock Celery


@pytest.fixture
def app(queue_url: str) -> Iterator[Celery]:
    app = Celery("stock", broker=queue_url, backend=queue_url, set_as_current=False)
    yield app
    app.close()


def test_stock_worker_runs_tasks_and_answers_remote_control(app: Celery) -> None:
    @app.task(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    with stock_worker(app) as worker:
        assert type(worker.consumer).__module__ == "celery.worker.consumer.consumer"
        assert add.delay(23, 42).get(timeout=10) == 65
        ((_, answer),) = app.control.inspect(timeout=2, limit=1).ping().items()
        assert answer == {"ok": "pong"}


def test_stock_worker_runs_a_task_published_through_the_engine(app: Celery, engine: Engine) -> None:
    @app.task(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    headers = {"task": "add", "id": "a-task", "lang": "py", "root_id": "a-task"}
    envelope = Envelope(headers, {"correlation_id": "a-task"}, "application/json", "utf-8")
    body = '[[23, 42], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'

    with stock_worker(app):
        engine.publish([Message("celery", envelope.pack(), body, "add", "a-task")])
        assert app.AsyncResult("a-task").get(timeout=10) == 65


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_stock_pools_acknowledge_from_other_threads(
    pool: str,
    tmp_path: Path,
    queue_url: str,
    engine: Engine,
    app: Celery,
    worker: Callable[..., Program],
) -> None:
    (tmp_path / "stock.py").write_text(
        "from celery import Celery\n"
        "from celery.worker.consumer import Consumer\n"
        "class StockConsumer(Consumer):\n"
        "    'One that the user chose is kept, and its pool with it.'\n"
        f"app = Celery('stock', broker={queue_url!r}, backend={queue_url!r})\n"
        "app.conf.worker_consumer = 'stock:StockConsumer'\n"
        "@app.task\n"
        "def early(n): return n\n"
        "@app.task(acks_late=True)\n"
        "def late(n): return n\n"
    )
    # Celery's consumer puts what threads acknowledge aside before 5.7, for 2 s each time.
    is_prompt = pool == "prefork" or hasattr(Consumer, "call_soon_ack")
    rounds = 50 if is_prompt else 10
    worker("-A", "stock", "-P", pool, "-c", "2")
    started = time.monotonic()

    names = ("early", "late") * rounds
    sent = [app.send_task(f"stock.{name}", (n,)) for n, name in enumerate(names)]

    assert [result.get(timeout=15) for result in sent] == list(range(2 * rounds))
    # More than the prefetch count of 8 at a time, so a missed wake-up would cost a second each.
    assert not is_prompt or time.monotonic() - started < 5
    wait_until(lambda: engine.list_tasks() == [])
