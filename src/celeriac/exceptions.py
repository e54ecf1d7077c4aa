"""What can go wrong at run time.

Everything that users catch by name is here or Celery's own: an enqueue that fails raises
:exc:`kombu.exceptions.OperationalError`, whatever the broker, and a result that does not come
raises :exc:`celery.exceptions.TimeoutError`.

.. code-block:: text

    Exception
    └── EngineError                     the database refused, nothing was done
        └── EngineConfigurationError    and it will go on refusing: no retry helps
"""

from __future__ import annotations

__all__ = ["EngineError", "EngineConfigurationError"]


class EngineError(Exception):
    """The database refused an operation; nothing of it was done.

    The message says what to do next. The transport lists this class among kombu's connection
    errors, so that Celery wraps it in :exc:`kombu.exceptions.OperationalError` and retries as
    its settings say.
    """


class EngineConfigurationError(EngineError):
    """The engine can not be opened like this: no retry will help."""
