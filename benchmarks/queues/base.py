"""A contender as its producer sees it: enqueue, see that results are stored, read them.

Enqueueing and reading go through the contender's public API. Only :meth:`Queue.count_results`
looks into the store behind it, because asking for thousands of results one by one would take
processor time from the worker that is being measured.
"""

from __future__ import annotations

import abc
import asyncio
import concurrent.futures
import time
from collections.abc import Coroutine
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple
from typing import TYPE_CHECKING

from benchmarks.apps.body import Answer
from benchmarks.servers import connect_redis

if TYPE_CHECKING:
    from benchmarks.contenders import Contender

#: Keys in one command to Redis, or parameters in one statement.
_CHUNK = 500


class Sent(NamedTuple):
    """A task that was enqueued."""

    #: Whatever the contender calls it by: a text or a number.
    id: Any
    #: What it adds to itself. No other task of the trial has the same.
    number: int
    #: When the call to enqueue it began.
    at: float


class Queue(abc.ABC):
    """One contender, from a program that enqueues."""

    #: Whether :meth:`enqueue_many` is more than enqueueing one by one.
    enqueues_many = True
    #: Whether a caller can wait for the result.
    stores_results = True

    def __init__(self, contender: Contender, folder: Path) -> None:
        self.contender = contender
        self.folder = folder
        self.broker, self.results = contender.urls(folder)

    def prepare(self) -> None:
        """Create what a worker or another producer expects to be there."""
        return

    @abc.abstractmethod
    def enqueue(self, x: int) -> Any:
        """Enqueue one task that adds ``x`` to itself; return its id."""

    def enqueue_each(self, numbers: Iterable[int]) -> list[Sent]:
        """Enqueue a task for each number, one after the other."""
        # Evaluated from left to right: the moment before the call.
        return [_sent(time.time(), x, self.enqueue(x)) for x in numbers]

    def enqueue_from_several(self, parts: Sequence[Sequence[int]]) -> list[Sent]:
        """Enqueue each part one by one, all parts side by side: in threads."""
        with concurrent.futures.ThreadPoolExecutor(len(parts)) as threads:
            return [sent for part in threads.map(self.enqueue_each, parts) for sent in part]

    def enqueue_many(self, numbers: Sequence[int]) -> list[Sent]:
        """Enqueue a task for each number in one call, if there is such a call."""
        return self.enqueue_each(numbers)

    @abc.abstractmethod
    def count_results(self, ids: Sequence[Any]) -> int:
        """Return how many of the tasks have their results stored."""

    @abc.abstractmethod
    def read(self, id: Any) -> Answer | None:
        """Return the stored answer of one task, or ``None`` if it did not succeed."""

    @abc.abstractmethod
    def call(self, x: int, timeout: float) -> Answer:
        """Enqueue one task and wait for its result."""

    def close(self) -> None:
        """Close connections."""
        return


class AsyncQueue(Queue):
    """A contender whose API is asynchronous. Its producers are coroutines of one loop."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        super().__init__(contender, folder)
        self._loop = asyncio.new_event_loop()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return what the coroutine returns."""
        return self._loop.run_until_complete(work)

    @abc.abstractmethod
    async def send(self, x: int) -> Any:
        """Do what :meth:`enqueue` does."""

    def enqueue(self, x: int) -> Any:
        return self.run(self.send(x))

    def enqueue_each(self, numbers: Iterable[int]) -> list[Sent]:
        return list(self.run(self._send_each(numbers)))

    def enqueue_from_several(self, parts: Sequence[Sequence[int]]) -> list[Sent]:
        return list(self.run(self._send_parts(parts)))

    async def _send_each(self, numbers: Iterable[int]) -> list[Sent]:
        return [_sent(time.time(), x, await self.send(x)) for x in numbers]

    async def _send_parts(self, parts: Sequence[Sequence[int]]) -> list[Sent]:
        sent = await asyncio.gather(*map(self._send_each, parts))
        return [each for part in sent for each in part]

    def close(self) -> None:
        self._loop.close()


class RedisResults:
    """Of a queue whose results are keys of a Redis database, there when a task has ended."""

    results: str

    @property
    def client(self) -> Any:
        """The Redis database that holds the results."""
        if "_client" not in vars(self):
            self._client = connect_redis(self.results)
        return self._client

    def result_key(self, id: Any) -> str:
        """Return the key under which the result is stored."""
        return str(id)

    def count_results(self, ids: Sequence[Any]) -> int:
        keys = [self.result_key(id) for id in ids]
        return sum(self.client.exists(*some) for some in chunks(keys))


def sent_at_once(numbers: Sequence[int], ids: Iterable[Any], at: float) -> list[Sent]:
    """Return what one call sent."""
    return [Sent(id, number, at) for id, number in zip(ids, numbers, strict=True)]


def chunks(ids: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """Yield parts small enough for one statement."""
    return (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))


def _sent(at: float, number: int, id: Any) -> Sent:
    return Sent(id, number, at)
