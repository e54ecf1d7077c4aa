"""What the contract's worker runs: one task for each promise that Celery makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import signals
from celery.contrib.abortable import AbortableTask
from celery.exceptions import Ignore
from celery.exceptions import Reject
from celery.utils.log import get_task_logger
from flask import current_app
from flask import Flask
from kombu import Exchange
from kombu import Queue
from kombu.common import Broadcast

from celeriac import make_celery

FOLDER = Path(os.environ["CONTRACT_FOLDER"])
QUEUE = os.environ["CONTRACT_QUEUE"]


def route(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **more: Any) -> Any:
    """Route by a function: by what the task was called with."""
    return {"queue": f"{QUEUE}-elsewhere"} if "far" in kwargs else None


flask_app = Flask(__name__, instance_path=str(FOLDER / "instance"))
flask_app.config["CELERY"] = {
    "broker_url": os.environ["CONTRACT_URL"],
    "result_backend": os.environ["CONTRACT_RESULTS"],
    "result_extended": True,
    "task_send_sent_event": True,
    "task_routes": [
        route,
        {
            "contract_program.elsewhere": {"queue": f"{QUEUE}-elsewhere"},
            "contract_program.*_glob": {"queue": f"{QUEUE}-elsewhere", "priority": 7},
        },
    ],
    "task_annotations": {
        "contract_program.annotated": {"max_retries": 7, "default_retry_delay": 5},
    },
    "accept_content": ["json", "pickle"],
    "task_default_queue": QUEUE,
    "task_queue_max_priority": 10,
    "control_exchange": QUEUE,
    "event_exchange": f"{QUEUE}ev",
    "event_queue_prefix": f"{QUEUE}ev",
    **json.loads(os.environ.get("CONTRACT_CONF", "{}")),
}
if QUEUE != "celery":  # Tests of a worker's life name their queues themselves.
    flask_app.config["CELERY"]["task_queues"] = [
        Queue(QUEUE, Exchange(QUEUE), routing_key=QUEUE),
        Queue(f"{QUEUE}-elsewhere", Exchange(f"{QUEUE}-elsewhere"), f"{QUEUE}-elsewhere"),
        Queue(f"{QUEUE}-direct", Exchange(f"{QUEUE}-by-key", "direct"), routing_key="red"),
        Queue(f"{QUEUE}-topic", Exchange(f"{QUEUE}-topic", "topic"), routing_key="news.#"),
        Broadcast(f"{QUEUE}-all"),
    ]
celery = make_celery(flask_app)


def journal(*words: object) -> None:
    """Write a line that the test can read; one write, so that processes do not mix theirs."""
    with (FOLDER / "journal").open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


@celery.task
def add(x: int, y: int) -> int:
    return x + y


@celery.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@celery.task
def kind(value: Any) -> str:
    return type(value).__name__


@celery.task
def echo(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


@celery.task
def note(*words: Any) -> None:
    journal(*words)


@celery.task
def fail(message: str = "no") -> None:
    raise ValueError(message)


@celery.task
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@celery.task
def growing(megabytes: int) -> int:
    return len(bytearray(megabytes * 1024 * 1024))


@celery.task
def hoarding(megabytes: int, key: str) -> None:
    """Hold that much memory, and say when it was there to be seen."""
    hoard = [bytearray(b"x" * 1024 * 1024) for _ in range(megabytes)]
    journal("hoarding", key, os.getpid())
    time.sleep(0.6)
    journal("seen", key, len(hoard))
    wait_for(key)


@celery.task
def app_name() -> str:
    return current_app.name


@celery.task(bind=True)
def whoami(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    request = self.request
    names = (
        "id task args kwargs hostname delivery_info retries is_eager root_id parent_id headers "
        "correlation_id called_directly eta expires timelimit group"
    ).split()
    found = {name: getattr(request, name, None) for name in names}
    return {**found, "argsrepr": request.argsrepr, "custom": request.get("custom")}


@celery.task(bind=True, max_retries=3)
def flaky(self: Any, failures: int) -> int:
    if self.request.retries < failures:
        # Not sooner: a stock worker may run it again before it has stored that it will.
        raise self.retry(exc=ValueError("again"), countdown=0.1)
    return int(self.request.retries)


@celery.task(bind=True, autoretry_for=(ValueError,), default_retry_delay=0.01, max_retries=2)
def stubborn(self: Any) -> None:
    journal("stubborn", self.request.id, self.request.retries)
    raise ValueError("always")


@celery.task(ignore_result=True)
def ignored(key: str) -> int:
    journal("ignored", key)
    return 1


@celery.task(bind=True)
def ignoring(self: Any) -> None:
    self.update_state(state="CUSTOM", meta={"left": "like this"})
    raise Ignore()


@celery.task(bind=True, acks_late=True)
def rejecting(self: Any, requeue: bool) -> str:
    journal("rejecting", self.request.id)
    if self.request.delivery_info["redelivered"]:
        return "redelivered"
    raise Reject("not now", requeue=requeue)


@celery.task(bind=True)
def replaced(self: Any, x: int) -> Any:
    return self.replace(add.s(x, 1))


@celery.task(bind=True)
def replaced_by_many(self: Any, n: int) -> Any:
    from celery import chord

    return self.replace(chord([add.s(i, i) for i in range(n)], total.s()))


@celery.task(bind=True)
def replaced_by(self: Any, *args: Any, by: Any) -> Any:
    """Be replaced by a signature, given by the caller."""
    return self.replace(celery.signature(by))


@celery.task(bind=True)
def joined_by(self: Any, by: Any) -> str:
    self.add_to_chord(celery.signature(by))
    return "first"


@celery.task(bind=True, max_retries=1)
def stamped(self: Any, *args: Any, retry: bool = False) -> Any:
    """Return the stamps that the task was sent with."""
    if retry and not self.request.retries:
        raise self.retry(countdown=0)
    return self.request.stamps


@celery.task(bind=True)
def progressing(self: Any, key: str) -> str:
    """Report progress, then wait to be let go."""
    self.update_state(state="PROGRESS", meta={"done": 1, "of": 2})
    wait_for(key)
    return "done"


@celery.task(bind=True, track_started=True)
def tracked(self: Any, key: str) -> None:
    wait_for(key)


@celery.task(acks_late=True)
def late(x: int) -> int:
    return x


@celery.task
def waiting(key: str) -> str:
    journal("waiting", key, os.getpid())
    wait_for(key)
    return key


@celery.task(bind=True, base=AbortableTask)
def abortable(self: Any, key: str) -> str:
    journal("abortable", key)
    while not self.is_aborted():
        time.sleep(0.02)
    return "aborted"


@celery.task(bind=True, acks_late=True)
def late_waiting(self: Any, key: str) -> str:
    journal("waiting", key, os.getpid())
    wait_for(key)
    return "redelivered" if self.request.delivery_info["redelivered"] else "first"


@celery.task(bind=True, acks_late=True)
def late_killing(self: Any) -> None:
    journal("killing", self.request.id)
    os.kill(os.getpid(), signal.SIGKILL)


@celery.task(bind=True, acks_late=True)
def late_asking(self: Any, key: str) -> str:
    """Ask whether it should stop, and do not."""
    journal("asking", key, self.stopping)
    while not (self.stopping or (FOLDER / key).exists()):
        time.sleep(0.01)
    journal("asking", key, self.stopping)
    wait_for(key)
    return "redelivered" if self.request.delivery_info["redelivered"] else "first"


@celery.task
def napping(key: str) -> None:
    journal("napping", key, os.getpid())
    time.sleep(30)


@celery.task
def orphaning(key: str) -> None:
    """Leave a process behind whose parent has ended, and which ends soon after."""
    subprocess.run(["sh", "-c", "sleep 0.5 &"], check=True)


@celery.task
def spinning(seconds: float) -> None:
    """Compute, and let no other greenlet run."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@celery.task
