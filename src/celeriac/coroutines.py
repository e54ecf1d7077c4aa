"""``async def`` tasks: their coroutines, run to the end where Celery's tracer wants a result.

A task comes in, through :func:`adapt`; its ``run`` then returns what the coroutine returns when
the tracer calls it, and the coroutine itself when anybody else does. Each thread that runs tasks
has one event loop, which it keeps from one task to the next.

Celery's tracer is a plain function, so it waits for the coroutine in the thread that it runs in.
That is why everything which Celery and Flask keep per thread or per context holds in there: the
current task and its request, the app context, what instruments have put into the context.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from collections.abc import Coroutine
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from types import FrameType
from typing import Any

import celery._state
from celery import signals
from celery.utils.log import get_logger

from . import greenlets

logger = get_logger(__name__)

# Celery keeps the stack of current tasks in a module that it calls internal.
_state: Any = celery._state

#: How long what a task left behind may take to end when it is cancelled (seconds).
GRACE = 5.0


def adapt(task: Any) -> bool:
    """Let Celery run ``task``, if its function is ``async def``; say whether that was needed."""
    # Where autoretry_for wraps the function, it is to see what the coroutine raises.
    name = "_orig_run" if hasattr(task, "_orig_run") else "run"
    function = getattr(task, name)
    if getattr(function, "is_adapted", False):
        return False
    if is_generator_function(function):
        setattr(task, name, _refusing(task.name, function))
    elif _is_coroutine_function(function):
        setattr(task, name, _finishing(task, function))
    else:
        return False
    return True


def is_generator_function(function: Any) -> bool:
    """Say whether it is an ``async def`` with ``yield``, which has no result."""
    return any(map(inspect.isasyncgenfunction, _unwrapped(function)))


def why_refused(name: str, function: Any) -> str:
    """Explain why an ``async def`` with ``yield`` can not be a task, and what can."""
    code = inspect.unwrap(function).__code__
    return (
        f"Task {name} is an async generator ('async def' with 'yield'), which has no result that "
        "a caller could wait for. Collect what it yields in a list, and return that. It is defined "
        f"in {code.co_filename}, line {code.co_firstlineno}."
    )


def finish(task: Any, coroutine: Any) -> Any:
    """Run what the task's function returned to its end, if Celery's tracer waits for that.

    Another caller of the function is given the coroutine, to await it.
    """
    request = _traced(task)
    if request is None:
        return coroutine
    request.update(_is_begun=True)
    label = f"{task.name}[{request.id}]"
    if _is_in_loop():
        return _run_elsewhere(task, request, label, coroutine)
    if request.is_eager or greenlets.are_threads():
        return _run_once(label, coroutine)
    return _make(_own_loop, label, coroutine).run(label, coroutine)


async def within(context: AbstractContextManager[Any], awaitable: Any) -> Any:
    """Await something inside a context."""
    with context:
        return await awaitable


def interrupt(thread: int, error: BaseException) -> bool:
    """Raise ``error`` in the coroutine that a thread runs, where it awaits something.

    :param thread: its :func:`threading.get_ident`.
    :return: whether that thread runs a coroutine which awaits, or will. One in the midst of its
        own code is left to the caller, who can raise errors in threads.
    """
    run = _running.get(thread)
    if run is None or run.runs(sys._current_frames().get(thread)):
        return False
    return run.interrupt_soon(error)


class Loop:
    """An event loop of our own, in which one coroutine runs at a time."""

    def __init__(self) -> None:
        self._loop = greenlets.new_event_loop()
        self.pid = os.getpid()
        # Threads of an executor, Celery's own pool for one, end without a word.
        self.close = weakref.finalize(self, _close, self._loop, self.pid)

    def run(
        self,
        label: str,
        coroutine: Coroutine[Any, Any, Any],
        on_start: Callable[[_Run], None] | None = None,
    ) -> Any:
        """Run a coroutine to its end, and cancel what it has started and left behind.

        :param label: what it is called in warnings.
        :param on_start: is given what can interrupt it.
        """
        run = _Run(self._loop, label, coroutine)
        if on_start is not None:
            on_start(run)
        me = threading.get_ident()
        outer = _running.get(me)
        _running[me] = run
        try:
            with _not_within_the_loop(run):
                return run.to_the_end()
        finally:
            if outer is None:
                del _running[me]
            else:
                _running[me] = outer
            if run.left_behind:
                # It would get in the way of the next task.
                _forget(self)


class _Run:
    """One coroutine on its way, into which an error can be thrown from outside.

    The coroutine's ``send`` and ``throw`` go through here, because asyncio itself can throw
    nothing but a cancellation.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, label: str, coroutine: Coroutine[Any, Any, Any]
    ) -> None:
        self._loop = loop
        self._label = label
        self._coroutine = coroutine
        self._thrown: BaseException | None = None
        self._begun = self._ended = False
        self.left_behind = False
        self._task = loop.create_task(self._whole())

    def to_the_end(self) -> Any:
        """Run the loop until the coroutine has ended; return or raise what it did."""
        late: BaseException | None = None
        while True:
            try:
                result = greenlets.run(self._loop, self._task)
            except BaseException as error:
                if self._task.done():
                    if not self._task.cancelled():
                        self._task.exception()  # Or asyncio thinks that nobody has seen it.
                    raise
                # What a signal's receiver has raised: meant for the task, not for the loop.
                if not self._interrupt(error):
                    late = error
            else:
                if late is not None:
                    raise late
                return result

    def interrupt_soon(self, error: BaseException) -> bool:
        """Throw an error into the coroutine; may be called by any thread, and by signals."""
        if self._ended:
            return False
        try:
            self._loop.call_soon_threadsafe(self._interrupt, error)
        except RuntimeError:  # Closed in this very moment.
            return False
        return True

    def runs(self, frame: FrameType | None) -> bool:
        """Say whether a frame is, or was called by, the coroutine's own code."""
        own = getattr(self._coroutine, "cr_frame", None)
        while frame is not None:
            if frame is own:
                return True
            frame = frame.f_back
        return False

    def _interrupt(self, error: BaseException) -> bool:
        if self._ended:
            return False
        self._thrown = error
        if self._begun:
            # Wakes the coroutine, and ends what it waits for. What it sees is the error.
            self._task.cancel()
        return True

    async def _whole(self) -> Any:
        self._begun = True
        try:
            return await self
        except asyncio.CancelledError as exc:
            # Not an Exception, so it would end the worker's child and not only the task.
            raise concurrent.futures.CancelledError(f"{self._label} was cancelled") from exc
        finally:
            self._ended = True
            await self._cancel_the_rest()

    async def _cancel_the_rest(self) -> None:
        await asyncio.sleep(0)  # Lets transports close, and what was just cancelled end.
        rest = _unfinished(self._loop) - {self._task}
        if not rest:
            return
        for task in rest:
            task.cancel()
        names = ", ".join(sorted(_name(task) for task in rest))
        _, stubborn = await asyncio.wait(rest, timeout=GRACE)
        self.left_behind = bool(stubborn)
        logger.warning(
            "Task %s ended before what it had started with asyncio.create_task(): %s. It was "
            "cancelled; await it in the task, or send another task to do it.",
            self._label,
            names,
        )

    # As seen by `await`

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # type: ignore[return-value]  # As good as one.

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """Continue the coroutine, or if somebody wants to interrupt it, do."""
        if self._thrown is not None:  # Its awaited thing caught the cancellation.
            return self.throw(self._thrown)
        return self._coroutine.send(value)

    def throw(self, error: Any, value: Any = None, traceback: Any = None) -> Any:
        """Raise an error in the coroutine: that of who interrupts it, if somebody does."""
        thrown, self._thrown = self._thrown, None
        if thrown is None:
            return self._coroutine.throw(error if value is None else value)
        if sys.version_info >= (3, 11):
            self._task.uncancel()  # Or the coroutine's own time-outs would take it for theirs.
        return self._coroutine.throw(thrown)

    def close(self) -> None:
        """End the coroutine where it stands."""
        self._coroutine.close()


