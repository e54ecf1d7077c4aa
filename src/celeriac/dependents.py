"""What can never run because something before it failed.

Signatures come in, as they stand in a message: dictionaries, with the ids that Celery gave them
when the canvas was sent. Every task in them goes out, with its id and whether a chord counts it.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from celery.utils import uuid
from kombu.utils.functional import maybe_list


class Dependent(NamedTuple):
    """A task that will not run, or a group of which no task will."""

    task_id: str
    signature: Mapping[str, Any]
    #: Whether it is a member of a chord that was sent, and waits for it.
    counts: bool


def find_dependents(signatures: Iterable[Mapping[str, Any]]) -> Iterator[Dependent]:
    """Yield all tasks and groups in the signatures that have an id or that a chord counts."""
    # A stack instead of recursion: chords nest as deep as a chain of groups is long.
    stack = [(signature, True) for signature in signatures]
    while stack:
        signature, counts = stack.pop()
        options = signature["options"]
        later = [*(options.get("chain") or ()), *(maybe_list(options.get("link")) or ())]
        stack += [*_parts(signature, counts), *((each, counts) for each in later)]
        # A chord counts the tasks of a group that is its member, not the group.
        is_task = signature.get("subtask_type") not in ("chain", "group", "chord")
        in_chord = bool(options.get("chord") and options.get("group_id"))
        is_counted = counts and is_task and in_chord
        task_id = options.get("task_id") or (uuid() if is_counted else None)
        if task_id:
            yield Dependent(task_id, signature, is_counted)


def _parts(signature: Mapping[str, Any], counts: bool) -> Iterator[tuple[Mapping[str, Any], bool]]:
    kind, kwargs = signature.get("subtask_type"), signature["kwargs"]
    if kind in ("chain", "group"):
        yield from ((task, counts) for task in kwargs["tasks"])
    elif kind == "chord":
        header, body = kwargs["header"], kwargs.get("body")
        # The header's tasks are counted by this chord, which does not exist yet.
        tasks = [header] if isinstance(header, Mapping) else header
        yield from ((task, False) for task in tasks)
        if body:
            yield body, counts


def is_group(signature: Mapping[str, Any]) -> bool:
    """Say whether the signature is a group."""
    return signature.get("subtask_type") == "group"


def result_id(signature: Mapping[str, Any]) -> str | None:
    """Return the id of what ``apply_async()`` of the signature returns."""
    while signature.get("subtask_type") == "chord" and signature["kwargs"].get("body"):
        signature = signature["kwargs"]["body"]
    task_id: str | None = signature["options"].get("task_id")
    return task_id


def errbacks(signature: Mapping[str, Any]) -> list[Any]:
    """Return the error callbacks to call when the signature, a chord's callback, never begins.

    They are its own, and those of what it would begin with: the first task of a chain, each of
    a group. Of a chord it is the callback that fails.
    """
    found = list(maybe_list(signature["options"].get("link_error")) or ())
    kind, kwargs = signature.get("subtask_type"), signature["kwargs"]
    first = {"group": kwargs.get("tasks"), "chord": [kwargs.get("body")]}.get(kind or "", [])
    if kind == "chain":
        tasks = kwargs["tasks"]
        # A group and the step after it are a chord.
        first = tasks[1:2] if tasks and is_group(tasks[0]) and len(tasks) > 1 else tasks[:1]
    for each in filter(None, first or ()):
        found += [errback for errback in errbacks(each) if errback not in found]
    return found