def needing(key: str) -> str:
    """Die as long as something is missing."""
    if not (FOLDER / key).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return key


@celery.task(bind=True, autoretry_for=(Exception,), default_retry_delay=0)
def persistent(self: Any, x: int, *, key: str) -> None:
    journal("persistent", key)


@celery.task(typing=False)
def untyped(x: int) -> int:
    journal("untyped", x)
    return x


@celery.task
def deaf() -> None:
    while True:
        try:
            time.sleep(10)
        except SoftTimeLimitExceeded:
            pass


@celery.task
def ignoring_term(key: str, seconds: float) -> None:
    """Outlive SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    journal("ignoring_term", key)
    time.sleep(seconds)


@celery.task(rate_limit="10/s")
def limited() -> float:
    return time.time()


@celery.task
def now() -> float:
    return time.time()


@celery.task
def elsewhere() -> str:
    return "elsewhere"


def loop(seconds: float) -> None:
    """Pass the time in Python, where a thread can be interrupted."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


@celery.task
def looping(seconds: float) -> str:
    loop(seconds)
    return "through"


@celery.task
def outliving(key: str, seconds: float) -> str:
    """End well, whatever is raised meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(0.02)
        except BaseException as exc:
            journal("raised", key, type(exc).__name__)
    journal("outlived", key)
    return "late"


@celery.task(soft_time_limit=0.3)
def soft_caught() -> str:
    try:
        loop(10)
    except SoftTimeLimitExceeded:
        return "caught"
    return "too late"


@celery.task(soft_time_limit=0.3)
def soft() -> None:
    loop(10)


@celery.task(time_limit=0.3)
def hard() -> None:
    while True:
        time.sleep(10)


@celery.task
def leaving(code: int) -> None:
    sys.exit(code)


@celery.task
def on_error(request: Any, exc: Any, traceback: Any) -> None:
    journal("on_error", request.id, type(exc).__name__, exc)


@celery.task
def on_stored_error(request: Any, exc: Any, traceback: Any) -> None:
    journal("on_stored_error", request.id, celery.AsyncResult(request.id).state)


@celery.task
def on_bad_error(request: Any, exc: Any, traceback: Any) -> None:
    raise KeyError("an error callback that fails itself")


@celery.task(bind=True)
def on_old_error(self: Any, task_id: str) -> None:
    journal("on_old_error", task_id)


@celery.task
def publishing(key: str) -> str:
    """Send another task, and go on: it must not wait for this one to end."""
    note.delay("published", key)
    wait_for(key)
    return "done"


class Hooked(celery.Task):  # type: ignore[name-defined, misc]
    """Notes every call that Celery makes of a task's class."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        journal("before_start", task_id, current_app.name)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        journal("on_success", task_id, current_app.name)

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        journal("on_failure", task_id, exc)

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        journal("on_retry", task_id, exc)

    def after_return(self, *args: Any) -> None:
        journal("after_return", args[2], args[0])


