"""What becomes of a canvas when one of its tasks ends: chords, dependents, error callbacks.

Celery calls :class:`CanvasBackend` when a task has succeeded, failed or was revoked. What
follows from that is gathered by the :class:`~celeriac.collect.Collector` in force, and so
committed with the end of the task; without one it is written at once.

A chord is counted in the database. Whoever brings the last part, or the first that failed, has
its callback sent, or its error callbacks called, by :meth:`CanvasBackend.chord_ready`; there is
no ``chord_unlock`` task.

When a task fails, nothing waits for it any more: :mod:`celeriac.dependents` finds all that can
never run now, and all of it fails in the same commit.
"""

from __future__ import annotations

import sys
import traceback as tracebacks
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

from celery import maybe_signature
from celery import states
from celery.app.task import Context
from celery.backends.base import BaseBackend
from celery.exceptions import ChordError
from celery.exceptions import TaskRevokedError
from celery.result import GroupResult
from celery.result import ResultSet
from celery.utils.functional import _regen as generator_type  # type: ignore[attr-defined]
from celery.utils.functional import arity_greater
from celery.utils.log import get_logger
from kombu.utils.encoding import ensure_bytes
from kombu.utils.functional import maybe_list

from . import collect
from .collect import Collector
from .dependents import errbacks
from .dependents import find_dependents
from .dependents import is_group
from .dependents import result_id
from .engines import Engine
from .engines import is_engine_url
from .engines import open_engine
from .engines.base import ChordPart
from .replacement import is_size_of_part

logger = get_logger(__name__)

#: An option of a chord's callback, in the part of a member that failed: see :func:`_telling`.
_CALLED = "celeriac_called"

# The published stubs know half of what a backend inherits, so it is taken as untyped.
_BaseBackend: Any = BaseBackend


