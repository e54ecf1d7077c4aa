"""``celery.control``: what callers tell workers, where it must outlast the workers."""

from __future__ import annotations

from typing import Any

from celery.app import control
from celery.utils.functional import maybe_list

from .engines import is_engine_url
from .engines import open_engine


class Control(control.Control):
    """Celery's remote control, with revocations that hold when no worker hears them."""

    def revoke(self, task_id: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a task off, or several.

        With an engine as the broker the revocation is committed when this returns: a task that
        has not started will not, whichever worker comes to it, and whenever.
        """
        url = self.app.conf.broker_write_url
        if is_engine_url(url):
            open_engine(url).revoke([str(each) for each in maybe_list(task_id) or ()])
        return super().revoke(task_id, *args, **kwargs)
