"""Celery's Redis result backend, where ``delay()`` does not wait for a Redis that is gone.

Before a message is sent Celery subscribes to its result. With Redis out of reach it tries to for
twenty seconds, or for minutes if nothing answers at all. That patience is right for a worker that
has a result to store, and for who waits for one, and stays theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

import celery._state
from celery.backends import redis
from kombu.exceptions import OperationalError

from .brokers import PATIENCE
from .brokers import SILENCE

_RedisBackend: Any = redis.RedisBackend
# Celery keeps in a module that it calls internal whether a task is running here.
_state: Any = celery._state


class RedisBackend(_RedisBackend):  # type: ignore[misc]
    """The Redis result backend of an app whose calls return in bounded time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: Whether this thread is about to send, or to forget a result.
        self._now = local()
        super().__init__(*args, **kwargs)

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Subscribe to the result of a task that is about to be sent.

        :raises OperationalError: when Redis can not be reached.
        """
        if _state.task_join_will_block():
            return
        with self._in_a_hurry():
            if not self._is_subscriber():
                self._knock()
            super().on_task_call(producer, task_id)

    def ensure(self, fun: Callable[..., Any], args: Any, **policy: Any) -> Any:
        """Call ``fun`` until Redis can be reached; for a sender, only for a short time.

        For who wants to hear no more it is not called at all: the subscription went with the
        connection.
        """
        if getattr(self._now, "forgetting", False):
            return None
        if not getattr(self._now, "sending", False):
            return super().ensure(fun, args, **policy)

        def attempt(*args: Any) -> Any:
            self._knock()
            return fun(*args)

        return super().ensure(attempt, args, **{"timeout": PATIENCE, **policy})

    def on_result_fulfilled(self, result: Any) -> None:
        """Unsubscribe: Celery calls this when a result has come, or nobody refers to it.

        The garbage collector may be the caller, in whatever is running.
        """
        self._now.forgetting = True
        try:
            super().on_result_fulfilled(result)
        finally:
            self._now.forgetting = False

    @contextmanager
    def _in_a_hurry(self) -> Iterator[None]:
        self._now.sending = True
        try:
            yield
        except (*self.connection_errors, RuntimeError) as exc:
            # A RuntimeError is what Celery raises when it gives up.
            cause = exc.__cause__ or exc.__context__ or exc
            raise OperationalError(
                f"The task was not sent: its result backend, {self.as_uri()}, can not be reached "
                f"({cause}). A task with ignore_result=True does not need it."
            ) from exc
        finally:
            self._now.sending = False

    def _is_subscriber(self) -> bool:
        pubsub = self.result_consumer._pubsub
        return pubsub is not None and pubsub.connection is not None

    def _knock(self) -> None:
        """See that Redis answers, on a connection that is given up soon."""
        limits = {"socket_timeout": SILENCE, "socket_connect_timeout": SILENCE}
        pool = self.redis.ConnectionPool(**{**self.connparams, **limits})
        try:
            self.redis.Redis(connection_pool=pool).ping()
        finally:
            pool.disconnect()
