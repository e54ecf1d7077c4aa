"""Celery's result backend over an engine: storing, waiting, groups, expiry.

What Celery encodes comes in as a task's state and result and goes out as
:class:`~celeriac.engines.base.Result`. While a task finishes in our worker, its result goes to
the :class:`~celeriac.collect.Collector` in force instead, to be recorded in the transaction that
acknowledges the message. Waiting sleeps in the engine, which wakes it; :mod:`celeriac.explain`
says when it is in vain.

What becomes of the rest of a canvas when one of its tasks ends is told in
:mod:`celeriac.canvas`.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from itertools import islice
from time import monotonic
from time import time
from typing import Any

from celery import states
from celery.exceptions import ImproperlyConfigured
from celery.exceptions import TimeoutError
from celery.result import result_from_tuple
from celery.result import ResultSet

from . import collect
from .canvas import CanvasBackend
from .collect import Collector
from .engines import Engine
from .engines import EngineConfigurationError
from .engines import open_engine
from .engines.base import Result
from .exceptions import EngineError
from .exceptions import TaskFailure
from .explain import Cause
from .explain import explain
from .explain import Explanation
from .explain import is_stock_consumer
from .explain import Program
from .explain import warn
from .explain import Watch
from .success import Success
from .withdrawal import withdraw

#: The longest sleep in the engine between two looks at the clock (seconds).
MAX_SLEEP = 60.0
#: How many of those that are waited for are looked at to find out whether it is in vain.
LOOKED_AT = 10


class EngineBackend(CanvasBackend):
    """The result backend of one Celery app over the engine that ``url`` names."""

    supports_native_join = True
    supports_autoexpire = True
    supports_result_compression = True
    supports_failure_expires = True
    persistent = True

    def __init__(self, app: Any, url: str | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("expires_type", float)
        super().__init__(app, url=url, **kwargs)
        self.url: str = url or app.conf.result_backend
        self._warned_ignored = False
        self._success = Success(EngineBackend, app)
        try:
            self.engine: Engine = open_engine(self.url)
        except EngineConfigurationError as exc:
            raise ImproperlyConfigured(str(exc)) from exc

    def as_uri(self, include_password: bool = False) -> str:
        """Return the URL: it holds no password."""
        return self.url

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url})

    # Storing

    def encode_result(self, result: Any, state: str) -> Any:
        """Prepare a task's result for encoding.

        Celery's own fails when it reads a ``FAILURE`` that was stored with data instead of an
        exception (``update_state(state="FAILURE", meta={...})``); it becomes a
        :class:`~celeriac.exceptions.TaskFailure` here.
        """
        if state in self.EXCEPTION_STATES and not _is_error(result):
            result = TaskFailure() if result is None else TaskFailure(result)
        return super().encode_result(result, state)

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Store a task's state and result, and return that as it is encoded."""
        collector = collect.current(self.engine) if state == states.SUCCESS else None
        if collector is not None and _is_final(collector, task_id, state):
            if request and traceback is None and not kwargs and self._success.is_for(self):
                encoded = self.encode_result(result, state)
                meta = self._success.meta(self, task_id, encoded, request)
                if meta is not None:
                    expires_at = self._expires_at(state)
                    collector.results.append(Result(task_id, state, meta, expires_at))
                    return encoded
        return super().store_result(task_id, result, state, traceback, request, **kwargs)

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        meta = self._get_result_meta(
            result=result, state=state, traceback=traceback, request=request
        )
        meta["task_id"] = task_id
        stored = Result(task_id, state, self._pack(meta), self._expires_at(state))
        collector = collect.current(self.engine)
        if collector is not None and _is_final(collector, task_id, state):
            collector.results.append(stored)
        else:
            self.engine.store_results([stored])
        return result

    def _get_result_meta(
        self, result: Any, state: str, traceback: Any, request: Any, **kwargs: Any
    ) -> dict[str, Any]:
        # The same as Celery's, without looking up a setting and a time zone for each result:
        # 5 µs instead of 25, of the 80 that a task may take.
        if self.is_extended:
            extended: dict[str, Any] = super()._get_result_meta(
                result, state, traceback, request, **kwargs
            )
            return extended
        is_ready = state in states.READY_STATES
        meta = {
            "status": state,
            "result": result,
            "traceback": traceback,
            "children": self.current_task_children(request),
            "date_done": datetime.now(self.app.timezone).isoformat() if is_ready else None,
        }
        if request and getattr(request, "group", None):
            meta["group_id"] = request.group
        if request and getattr(request, "parent_id", None):
            meta["parent_id"] = request.parent_id
        return meta

    @cached_property
    def is_extended(self) -> bool:
        """Whether more is stored than Celery needs, as ``result_extended`` asks."""
        return bool(self.app.conf.find_value_for_key("extended", "result"))

    def _expires_at(self, state: str) -> float | None:
        expires = self.expires
        if state == states.FAILURE:
            failure_expires = self.app.conf.get("result_failure_expires")
            if failure_expires is not None:
                expires = self.prepare_expires(failure_expires, float)
        return time() + expires if expires else None

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Say whether an operation that failed like this may succeed later."""
        return isinstance(exc, EngineError) and not isinstance(exc, EngineConfigurationError)

    # Reading

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        stored = self.engine.get_results([str(task_id)]).get(str(task_id))
        return self._unpack(stored) if stored else {"status": states.PENDING, "result": None}

    def task_result_exists(self, task_id: str) -> bool:
        """Say whether the task is known: its result is stored, or it waits or runs."""
        return bool(
            self.engine.get_results([task_id]) or self.engine.list_tasks(task_ids=[task_id])
        )

    def _unpack(self, stored: Result) -> dict[str, Any]:
        meta: dict[str, Any] = self.decode_result(stored.meta)
        return meta

    def _forget(self, task_id: str) -> None:
        self.engine.forget([task_id])

    # Waiting

    def wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        callback: Callable[[str, Any], object] | None = None,
        propagate: bool = True,
    ) -> Any:
        """Return the task's result once it has finished: what ``AsyncResult.get()`` waits in."""
        self._ensure_not_eager()
        if on_message is not None:
            raise ImproperlyConfigured("Backend does not support on_message callback")
        look = lambda: self._look_at(result)  # noqa: E731
        try:
            for _, meta in self._wait([result.id], _Wait(timeout, interval, on_interval, look)):
                result._maybe_set_cache(meta)
                # Celery raises the error of a step before, or of a chord's header, through this;
                # on other brokers always, because they hear of each result by itself.
                if meta["status"] in states.PROPAGATE_STATES and on_interval is not None:
                    on_interval()
        except _NotKept:
            self.warn_ignored(result.id)
            return None
        return result.maybe_throw(propagate=propagate, callback=callback)

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        """Return the task's meta once it has finished.

        :param interval: how often to call ``on_interval``; it delays nothing.
        :raises TimeoutError: Celery's, when it has not finished after ``timeout`` seconds.
        """
        self._ensure_not_eager()
        return dict(self.get_many([task_id], timeout, interval, on_interval=on_interval))[task_id]

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        max_iterations: int | None = None,
        **kwargs: Any,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield id and meta of each task as it finishes.

        :param max_iterations: how often to look at most, without an error after the last.
        :raises TimeoutError: Celery's, when not all have finished after ``timeout`` seconds.
        """
        ids = list(dict.fromkeys(map(str, task_ids)))
        wait = _Wait(timeout, interval, on_interval, lambda: self.explain_wait(ids))
        for task_id, meta in self._wait(ids, wait, max_iterations):
            if on_message is not None:
                on_message(meta)
            yield task_id, meta

    def _wait(
        self, task_ids: Iterable[str], wait: _Wait, max_looks: int | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        waiting = set(task_ids)
        for task_id in list(waiting):
            meta = self._cache.get(task_id)
            if meta is not None and meta["status"] in states.READY_STATES:
                waiting.remove(task_id)
                yield task_id, meta
        looks = 0
        while waiting:
            looks += 1
            is_last = looks == max_looks
            sleep = 0.0 if is_last else wait.sleep()
            for task_id, stored in self.engine.wait_for_results(list(waiting), sleep).items():
                waiting.remove(task_id)
                meta = self._unpack(stored)
                if stored.state == states.SUCCESS:  # A dead letter may be run again.
                    self._cache[task_id] = meta
                yield task_id, meta
            if is_last:
                return
            if waiting:
                wait.go_on()

    # Explaining

    def explain(self, task_id: str, *, ignored: bool = False, search: bool = False) -> Explanation:
        """Say why the task has not finished, or that it has; see :func:`.explain.explain`."""
        program = Program.of(self.app)
        return explain(self.engine, task_id, ignored=ignored, program=program, search=search)

    def explain_result(self, result: Any, *, ignored: bool = False) -> Explanation:
        """Say why the task has not finished; of a later part of a canvas, what it comes after."""
        own = self.explain(result.id, ignored=ignored)
        if own.cause is not Cause.UNKNOWN:
            return own
        for task_id in islice(_lineage(result), 1, LOOKED_AT):
            earlier = self.explain(task_id)
            failed = self.get_state(task_id) in states.PROPAGATE_STATES
            if failed or earlier.cause not in (Cause.UNKNOWN, Cause.FINISHED):
                text = f"Task {result.id} comes after another. {earlier.text}"
                return earlier._replace(text=text)
        return self.explain(result.id, search=True)

    def explain_wait(self, task_ids: Iterable[str]) -> Explanation | None:
        """Say why waiting for these, or the first of many, is in vain, if it is for any.

        ``None`` when that can not be told: the messages are in another broker, or taken by stock
        workers, which leave no trace of what they run.
        """
        if not self.is_broker():
            return None
        self._withdraw()
        explained = [self._explain_waiting(task_id) for task_id in islice(task_ids, LOOKED_AT)]
        known = [each for each in explained if each.cause is not Cause.UNKNOWN]
        in_vain = [each for each in known if each.in_vain]
        pending = [each for each in known if each.cause is not Cause.FINISHED]
        if in_vain or pending:
            return (in_vain or pending)[0]
        unknown = [each for each in explained if each.cause is Cause.UNKNOWN]
        return self._judge_unknown(unknown[0]) if unknown else None

    def _explain_waiting(self, task_id: str) -> Explanation:
        explanation = self.explain(task_id)
        if explanation.cause is Cause.REVOKED:
            self._withdraw([task_id])
            explanation = self.explain(task_id)
        return explanation

    def _withdraw(self, task_ids: Collection[str] | None = None) -> None:
        """End what will not run: there may be no worker to do so."""
        # On a full disk, say, the next look may do better; waiting as such only reads.
        with suppress(EngineError):
            withdraw(self.app, self.engine, task_ids)

    def warn_ignored(self, task_id: str) -> None:
        """Warn, once, somebody who asks for a result that is not kept."""
        if not self._warned_ignored:
            self._warned_ignored = True
            warn(self.explain(task_id, ignored=True))

    def _look_at(self, result: Any) -> Explanation | None:
        # What a call returned knows whether its result is kept; what was made from an id does
        # not, and learns it here as long as the task waits or runs.
        if self.explain(result.id).cause is Cause.RESULT_IGNORED:
            raise _NotKept
        return self.explain_wait(_lineage(result))

    def _judge_unknown(self, unknown: Explanation) -> Explanation | None:
        """Say whether a task that is not stored can not come, as the later part of a canvas."""
        if any(is_stock_consumer(worker) for worker in self.engine.list_workers()):
            return None
        stored = [info.task_id for info in self.engine.list_tasks(limit=100) if info.task_id]
        if not stored:
            return unknown
        explanation = self.explain(stored[0])
        return explanation if explanation.cause is Cause.NO_WORKER else None

    # Groups

    def _save_group(self, group_id: str, result: Any) -> Any:
        expires_at = time() + self.expires if self.expires else None
        self.engine.save_group(group_id, self._pack({"result": result.as_tuple()}), expires_at)
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        stored = self.engine.get_group(group_id)
        if stored is None:
            return None
        meta: dict[str, Any] = self.decode(stored)
        meta["result"] = result_from_tuple(meta["result"], self.app)
        return meta

    def _delete_group(self, group_id: str) -> None:
        self.engine.delete_group(group_id)


class _NotKept(Exception):
    """The result that is waited for will not be stored."""


class _Wait:
    """The clock of one wait: its deadline, its intervals, and the look whether it is in vain."""

    def __init__(
        self,
        timeout: float | None,
        interval: float | None,
        on_interval: Callable[[], object] | None,
        look: Callable[[], Explanation | None],
    ) -> None:
        self._deadline = None if timeout is None else monotonic() + timeout
        self._interval = (interval or 0.5) if on_interval else MAX_SLEEP
        self._on_interval = on_interval
        # The first look at the results does not sleep: they may be there.
        self._next_interval = monotonic()
        self._watch = Watch(look)

    def sleep(self) -> float:
        """Return how long to sleep now (seconds)."""
        now = monotonic()
        ends = [self._next_interval, self._watch.next_look, self._deadline]
        return max(0.0, min(end for end in ends if end is not None) - now)

    def go_on(self) -> None:
        """Do what is due between two sleeps.

        :raises TimeoutError: when the time is over.
        """
        if self._deadline is not None and monotonic() >= self._deadline:
            raise TimeoutError("The operation timed out.")
        self._watch.look()
        if monotonic() >= self._next_interval:
            self._next_interval = monotonic() + self._interval
            if self._on_interval is not None:
                self._on_interval()


def _lineage(result: Any) -> Iterator[str]:
    """Yield the ids of a result and of all that it comes from: chain steps, a chord's header."""
    yield result.id
    parent = result.parent
    if isinstance(parent, ResultSet):
        yield from (member.id for member in parent.results or ())
        parent = parent.parent
    if parent is not None:
        yield from _lineage(parent)


def _is_error(result: Any) -> bool:
    """Say whether Celery can read this back as an exception."""
    return isinstance(result, BaseException) or (isinstance(result, dict) and "exc_type" in result)


def _is_final(collector: Collector, task_id: str, state: str) -> bool:
    """Say whether a result belongs to the outcome of the task that the collector is for."""
    if collector.closing:
        return True
    return task_id == collector.task_id and (state in states.READY_STATES or state == states.RETRY)
