"""What may happen to workers and producers, and a seeded schedule of it."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress

import psutil
from programs import Program

from faults.arena import Arena
from faults.arena import BUSY_TIMEOUT
from faults.arena import children
from faults.disk import fill

Fault = Callable[[Arena, random.Random], None]

HOUR, DAY = 3600.0, 86400.0


# Deaths


def kill_child(arena: Arena, rng: random.Random) -> None:
    """A child is killed, as the kernel does without memory."""
    _kill_some(arena, rng, 1)


def kill_children(arena: Arena, rng: random.Random) -> None:
    """Several children are killed at once."""
    _kill_some(arena, rng, 3)


def kill_starting_child(arena: Arena, rng: random.Random) -> None:
    """A child is killed while it starts, in the place of one that was killed."""
    known = {child.pid for child in arena.children()}
    _kill_some(arena, rng, 1)
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        new = [child.pid for child in arena.children() if child.pid not in known]
        if new:
            arena.kill("child", *new)
            return


def kill_parent(arena: Arena, rng: random.Random) -> None:
    """A worker's parent is killed, and its children with it, by the kernel."""
    arena.kill("parent", rng.choice(arena.ready()).pid)


def kill_worker(arena: Arena, rng: random.Random) -> None:
    """A worker is killed whole, as a container is."""
    _kill_whole(arena, rng.choice(arena.ready()))


def kill_starting_worker(arena: Arena, rng: random.Random) -> None:
    """A worker is killed that has no children yet."""
    starting = [worker for worker in arena.workers() if not children(worker)]
    arena.kill("parent", *(worker.pid for worker in starting[:1]))


def kill_all_workers(arena: Arena, rng: random.Random) -> None:
    """All workers are killed at once, as those of a machine are."""
    for worker in arena.ready():
        _kill_whole(arena, worker)


def kill_producer(arena: Arena, rng: random.Random) -> None:
    """A process is killed that may be about to enqueue."""
    arena.kill("producer", arena.producer.pid)


# Shutdowns


def terminate(arena: Arena, rng: random.Random) -> None:
    """A worker is asked to end: warm shutdown."""
    arena.send(rng.choice(arena.ready()), signal.SIGTERM)


def terminate_all(arena: Arena, rng: random.Random) -> None:
    """All workers are asked to end at once."""
    for worker in arena.ready():
        arena.send(worker, signal.SIGTERM)


def interrupt(arena: Arena, rng: random.Random) -> None:
    """Somebody presses Ctrl-C: the worker and its children get the signal."""
    worker = rng.choice(arena.ready())
    arena.journal.write("signalled", worker.pid, signal.SIGINT.name)
    os.killpg(worker.pid, signal.SIGINT)


def quit(arena: Arena, rng: random.Random) -> None:
    """A worker is told to end at once: cold shutdown, or soft where it is set so."""
    arena.send(rng.choice(arena.ready()), signal.SIGQUIT)


def kill_while_ending(arena: Arena, rng: random.Random) -> None:
    """A worker's parent is killed while it shuts down."""
    worker = rng.choice(arena.ready())
    arena.send(worker, signal.SIGTERM)
    time.sleep(rng.uniform(0, 0.5))
    if worker.running:
        arena.kill("parent", worker.pid)


# What goes by


def stop_child(arena: Arena, rng: random.Random) -> None:
    """A child stands still for some seconds, as if swapped out."""
    arena.ready()
    if found := arena.children():
        _pause(arena, rng.choice(found), rng.uniform(0.5, 4))


def stop_parent(arena: Arena, rng: random.Random) -> None:
    """A worker's parent stands still for some seconds."""
    process = psutil.Process(rng.choice(arena.ready()).pid)
    _pause(arena, process, rng.uniform(0.5, 4))


def lock_file(arena: Arena, rng: random.Random) -> None:
    """Another program holds the write lock of the queue file."""
    _hold_lock(arena, rng.uniform(0.5, 0.8 * BUSY_TIMEOUT))


def lock_file_for_long(arena: Arena, rng: random.Random) -> None:
    """Another program holds the write lock for longer than anybody waits."""
    _hold_lock(arena, BUSY_TIMEOUT + rng.uniform(1, 3))


def fill_disk(arena: Arena, rng: random.Random) -> None:
    """The disk of the queue file is full for some seconds."""
    if arena.is_small:
        arena.obstruct(rng.uniform(1, 5), fill(arena.disk).unlink)


def jump_clock(arena: Arena, rng: random.Random) -> None:
    """The clock jumps by an hour or a day, and back after some seconds."""
    if arena.clock is not None and not arena.clock.offset:
        arena.set_clock(rng.choice([HOUR, -HOUR, DAY, -DAY]))
        arena.later(rng.uniform(0.5, 4), lambda: arena.set_clock(0))


#: What may happen, and how often. A worker takes more than a second of a processor to start, and
#: a child some milliseconds: most faults are about children.
FAULTS: dict[Fault, float] = {
    kill_child: 60,
    kill_children: 14,
    kill_starting_child: 5,
    kill_parent: 5,
    kill_worker: 6,
    kill_starting_worker: 2,
    kill_all_workers: 2,
    kill_producer: 2,
    terminate: 3,
    terminate_all: 1,
    interrupt: 2,
    quit: 2,
    kill_while_ending: 2,
    stop_child: 3,
    stop_parent: 3,
    lock_file: 1,
    lock_file_for_long: 0.25,
    fill_disk: 1,
    jump_clock: 2,
}
#: With these a run begins, in any order: the shortest one has seen them all.
FIRST: tuple[Fault, ...] = (
    kill_child,
    kill_children,
    kill_starting_child,
    kill_worker,
    kill_producer,
    kill_while_ending,
    quit,
    stop_child,
    stop_parent,
    jump_clock,
)


def schedule(rng: random.Random, pause: float) -> Iterator[list[Fault]]:
    """Yield the next faults for ever: more than one at the same moment now and then."""
    first = [[fault] for fault in rng.sample(FIRST, len(FIRST))]
    while True:
        time.sleep(rng.expovariate(1 / pause))
        some = rng.choices([*FAULTS], [*FAULTS.values()], k=1 if rng.random() < 0.9 else 2)
        yield first.pop() if first else some


def _kill_whole(arena: Arena, worker: Program) -> None:
    pids = [child.pid for child in children(worker)]
    arena.kill("child", *pids)
    arena.kill("parent", worker.pid)


def _kill_some(arena: Arena, rng: random.Random, count: int) -> None:
    arena.ready()
    pids = sorted(child.pid for child in arena.children())
    arena.kill("child", *rng.sample(pids, min(count, len(pids))))


def _pause(arena: Arena, process: psutil.Process, seconds: float) -> None:
    def go_on() -> None:
        with suppress(psutil.NoSuchProcess):
            process.resume()

    with suppress(psutil.NoSuchProcess):
        process.suspend()
        arena.obstruct(seconds, go_on)


def _hold_lock(arena: Arena, seconds: float) -> None:
    # Another process's connection would be the same to SQLite, but a thread's is: its locks are
    # those of this process, which has the file open through the engine too.
    def give_up() -> None:
        connection.execute("ROLLBACK")
        connection.close()

    path = arena.disk / "queue.sqlite3"
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    arena.obstruct(seconds, give_up)
