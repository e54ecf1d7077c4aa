"""What can go wrong at run time.

Everything that users catch by name is here or Celery's own: an enqueue that fails raises
:exc:`kombu.exceptions.OperationalError`, whatever the broker, and a result that does not come
raises :exc:`celery.exceptions.TimeoutError`.

.. code-block:: text

    Exception
    ├── EngineError                     the database refused, nothing was done
    │   └── EngineConfigurationError    and it will go on refusing: no retry helps
    │       └── EngineDamagedError      what it has stored can not be read any more
    └── TaskFailure                     a task stored FAILURE by itself, with details
    UserWarning
    ├── ConfigurationWarning            a setting will not do what it seems to
    └── WaitingWarning                  nothing can run the task that is waited for
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "EngineError",
    "EngineConfigurationError",
    "EngineDamagedError",
    "TaskFailure",
    "ConfigurationWarning",
    "WaitingWarning",
]


class EngineError(Exception):
    """The database refused an operation; nothing of it was done.

    The message says what to do next. The transport lists this class among kombu's connection
    errors, so that Celery wraps it in :exc:`kombu.exceptions.OperationalError` and retries as
    its settings say.
    """


class EngineConfigurationError(EngineError):
    """The engine can not be opened like this: no retry will help."""


class EngineDamagedError(EngineConfigurationError):
    """What is stored was damaged; writing to it could damage more."""


class TaskFailure(Exception):
    """A task set its own state to ``FAILURE``, with data instead of an exception.

    ``update_state(state="FAILURE", meta={...})`` is read back as this, raised by ``get()``.
    """

    @property
    def detail(self) -> Any:
        """What was given as ``meta``."""
        return self.args[0] if self.args else None


class ConfigurationWarning(UserWarning):
    """A setting is unknown, is given twice with different values, or is needed by a call."""


class WaitingWarning(UserWarning):
    """Someone waits for a result that can not come as things are. The text says what mends it."""
