"""Background tasks for Flask, with Celery's own API and no server to run.

:func:`make_celery` gives a Flask app its Celery app; :class:`Celeriac` is the extension behind
it, for application factories. Everything else is Celery.
"""

# The map of the package, from what users meet down to the database:
#
#   extension.py    Celeriac, make_celery: one Celery app per Flask app
#   cli.py          `flask celery …`: every command of `celery …`, for application factories
#   commands.py     what `celery …` learns from us
#   dead_commands.py  one of these: `celery dead`
#   command.py      what all of these have in common
#   flower.py       Flower's broker page, for an engine
#   entry.py        how a program that never imports celeriac finds all this
#   task.py         the Task base class: delay() and apply_async() start here
#   result.py       what they return, which can explain itself
#   config.py       Flask's config → Celery's settings
#   context.py      the app context around a whole task
#   logs.py         whose logging a worker uses, and which task wrote a record
#   coroutines.py   `async def` tasks
#   greenlets.py    the same with gevent
#   template.py     the messages of plain calls, made once and filled in
#   publish.py      the short way from apply_async() to the queue
#   control.py      revocations that outlast the workers
#   withdrawal.py   what was called off or expired, taken out of its queue
#   transport.py    the long way: a kombu transport over an engine
#   qos.py          its messages, until they are acknowledged
#   backend.py      the result backend over an engine
#   brokers.py      what Redis and RabbitMQ take otherwise: translated, or warned of
#   canvas.py       chords, and what follows when a task of a canvas fails
#   dependents.py   what can never run because something before it failed
#   beat.py         schedules, kept by an engine
#   redis.py        Celery's Redis result backend, that keeps no sender waiting
#   replacement.py  the place of a signature in a canvas, where Celery loses it
#   worker/         claim, run, complete; what happens when a worker dies
#   explain.py      why a task is not running, and what mends it
#   aside.py        why a message is set aside instead of run again
#   dead.py         dead letters: those messages, listed and run again
#   health.py       how workers and queues are
#   collect.py      what a finishing task stores and sends, gathered into one commit
#   stopping.py     whether the worker that runs a task was told to end
#   envelope.py     Celery's message protocol, as an engine stores it
#   success.py      what is stored of a success, written by a short way
#   originals.py    whether a short way may be taken
#   stack.py        the requests of a task, one on top of the other
#   stock.py        the classes of Celery that ours derive from, in every version
#   engines/        the seam (base.py), and one database behind it per module
#   warning.py      who a warning is for
#   exceptions.py   what can go wrong
#
# A task's life reads in that order: task → template → publish → engines → worker → backend.

from __future__ import annotations

import importlib
from typing import Any
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .extension import Celeriac as Celeriac
    from .extension import make_celery as make_celery

__all__ = ["Celeriac", "make_celery"]

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    # kombu imports entry.py, and with it this module, while Celery itself is half imported:
    # importing the extension here and now would go round in a circle.
    if name in __all__:
        return getattr(importlib.import_module(".extension", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
