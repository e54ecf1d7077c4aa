"""The place that a signature takes in a canvas, where Celery loses it.

What replaces a task must end under the task's id, and count in its chord; and so must the tasks
of a group that comes after others in a chord's header. A signature comes in and goes out so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery import maybe_signature


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
    if not request.chord or signature.get("subtask_type") not in ("chord", "chain"):
        return
    for last in _last(signature):
        last["options"].update(
            chord=request.chord, group_id=request.group, group_index=request.group_index
        )


def count_outside(signature: Any) -> None:
    """Have a group that is sent within a chord's header count in that chord.

    Its own tasks do. But a chord among them is given the group's own id, and its callback would
    count in a chord that nobody waits for. So the group takes the id of the header.
    """
    while isinstance(signature, dict) and signature.get("subtask_type") == "chain":
        tasks = signature["kwargs"]["tasks"]
        signature = tasks[0] if len(tasks) == 1 else None
    if not isinstance(signature, dict) or signature.get("subtask_type") != "group":
        return
    if signature["options"].get("chord"):
        counted = next((last["options"].get("group_id") for last in _last(signature)), None)
        if counted:
            signature["options"].update(task_id=counted, group_id=counted)


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