class _Own(threading.local):
    loop: Loop | None = None


_own = _Own()
#: The coroutine that each thread runs.
_running: dict[int, _Run] = {}
#: Loops of the parent. Closing one in a forked child would stop the parent's.
_inherited: list[Loop] = []


def _own_loop() -> Loop:
    loop = _own.loop
    if loop is not None and loop.pid != os.getpid():
        _inherited.append(loop)
        loop = None
    if loop is None:
        loop = _own.loop = Loop()
        signals.worker_process_shutdown.connect(
            _close_own, weak=False, dispatch_uid="celeriac.coroutines.close"
        )
    return loop


def _close_own(**kwargs: Any) -> None:
    loop, _own.loop = _own.loop, None
    if loop is not None:
        loop.close()


def _forget(loop: Loop) -> None:
    if _own.loop is loop:
        _close_own()


def _close(loop: asyncio.AbstractEventLoop, pid: int) -> None:
    """Close a loop, and what its coroutines have opened with ``async for``."""
    if loop.is_closed() or pid != os.getpid():
        return
    try:
        if not _is_in_loop():
            greenlets.run(loop, asyncio.wait_for(loop.shutdown_asyncgens(), GRACE))
    except asyncio.TimeoutError:
        logger.error("An async generator of a task did not end within %g s", GRACE)
    finally:
        loop.close()


