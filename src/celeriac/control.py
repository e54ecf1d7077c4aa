"""``celery.control``: what callers tell workers, where it must outlast the workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from billiard.common import TERM_SIGNAME
from celery.app import control
from celery.utils.functional import maybe_list

from .collect import collecting
from .collect import Collector
from .engines import Engine
from .engines import is_engine_url
from .engines import open_engine
from .withdrawal import revoke
from .withdrawal import stamps
from .withdrawal import withdraw


class Control(control.Control):
    """Celery's remote control, with revocations that hold when no worker hears them."""

    def revoke(
        self,
        task_id: Any,
        destination: Sequence[str] | None = None,
        terminate: bool = False,
        signal: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Call a task off, or several.

        With an engine as the broker the revocation is committed when this returns: a task that
        has not started will not, whichever worker comes to it, and whenever. It is ``REVOKED``.
        """
        url = self.app.conf.broker_write_url
        if is_engine_url(url):
            engine = open_engine(url)
            revoke(engine, task_id, terminate, signal)
            self._call_off(engine, list(map(str, maybe_list(task_id) or ())), destination)
        signal = signal or TERM_SIGNAME
        return super().revoke(task_id, destination, terminate, signal, **kwargs)

    def revoke_by_stamped_headers(self, headers: Any, *args: Any, **kwargs: Any) -> Any:
        """Call off all tasks that are stamped like this, also those to come.

        With an engine as the broker that is committed when this returns.
        """
        url = self.app.conf.broker_write_url
        if is_engine_url(url):
            open_engine(url).revoke(stamps=stamps(headers))
        return super().revoke_by_stamped_headers(headers, *args, **kwargs)

    def _call_off(
        self, engine: Engine, task_ids: Sequence[str], destination: Sequence[str] | None
    ) -> None:
        if destination is not None or not self._is_heard(engine):
            withdraw(self.app, engine, task_ids)
            return
        # A worker withdraws them, as it has more to tell of it; the caller need not wait for it.
        waiting = engine.list_tasks(task_ids=task_ids, limit=len(task_ids))
        with collecting(Collector(engine, closing=True)) as collector:
            for info in waiting:
                if info.status not in ("claimed", "dead"):
                    self.app.backend.mark_as_revoked(info.task_id, reason="revoked")
        engine.store_results(collector.results)

    def _is_heard(self, engine: Engine) -> bool:
        """Say whether a worker lives that listens to remote control."""
        suffix = f".{self.app.conf.control_exchange}.pidbox"
        return any(
            worker.alive and any(queue.endswith(suffix) for queue in worker.queues)
            for worker in engine.list_workers()
        )
