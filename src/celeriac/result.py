"""The result of a task, which can say why it is not there yet.

What :meth:`.Task.delay` returns. Everything but :meth:`AsyncResult.explain` and a warning is
Celery's, and so is :meth:`AsyncResult.exists` from Celery 5.7 on.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any
from typing import TYPE_CHECKING
from typing import TypeVar

from celery import states
from celery.app import app_or_default
from celery.backends.base import DisabledBackend
from vine import promise

from . import stock
from .engines import is_engine_url

T = TypeVar("T", covariant=True)


class AsyncResult(stock.AsyncResult[T]):
    """Celery's result of a task, with a reason."""

    if not TYPE_CHECKING:  # The types stay Celery's.

        def __init__(
            self,
            id: str,
            backend: Any = None,
            task_name: str | None = None,
            app: Any = None,
            parent: Any = None,
        ) -> None:
            # As Celery's, but for the promise behind then(), which costs more than all the rest.
            if id is None:
                super().__init__(id)  # Celery says why not.
            self.app = app_or_default(app or self.app)
            self.id = id
            self.backend = backend or self.app.backend
            self.parent = parent
            self._cache = None
            self._ignored = False

        @cached_property
        def on_ready(self) -> Any:
            return promise(self._on_fulfilled, weak=True)

        def get(self, *args: Any, **kwargs: Any) -> Any:
            # Celery returns None at once for a result that is not kept, which is easily taken
            # for the task's own None.
            if self.ignored and hasattr(self.backend, "warn_ignored"):
                self.backend.warn_ignored(self.id)
            elif not self.ignored:
                self._see_that_results_are_kept()
            return super().get(*args, **kwargs)

        wait = get

        def _get_task_meta(self) -> Any:
            # What `state`, `ready()` and all the others look at.
            self._see_that_results_are_kept()
            return super()._get_task_meta()

    def exists(self) -> bool:
        """Say whether the task is known, which one that is ``PENDING`` need not be.

        With a result backend other than an engine of Celeriac's, what waits or runs is not known.
        """
        backend: Any = self.backend
        if not hasattr(backend, "task_result_exists"):  # Before Celery 5.7.
            return bool(self.state != states.PENDING)
        return bool(backend.task_result_exists(self.id))

    def explain(self) -> str:
        """Say what the task waits for, or what became of it, and the command that mends it.

        With a broker other than an engine of Celeriac's nothing is known but the state.
        """
        backend: Any = self.backend
        if isinstance(backend, DisabledBackend):
            return self._without_backend()
        if is_engine_url(self.app.conf.broker_url) and hasattr(backend, "explain_result"):
            return str(backend.explain_result(self, ignored=bool(self.ignored)))
        return f"Task {self.id} is {self.state}, which is all that its result backend tells."

    def _see_that_results_are_kept(self) -> None:
        # Celery's own errors do not say what to set, or are an AttributeError.
        if isinstance(self.backend, DisabledBackend):
            raise NotImplementedError(self._without_backend())

    def _without_backend(self) -> str:
        return (
            f"No result backend is configured, so nothing is known of task {self.id}: set "
            "result_backend, to the URL of a Redis or to rpc:// for instance."
        )
