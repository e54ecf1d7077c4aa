"""Remote control commands whose answer is in the store.

All other commands are Celery's own: they read its picture of the worker, which
:meth:`~celeriac.worker.consumer.Consumer.refresh_state` fills in before each.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from celery.utils.functional import maybe_list
from celery.worker import control


def handlers(stock: Mapping[str, Any]) -> dict[str, Any]:
    """Return the commands of a worker: Celery's, with ours in their places."""
    commands = {
        **stock,
        "scheduled": _scheduled,
        "dump_schedule": _scheduled,
        "revoke": _revoke,
        "terminate": _terminate,
        "active_queues": _active_queues,
        "time_limit": _time_limit,
        "add_consumer": _add_consumer,
    }
    return {name: _obeyed(command) for name, command in commands.items()}


def _obeyed(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command, with the children told of its effects before it is answered."""

    def obey(state: Any, **arguments: Any) -> Any:
        try:
            return command(state, **arguments)
        finally:
            state.consumer.send_orders()

    return obey


def _scheduled(state: Any, **kwargs: Any) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = state.consumer.scheduled()
    return result


def _revoke(
    state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **kwargs: Any
) -> Any:
    """Make the revocation durable, then do what Celery does."""
    state.consumer.engine.revoke(set(maybe_list(task_id) or ()))
    return control.revoke(state, task_id, terminate=terminate, signal=signal, **kwargs)


def _terminate(state: Any, signal: Any, task_id: Any, **kwargs: Any) -> Any:
    return _revoke(state, task_id, terminate=True, signal=signal)


def _active_queues(state: Any) -> list[dict[str, Any]]:
    queues = state.app.amqp.queues.consume_from.values()
    return [dict(queue.as_dict(recurse=True)) for queue in queues]


# Celery takes what it is told; a child that then obeyed nonsense would end, and so the next.


def _time_limit(state: Any, hard: Any = None, soft: Any = None, **kwargs: Any) -> Any:
    if not all(limit is None or isinstance(limit, (int, float)) for limit in (hard, soft)):
        return control.nok("time limits are seconds, as numbers")
    return control.time_limit(state, hard=hard, soft=soft, **kwargs)


def _add_consumer(state: Any, queue: Any, **kwargs: Any) -> Any:
    if not isinstance(queue, str):
        return control.nok("the name of a queue is a text")
    return control.add_consumer(state, queue, **kwargs)
