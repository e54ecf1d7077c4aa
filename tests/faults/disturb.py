"""What may happen to workers and producers, and a seeded schedule of it."""

from __future__ import annotations

import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable

import psutil

from faults.arena import Arena

Fault = Callable[[Arena, random.Random], None]


def kill_child(arena: Arena, rng: random.Random) -> None:
    """A child is killed, as the kernel does without memory."""
    _kill_some(arena, rng, 1)


def kill_children(arena: Arena, rng: random.Random) -> None:
    """Several children are killed at once."""
    _kill_some(arena, rng, 3)


def kill_parent(arena: Arena, rng: random.Random) -> None:
    """A worker's parent is killed, and its children notice."""
    if workers := arena.workers():
        arena.kill(rng.choice(workers).pid)


def kill_worker(arena: Arena, rng: random.Random) -> None:
    """A worker is killed whole, as a container is."""
    if workers := arena.workers():
        worker = rng.choice(workers)
        arena.kill(worker.pid, *(child.pid for child in worker.children()))


def kill_producer(arena: Arena, rng: random.Random) -> None:
    """A process is killed that may be about to enqueue."""
    arena.kill(arena.producer.pid)


def terminate(arena: Arena, rng: random.Random) -> None:
    """A worker is asked to end: warm shutdown."""
    if workers := arena.workers():
        arena.send(rng.choice(workers), signal.SIGTERM)


def quit(arena: Arena, rng: random.Random) -> None:
    """A worker is told to end at once: cold shutdown."""
    if workers := arena.workers():
        arena.send(rng.choice(workers), signal.SIGQUIT)


def stop_child(arena: Arena, rng: random.Random) -> None:
    """A child stands still for some seconds, as if swapped out."""
    if children := arena.children():
        _pause(rng.choice(children), rng.uniform(0.5, 4))


def stop_parent(arena: Arena, rng: random.Random) -> None:
    """A worker's parent stands still for some seconds."""
    if workers := arena.workers():
        _pause(psutil.Process(rng.choice(workers).pid), rng.uniform(0.5, 4))


def lock_file(arena: Arena, rng: random.Random) -> None:
    """Another program holds the write lock of the queue file."""
    threading.Thread(target=_hold_lock, args=(arena, rng.uniform(0.5, 8)), daemon=True).start()


#: Faults, and how often each happens.
FAULTS: dict[Fault, int] = {
    kill_child: 50,
    kill_children: 12,
    kill_parent: 10,
    kill_worker: 10,
    kill_producer: 3,
    terminate: 6,
    quit: 3,
    stop_child: 3,
    stop_parent: 3,
    lock_file: 1,
}


def schedule(rng: random.Random, pause: float) -> list[Fault]:
    """Return the next faults: more than one at the same moment now and then."""
    time.sleep(rng.expovariate(1 / pause))
    return rng.choices([*FAULTS], [*FAULTS.values()], k=1 if rng.random() < 0.9 else 2)


def _kill_some(arena: Arena, rng: random.Random, count: int) -> None:
    pids = sorted(child.pid for child in arena.children())
    arena.kill(*rng.sample(pids, min(count, len(pids))))


def _pause(process: psutil.Process, seconds: float) -> None:
    def go_on() -> None:
        try:
            process.resume()
        except psutil.NoSuchProcess:
            pass

    try:
        process.suspend()
    except psutil.NoSuchProcess:
        return
    timer = threading.Timer(seconds, go_on)
    timer.daemon = True
    timer.start()


def _hold_lock(arena: Arena, seconds: float) -> None:
    # Another process's connection would be the same to SQLite, but a thread's is: its locks are
    # those of this process, which has the file open through the engine too.
    connection = sqlite3.connect(arena.folder / "queue.sqlite3", timeout=30, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
    finally:
        connection.close()