class CanvasBackend(_BaseBackend):  # type: ignore[misc]
    """The part of a result backend that keeps a canvas going, or ends it."""

    engine: Engine

    def is_broker(self) -> bool:
        """Say whether the engine is the app's broker, too."""
        conf = self.app.conf
        url = conf.get("broker_write_url") or conf.broker_url
        return is_engine_url(url) and open_engine(url) is self.engine

    # The end of a task

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """Store a failure, have all that depends on the task fail, and call its errbacks."""
        with self._ending(task_id) as is_the_end:
            if store_result:
                self.store_result(task_id, exc, state, traceback=traceback, request=request)
            if request and is_the_end:
                self._fail_dependents(request, exc, state, traceback)
            if request and call_errbacks and request.errbacks:
                self._call_errbacks(request, exc, traceback)

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:
        """Store that the task will not run, and so for the later steps of its chain."""
        exc = TaskRevokedError(reason)
        with self._ending(task_id) as is_the_end:
            if store_result:
                self.store_result(task_id, exc, state, traceback=None, request=request)
            if request and is_the_end:
                self._fail_dependents(request, exc, state)

    def mark_as_ignored(self, request: Any) -> None:
        """End what comes after a task that raised ``Ignore``.

        The task's own state is what it stored itself, as Celery has it. If that is a failure,
        its dependents fail with it; if not, they are revoked, for nobody will ever send them.
        """
        stored = self.get_task_meta(request.id, cache=False)
        exc, state = TaskRevokedError("ignored"), states.REVOKED
        if stored["status"] in states.PROPAGATE_STATES:
            exc, state = stored["result"], stored["status"]
        with self._ending(request.id):
            if request.chord and stored["status"] == states.SUCCESS:
                self.on_chord_part_return(request, states.SUCCESS, stored["result"])
            self._fail_dependents(request, exc, state)

    @contextmanager
    def _ending(self, task_id: str) -> Iterator[bool]:
        """Gather what follows from the end of a task; say whether it had not succeeded before."""
        collector = collect.current(self.engine)
        if collector is None:
            with self._at_once():
                yield True
        elif collector.task_id == task_id:
            yield collector.fail()
        else:
            yield True

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Write what is gathered when the block ends, also if it raises."""
        collector = Collector(self.engine, closing=True)
        try:
            with collect.collecting(collector):
                yield
        finally:
            self.engine.store_results(collector.results)
            for size in collector.sizes:
                self.engine.set_chord_size(*size)
            self.engine.publish(collector.messages)
            for part in collector.parts:
                self._join(part)

    def _fail_dependents(
        self, request: Any, exc: BaseException, state: str, traceback: Any = None
    ) -> None:
        if request.chord:
            self.on_chord_part_return(request, state, exc)
        # Celery may call with a request of the worker, which is without most of these.
        later = [getattr(request, name, None) or () for name in ("chain", "callbacks")]
        self._fail_all(chain.from_iterable(later), exc, state, traceback)

    def _fail_all(
        self,
        signatures: Iterable[Any],
        exc: BaseException,
        state: str,
        traceback: Any,
        called: Sequence[Any] = (),
    ) -> None:
        for each in find_dependents(signatures):
            request = Context(dict(each.signature))
            request.update(each.signature["options"])
            request.id = each.task_id
            request.group = each.signature["options"].get("group_id")
            if not self._ignores_result(each.signature):
                self.store_result(each.task_id, exc, state, traceback=traceback, request=request)
            if each.counts:
                if called:
                    request.update(chord=_telling(each.signature["options"]["chord"], called))
                self.on_chord_part_return(request, state, exc)

    def _ignores_result(self, signature: Any) -> bool:
        task = self.app.tasks.get(signature["task"])
        if getattr(task, "store_errors_even_if_ignored", False):
            return False
        ignored = signature["options"].get("ignore_result")
        return bool(getattr(task, "ignore_result", False) if ignored is None else ignored)

    def _call_errbacks(self, request: Any, exc: BaseException, traceback: Any) -> None:
        called = request.errbacks
        collector = collect.current(self.engine)
        # One by one: before 5.7 Celery calls no more of them after one that fails.
        for errback in called:
            request.errbacks = [errback]
            # What goes wrong with an error callback does not change what became of the task.
            try:
                if collector is not None and self._runs_here(errback):
                    # It, and whoever it tells, may look at the failure.
                    self.engine.store_results(collector.results)
                self._call_task_errbacks(request, exc, traceback)
            except Exception:
                logger.exception("An error callback of %s could not be called", request.id)
        request.errbacks = called

    def _runs_here(self, errback: Any) -> bool:
        """Say whether Celery calls an errback in this process instead of sending it."""
        task = self.app.tasks.get(errback["task"])
        header = getattr(task, "__header__", None)
        return header is not None and not isinstance(header, partial) and arity_greater(header, 1)

    # Chords

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Prepare for a chord whose header is about to be sent.

        The structure of a header of groups is kept, because the callback gets the results in it.
        """
        self.ensure_chords_allowed()
        # A header from a generator is not looked into: that would run it.
        if not isinstance(header_result_args[1], generator_type):
            header = self.app.GroupResult(*header_result_args)
            if any(isinstance(member, GroupResult) for member in header.results):
                self.save_group(header.id, header)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Say how many parts complete the chord. Celery knows once the last one is being sent."""
        if is_size_of_part(group_id):
            return
        collector = collect.current(self.engine)
        # Without its messages a chord would be left behind for ever.
        if collector is not None and collector.closing and self.is_broker():
            collector.sizes.append((group_id, chord_size))
            return
        if self.engine.set_chord_size(group_id, chord_size):
            self.chord_ready(self.engine.chord_parts(group_id)[0])

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Expect one part more."""
        self.engine.add_to_chord(chord_id)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count a finished member of a chord's header; the last completes it, or a failed one."""
        if not request.group or not request.id:
            return
        collector = collect.current(self.engine)
        part = ChordPart(
            request.group,
            member=f"{request.id}:{request.group_index}",
            place=request.group_index,
            meta=self._part_meta(collector, request.id, state, result),
            callback=self._pack(request.chord),
            failed=state in states.PROPAGATE_STATES,
        )
        if collector is not None:
            collector.parts.append(part)
        else:
            self._join(part)

    def chord_ready(self, part: ChordPart) -> bool:
        """Send a complete chord's callback, or run its errbacks; say if it was this call's doing.

        Publishing and the end of the chord are one transaction if this engine is the broker,
        too. With another broker the callback is published first: it may come twice if the
        process dies in between, but not never.

        :param part: any of the chord's parts.
        """
        parts = self.engine.chord_parts(part.group_id)
        if not parts:  # Finished by another.
            return False
        with collect.collecting(Collector(self.engine, closing=True)) as collected:
            self._send_callback(parts, parent_id=part.member.rpartition(":")[0])
        # The callback itself may be a member of another chord, and have failed. Counted first:
        # a part that is counted twice does no harm, one that is lost does.
        for outer in collected.parts:
            self._join(outer)
        results, messages, _, sizes = collected.collected
        won = self.engine.finish_chord(part.group_id, messages, results, sizes)
        self.engine.delete_group(part.group_id)
        return won

    def _join(self, part: ChordPart) -> None:
        if self.engine.join_chord(part):
            self.chord_ready(part)

    def _part_meta(
        self, collector: Collector | None, task_id: str, state: str, result: Any
    ) -> bytes:
        if collector is not None and collector.results:
            last = collector.results[-1]
            if last.task_id == task_id and last.state == state:
                return last.meta
        encoded = self.encode_result(result, state)
        return self._pack({"status": state, "result": encoded, "task_id": task_id})

    def _pack(self, value: Any) -> bytes:
        return bytes(ensure_bytes(self.encode(value)))

    def _send_callback(self, parts: list[ChordPart], parent_id: str) -> None:
        group_id = parts[0].group_id
        callback = self._callback(parts[0])
        try:
            results = self._header_results(parts)
        except ChordError as exc:
            logger.exception("Chord %r raised: %r", group_id, exc)
            # The failed part knows which errbacks were called.
            failed = next(part for part in parts if _has_failed(self.decode_result(part.meta)))
            self.chord_error_from_stack(self._callback(failed), exc)
            return
        except Exception as exc:
            logger.exception("Chord %r raised: %r", group_id, exc)
            self.chord_error_from_stack(callback, _chord_error(f"Join error: {exc!r}", exc))
            return
        try:
            self._publish(callback, results, parent_id)
        except Exception as exc:
            logger.exception("Chord callback for %r raised: %r", group_id, exc)
            self.chord_error_from_stack(callback, _chord_error(f"Callback error: {exc!r}", exc))

    def _callback(self, part: ChordPart) -> Any:
        return maybe_signature(self.decode(part.callback), app=self.app)

    def _publish(self, callback: Any, results: list[Any], parent_id: str) -> None:
        """Send the callback, as a child of the header's task that completed the chord."""
        first = callback
        while first.get("subtask_type") == "chain" and first["kwargs"]["tasks"]:
            first = first["kwargs"]["tasks"][0]
        first["options"]["parent_id"] = parent_id
        retry = getattr(self.app.amqp, "_retry_publish", None)  # Celery 5.7 and later
        if retry is not None:
            retry(callback.delay, results)
        else:
            callback.delay(results)

    def _header_results(self, parts: list[ChordPart]) -> list[Any]:
        metas = [self.decode_result(part.meta) for part in parts]
        values = [_value(meta) for meta in metas]
        header = self.restore_group(parts[0].group_id, cache=False)
        if header is None:
            return values
        return _arranged(header, {meta["task_id"]: meta["result"] for meta in metas})

    def chord_error_from_stack(self, callback: Any, exc: BaseException | None = None) -> None:
        """Have a chord's callback fail and all that comes after it, and call its errbacks.

        As in Celery, the members of a callback that is a group fail with the error that broke
        the header, any other with the ``ChordError``; and each member calls its own errbacks.

        Celery links an errback of a chord to the chords in its header, too, because there it
        would not hear of their failure. Here it does, and is not called again.
        """
        error = exc or sys.exc_info()[1] or ChordError("The chord failed")
        callbacks = [callback]
        if is_group(callback):
            error = error.__cause__ or error
            callbacks = callback["kwargs"]["tasks"]
        earlier = called = callback["options"].get(_CALLED) or []
        with self._ending(""):
            for each in callbacks:
                own = errbacks(each)
                shared = maybe_list(callback["options"].get("link_error")) or []
                own += [errback for errback in shared if errback not in own]
                own = [errback for errback in own if errback not in earlier]
                called = called + own
                if own:
                    request = Context(dict(each), delivery_info={}, errbacks=own)
                    request.id = result_id(each)
                    self._call_errbacks(request, error, None)
            told = "".join(tracebacks.format_exception(type(error), error, error.__traceback__))
            self._fail_all([callback], error, states.FAILURE, told, called)


def _telling(callback: Mapping[str, Any], called: Sequence[Any]) -> dict[str, Any]:
    """Return a chord's callback with the errbacks that were called for a part of its header."""
    return {**callback, "options": {**callback["options"], _CALLED: list(called)}}


def _has_failed(meta: dict[str, Any]) -> bool:
    return meta["status"] in states.PROPAGATE_STATES


def _value(meta: dict[str, Any]) -> Any:
    """Return the result of a chord's member, or raise what Celery raises for a failed one."""
    value = meta["result"]
    if _has_failed(meta):
        raise _chord_error(f"Dependency {meta['task_id']} raised {value!r}", value)
    return value


def _arranged(header: Any, values: dict[str, Any]) -> list[Any]:
    """Return the values in the structure of a header that has groups in it."""
    return [
        _arranged(member, values) if isinstance(member, ResultSet) else values[member.id]
        for member in header.results
    ]


def _chord_error(message: str, cause: Any) -> ChordError:
    error = ChordError(message)
    if isinstance(cause, Exception):
        error.__cause__ = cause
    return error
