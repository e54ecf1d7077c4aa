"""The result of a task, which can say why it is not there yet.

What :meth:`.Task.delay` returns. Everything but :meth:`AsyncResult.explain` is Celery's.
"""

from __future__ import annotations

from typing import TypeVar

import celery.result

from .engines import is_engine_url
from .engines import open_engine

T = TypeVar("T", covariant=True)


class AsyncResult(celery.result.AsyncResult[T]):
    """Celery's result of a task, with a reason."""

    def explain(self) -> str:
        """Say what the task waits for, or what became of it, and the command that mends it.

        With a broker other than an engine of Celeriac's nothing is known but the state.
        """
        url = self.app.conf.broker_url
        if not is_engine_url(url):
            return f"Task {self.id} is {self.state}. Only a queue file can tell more about it."
        from .explain import explain

        return explain(open_engine(url), self.id, ignored=bool(self.ignored)).text