def _make(make: Callable[[], Loop], label: str, coroutine: Coroutine[Any, Any, Any]) -> Loop:
    try:
        return make()
    except OSError as exc:
        coroutine.close()
        raise OSError(
            exc.errno,
            f"No event loop can be made for {label} ({exc.strerror}). Allow the worker more open "
            "files (ulimit -n), or have it run fewer tasks at once (-c)",
        ) from exc


def _run_once(
    label: str,
    coroutine: Coroutine[Any, Any, Any],
    on_start: Callable[[_Run], None] | None = None,
) -> Any:
    """Run a coroutine in a loop that lives no longer than it, where nobody would close one."""
    loop = _make(Loop, label, coroutine)
    try:
        return loop.run(label, coroutine, on_start)
    finally:
        loop.close()


def _run_elsewhere(task: Any, request: Any, label: str, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in another thread, with all that it would find in this one.

    Somebody calls a task with ``apply()`` in a coroutine, and a thread can run but one loop.
    """
    if greenlets.are_threads():
        coroutine.close()
        raise RuntimeError(
            f"Task {task.name} is 'async def' and was called with apply(), or eagerly, by a "
            "coroutine. With gevent that can not work: await the task instead."
        )
    context = contextvars.copy_context()
    started: list[_Run] = []

    def run() -> Any:
        task.app.set_current()
        _state._task_stack.push(task)
        task.request_stack.push(request)
        try:
            return context.run(_run_once, label, coroutine, started.append)
        finally:
            task.request_stack.pop()
            _state._task_stack.pop()

    with concurrent.futures.ThreadPoolExecutor(1, "celeriac-eager") as threads:
        future = threads.submit(run)
        try:
            return future.result()
        except BaseException as error:
            # Who waits here may have been interrupted.
            for each in started:
                each.interrupt_soon(error)
            raise


def _is_in_loop() -> bool:
    if greenlets.are_threads():
        # Another greenlet's loop may run, in the midst of a step that sends something: ours will
        # have its turn.
        return threading.get_ident() in _running
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _traced(task: Any) -> Any:
    """Return the request for which the tracer waits, unless its coroutine was begun already.

    A task that calls itself, or a base class whose ``__call__`` calls that of its own base, has
    requests above it.
    """
    for request in reversed(task.request_stack.stack):
        if not request.called_directly:
            return None if request.get("_is_begun") else request
    return None


def _finishing(task: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        # It may be wrapped in a plain function, which has run it already.
        return finish(task, result) if isinstance(result, Coroutine) else result

    run.is_adapted = True  # type: ignore[attr-defined]
    return run


def _refusing(name: str, function: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        raise TypeError(why_refused(name, function))

    run.is_adapted = True  # type: ignore[attr-defined]
    return run


def _is_coroutine_function(function: Any) -> bool:
    return any(map(inspect.iscoroutinefunction, _unwrapped(function)))


def _unwrapped(function: Any) -> Iterator[Any]:
    """Yield a function, and what decorators have wrapped in it."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def _unfinished(loop: asyncio.AbstractEventLoop) -> set[asyncio.Task[Any]]:
    """Return the tasks of a loop that have not ended, as :func:`asyncio.all_tasks` does.

    Before Python 3.14 that goes through the tasks of all threads, and begins anew whenever one of
    these starts something meanwhile; here it takes a copy of them, in one step. No door: see
    ``all_tasks`` in Lib/asyncio/tasks.py.
    """
    its: Any = asyncio.tasks
    # Of 3.10 and 3.11, or of 3.12 and 3.13.
    known: Any = getattr(its, "_all_tasks", None) or getattr(its, "_scheduled_tasks", None)
    if sys.version_info >= (3, 14) or not hasattr(known, "data"):
        return asyncio.all_tasks(loop)
    tasks = {reference() for reference in known.data.copy()}
    tasks.update(getattr(its, "_eager_tasks", set()).copy())
    return {task for task in tasks if task and task.get_loop() is loop and not task.done()}


def _name(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", task.get_name())


@contextmanager
def _not_within_the_loop(run: _Run) -> Iterator[None]:
    """Keep what the receiver of the soft time limit's signal raises out of asyncio's own code.

    There it would be lost, or something else with it. It goes to the coroutine instead: at once
    if that is what runs, else where it awaits.
    """
    number = getattr(signal, "SIGUSR1", None)
    previous: Any = None
    if number is not None and threading.current_thread() is threading.main_thread():
        previous = signal.getsignal(number)
    if not callable(previous):
        yield
        return

    def receive(signum: int, frame: FrameType | None) -> None:
        try:
            previous(signum, frame)
        except BaseException as error:
            if run.runs(frame) or not run.interrupt_soon(error):
                raise

    signal.signal(number, receive)  # type: ignore[arg-type]
    try:
        yield
    finally:
        signal.signal(number, previous)  # type: ignore[arg-type]
