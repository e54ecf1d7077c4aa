"""Celery's classes that Celeriac's derive from, generic in every supported version of Celery.

Type checkers know ``Task[P, R]`` from Celery's stubs. At run time Celery's own classes can be
subscripted from 5.7 on, and before that these stand in for them.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING

import celery
import celery.result

if TYPE_CHECKING or hasattr(celery.Task, "__class_getitem__"):
    from celery import Celery as Celery
    from celery import Task as Task
    from celery.result import AsyncResult as AsyncResult
else:

    class Celery(celery.Celery):
        __class_getitem__ = classmethod(types.GenericAlias)

    class Task(celery.Task):
        abstract = True
        __class_getitem__ = classmethod(types.GenericAlias)

    class AsyncResult(celery.result.AsyncResult):
        __class_getitem__ = classmethod(types.GenericAlias)
