"""Remote control commands whose answer is in the store.

All other commands are Celery's own: they read its picture of the worker, which
:meth:`~celeriac.worker.picture.Picture.refresh` fills in before each.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from celery.utils.functional import maybe_list
from celery.worker import control
from celery.worker import state as worker_state
from celery.worker.state import REVOKES_MAX

from celeriac.withdrawal import revoke
from celeriac.withdrawal import stamps


def handlers(stock: Mapping[str, Any]) -> dict[str, Any]:
    """Return the commands of a worker: Celery's, with ours in their places."""
    commands = {
        **stock,
        "scheduled": _scheduled,
        "dump_schedule": _scheduled,
        "query_task": _query_task,
        "revoke": _revoke,
        "revoke_by_stamped_headers": _revoke_by_stamps,
        "terminate": _terminate,
        "revoked": _revoked,
        "dump_revoked": _revoked,
        "active_queues": _active_queues,
        "time_limit": _time_limit,
        "add_consumer": _add_consumer,
        "pool_grow": _by_a_count(control.pool_grow),
        "pool_shrink": _by_a_count(control.pool_shrink),
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
    result: list[dict[str, Any]] = state.consumer.picture.scheduled()
    return result


def _query_task(state: Any, ids: Any, **kwargs: Any) -> dict[str, Any]:
    """Tell what Celery knows, and of what waits in the store."""
    task_ids = list(map(str, maybe_list(ids) or ()))
    return {**state.consumer.picture.waiting(task_ids), **control.query_task(state, task_ids)}


def _revoke(
    state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **kwargs: Any
) -> Any:
    """Do what Celery does, but leave alone what another process runs.

    Celery's workers store that the task was revoked, each by itself, unless it runs in their own
    pool.
    """
    task_ids = set(map(str, maybe_list(task_id) or ()))
    consumer = state.consumer
    revoke(consumer.engine, task_ids, terminate, signal)
    consumer.call_off(task_ids)
    claimed = consumer.engine.list_tasks(task_ids=list(task_ids), status="claimed")
    active = {request.id for request in worker_state.active_requests}
    # Should one of these be starting here: the consumer looks after it.
    held = {info.task_id for info in claimed} - active
    told = task_ids - held
    answer = control.revoke(state, list(told), terminate=terminate, signal=signal, **kwargs)
    worker_state.revoked.update(held)
    if terminate:
        consumer.terminated.update(active & task_ids)
    elif held:
        answer = control.ok(f"tasks {task_ids} flagged as revoked")
    return answer


def _revoke_by_stamps(state: Any, headers: Any, **kwargs: Any) -> Any:
    """Make the revocation durable, then do what Celery does."""
    state.consumer.engine.revoke(stamps=stamps(headers))
    return control.revoke_by_stamped_headers(state, headers, **kwargs)


def _terminate(state: Any, signal: Any, task_id: Any, **kwargs: Any) -> Any:
    return _revoke(state, task_id, terminate=True, signal=signal)


def _revoked(state: Any, **kwargs: Any) -> list[str]:
    """List what the store knows: it remembers for longer than a worker does."""
    return list(state.consumer.engine.revocations().task_ids)[-REVOKES_MAX:]


def _active_queues(state: Any) -> list[dict[str, Any]]:
    queues = state.app.amqp.queues.consume_from.values()
    return [dict(queue.as_dict(recurse=True)) for queue in queues]


# Celery takes what it is told; a child that then obeyed nonsense would end, and so the next.


def _time_limit(state: Any, hard: Any = None, soft: Any = None, **kwargs: Any) -> Any:
    if not all(limit is None or isinstance(limit, (int, float)) for limit in (hard, soft)):
        return control.nok("time limits are seconds, as numbers")
    return control.time_limit(state, hard=hard, soft=soft, **kwargs)


def _by_a_count(command: Callable[..., Any]) -> Callable[..., Any]:
    def change(state: Any, n: Any = 1, **kwargs: Any) -> Any:
        if not isinstance(n, int) or n < 0:
            return control.nok("the number of children is a whole number, not below zero")
        return command(state, n=n, **kwargs)

    return change


def _add_consumer(state: Any, queue: Any, **kwargs: Any) -> Any:
    if not isinstance(queue, str):
        return control.nok("the name of a queue is a text")
    return control.add_consumer(state, queue, **kwargs)
