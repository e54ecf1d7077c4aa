"""The result of a task, which can say why it is not there yet.

What :meth:`.Task.delay` returns. Everything but :meth:`AsyncResult.explain` is Celery's.
"""

from __future__ import annotations

from typing import Any
from typing import TypeVar

from . import stock
from .engines import is_engine_url

T = TypeVar("T", covariant=True)


class AsyncResult(stock.AsyncResult[T]):
    """Celery's result of a task, with a reason."""

    def explain(self) -> str:
        """Say what the task waits for, or what became of it, and the command that mends it.

        With a broker other than an engine of Celeriac's nothing is known but the state.
        """
        backend: Any = self.backend
        if is_engine_url(self.app.conf.broker_url) and hasattr(backend, "explain"):
            return str(backend.explain(self.id, ignored=bool(self.ignored)))
        return f"Task {self.id} is {self.state}, which is all that its result backend tells."
