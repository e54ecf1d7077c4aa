"""What is stored of a task that succeeded, as Celery writes it: the short way of most results.

To Celery's code such a text costs 10 µs, and only four of its values are new. :class:`Success`
writes the same text in 3 µs, where all who have a say in it are the originals; of any other
backend, and of any other end of a task, Celery's code makes it.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from celery.backends.base import Backend

from .envelope import encode
from .originals import is_original
from .originals import writes_json

#: The functions on the long way, from the result to the text; first those of Celery's own.
_CELERYS = ("store_result", "_ensure_retryable", "_get_result_meta", "encode", "_encode")
_STEPS = frozenset((*_CELERYS, "_store_result", "_pack"))


class Success:
    """Writes what is stored of the tasks that succeed.

    :param kind: the class of the backends whose long way this is short for.
    """

    def __init__(self, kind: Any, app: Any) -> None:
        # Before Celery 5.7 one of them was a part of another.
        names = [name for name in _CELERYS if hasattr(Backend, name)]
        are_original = all(is_original(Backend, name) for name in names)
        self._steps = _steps(kind) if are_original else None
        self._clock = Clock(app)

    def is_for(self, backend: Any) -> bool:
        """Say whether nobody has changed how this backend writes results."""
        return (
            _steps(type(backend)) == self._steps
            and vars(backend).keys().isdisjoint(_STEPS)
            and backend.serializer == "json"
            and not getattr(backend, "compression", None)
            and not backend.is_extended
            and writes_json()
        )

    def meta(self, backend: Any, task_id: str, result: Any, request: Any) -> bytes | None:
        """Return the text, if :meth:`is_for` says so; ``None`` if it can not be written.

        :param result: as ``encode_result`` of the backend returned it.
        """
        children = backend.current_task_children(request)
        group = getattr(request, "group", None)
        parent_id = getattr(request, "parent_id", None)
        try:
            return (
                f'{{"status": "SUCCESS", "result": {encode(result)}, "traceback": null, '
                f'"children": {encode(children) if children else "[]"}, '
                f'"date_done": "{self._clock.now()}"'
                f"{_member('group_id', group)}{_member('parent_id', parent_id)}"
                f', "task_id": {encode(task_id)}}}'
            ).encode()
        except Exception:
            return None  # Celery says what is wrong.


class Clock:
    """Tells an app's time in ISO 8601, working out the date once in a second."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._second = -1, "", ""

    def now(self) -> str:
        """Return what ``app.now().isoformat()`` does."""
        second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        known, begin, end = self._second
        if second != known:
            text = datetime.fromtimestamp(second, self._app.timezone).isoformat()
            begin, end = text[:19], text[19:]
            self._second = second, begin, end
        microseconds = nanoseconds // 1000
        return f"{begin}.{microseconds:06}{end}" if microseconds else begin + end


def _steps(kind: Any) -> tuple[Any, ...]:
    # Looked up in the class each time: an instrument may come at any.
    return (
        Backend.store_result,
        kind.store_result,
        getattr(kind, "_ensure_retryable", None),
        kind._store_result,
        kind._get_result_meta,
        kind._pack,
        kind.encode,
        kind._encode,
    )


def _member(name: str, value: Any) -> str:
    return f', "{name}": {encode(value)}' if value else ""
