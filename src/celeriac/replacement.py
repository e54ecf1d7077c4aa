"""The place that a signature takes in a canvas, where Celery loses it.

What replaces a task must end under the task's id, and count in its chord; and so must the tasks
of a group that comes after others in a chord's header. A signature comes in and goes out so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import maybe_signature

#: The chord in which the group that is being sent counts.
_counted_in: ContextVar[str | None] = ContextVar("celeriac_counted_in", default=None)


def with_one_result(signature: Any, app: Any) -> Any:
    """Return the signature with one result in the end, if it ends in a group.

    Celery does so for a group, and for a chain that ends in one. After a chord whose callback is
    a group nothing would end under the id of the replaced task.
    """
    last = signature
    while last.get("subtask_type") in ("chain", "chord"):
        is_chain = last["subtask_type"] == "chain"
        last = last["kwargs"]["tasks"][-1] if is_chain else last["kwargs"]["body"]
    if last is signature or last.get("subtask_type") != "group":
        return signature
    return maybe_signature(signature, app=app) | app.tasks["celery.accumulate"].s(index=0)


def take_place(signature: Any, request: Any) -> None:
    """Have the last task of a chord count in the chord that the replaced one is a member of.

    Celery tells so to the signature as a whole. On its way through a chord to the end of the
    callback the name of the header gets in between.
    """
    _leave_index_to_last(signature)
    if not request.chord or signature.get("subtask_type") not in ("chord", "chain"):
        return
    for last in _last(signature):
        last["options"].update(
            chord=request.chord, group_id=request.group, group_index=request.group_index
        )


def _leave_index_to_last(signature: Any) -> None:
    """Take the replaced task's index in its group off the chords that replace it.

    Before 5.7 Celery gives it to each task of their headers, too, whose results then come in the
    order in which they end.
    """
    while signature.get("subtask_type") in ("chain", "chord"):
        if signature["subtask_type"] == "chain":
            signature = signature["kwargs"]["tasks"][-1]
        else:
            signature["options"].pop("group_index", None)
            signature = signature["kwargs"]["body"]


@contextmanager
def counting_outside(signature: Any) -> Iterator[None]:
    """Have a group that is sent in this block, within a chord's header, count in that chord.

    Its own tasks do. But a chord among them is given the group's own id, and its callback would
    count in a chord that nobody waits for. So the group takes the id of the header.
    """
    while isinstance(signature, dict) and signature.get("subtask_type") == "chain":
        tasks = signature["kwargs"]["tasks"]
        signature = tasks[0] if len(tasks) == 1 else None
    counted = None
    if isinstance(signature, dict) and signature.get("subtask_type") == "group":
        if signature["options"].get("chord"):
            counted = next((last["options"].get("group_id") for last in _last(signature)), None)
        if counted:
            signature["options"].update(task_id=counted, group_id=counted)
    token = _counted_in.set(counted)
    try:
        yield
    finally:
        _counted_in.reset(token)


def is_size_of_part(group_id: str) -> bool:
    """Say whether the size that Celery tells of a chord is that of a group within its header.

    It would be taken for the chord's own if it came first, while the header is still being sent.
    """
    return group_id == _counted_in.get()


def _last(signature: Any) -> Iterator[Any]:
    kind, kwargs = signature.get("subtask_type"), signature["kwargs"]
    if kind == "chord":
        yield from _last(kwargs["body"])
    elif kind == "chain":
        yield from _last(kwargs["tasks"][-1])
    elif kind == "group":
        for task in kwargs["tasks"]:
            yield from _last(task)
    else:
        yield signature