@celery.task
def leaving_a_thread(seconds: float) -> None:
    threading.Thread(target=time.sleep, args=(seconds,)).start()


class TakingOut(celery.Task):  # type: ignore[name-defined, misc]
    """Takes out what a receiver of ``before_task_publish`` adds to the arguments."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        kwargs.pop("early", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("late", None)
        return self.run(*args, **kwargs)


@celery.task(base=TakingOut)
def doubled(x: int) -> int:
    return 2 * x


class Derived(doubled.__class__):  # type: ignore[name-defined, misc]
    """Is declared as a task that takes one argument, and takes two."""

    name = "contract_program.derived"

    def run(self, x: int, y: int) -> int:
        return x + y


celery.register_task(Derived())


@celery.task
def positional(x: int, /, **more: int) -> list[Any]:
    return [x, more]


@celery.task(base=Hooked, bind=True, max_retries=1)
def hooked(self: Any, way: str) -> None:
    if way == "retry" and not self.request.retries:
        raise self.retry(countdown=0.2)
    if way == "fail":
        raise ValueError("no")


class Counting(celery.Task):  # type: ignore[name-defined, misc]
    """One object for all runs of a process, as Celery's guide has it for connections."""

    calls = 0


@celery.task(base=Counting, bind=True)
def counting(self: Any) -> list[int]:
    self.calls += 1
    return [os.getpid(), self.calls]


class Classy(celery.Task):  # type: ignore[name-defined, misc]
    name = "contract_program.classy"

    def run(self, x: int) -> int:
        return x + 1


classy = celery.register_task(Classy())


@celery.task(bind=True)
def annotated(self: Any) -> list[int]:
    return [self.max_retries, self.default_retry_delay]


@celery.task(bind=True)
def routed_by_glob(self: Any) -> list[Any]:
    info = self.request.delivery_info
    return [info["exchange"], info["routing_key"], info["priority"]]


class Trouble(Exception):
    """An error of the program's own, with more than a message."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(code, detail)


@celery.task(throws=(KeyError,))
def raising(kind: str) -> None:
    from of_the_worker import Unheard

    raise {
        "own": Trouble(7, "seven"),
        "key": KeyError("missing"),
        "unknown": Unheard("of it"),
        "not json": ValueError({1, 2}),
    }[kind]


@celery.task(bind=True, max_retries=2)
def exhausted(self: Any) -> None:
    raise self.retry(countdown=0.01)


@celery.task(bind=True)
def counting_down(self: Any, n: int) -> list[Any]:
    if n:
        raise self.retry(args=[n - 1], countdown=0.01, queue=f"{QUEUE}-elsewhere")
    return [self.request.retries, self.request.delivery_info["routing_key"]]


@celery.task
def asking(task_id: str) -> Any:
    return celery.AsyncResult(task_id).get()


@celery.task
def calling(x: int) -> list[Any]:
    """Call other tasks as functions, and with apply()."""
    return [add(x, 1), add.apply((x, 2)).get(disable_sync_subtasks=False), current_app.name]


@celery.task
def logging(word: str) -> None:
    get_task_logger(__name__).warning("said %s", word)


@celery.task
def unstorable() -> Any:
    return {1, 2}


def wait_for(key: str) -> None:
    while not (FOLDER / key).exists():
        time.sleep(0.005)


def _hear(name: str) -> None:
    def receive(sender: Any = None, request: Any = None, **kwargs: Any) -> None:
        request = request or sender.request
        # Of a task that was lost, nothing but the sender is known.
        task = getattr(request, "task", None) or sender.name
        task = task if isinstance(task, str) else request.name
        if task.endswith((".add", ".fail", ".flaky")):
            journal(name, request.id)

    getattr(signals, name).connect(receive, weak=False)


for _name in "prerun postrun success failure retry revoked received".split():
    _hear(f"task_{_name}")


@signals.worker_process_init.connect
def _child_starts(**kwargs: Any) -> None:
    journal("worker_process_init", os.getpid())


@signals.worker_process_shutdown.connect
def _child_ends(pid: int, exitcode: int, **kwargs: Any) -> None:
    journal("worker_process_shutdown", pid, exitcode)
