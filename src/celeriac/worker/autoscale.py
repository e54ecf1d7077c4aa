"""``--autoscale``: as many children as there is work for."""

from __future__ import annotations

from typing import Any

from celery.utils.log import get_logger
from celery.worker import autoscale

from celeriac.engines import EngineError

from .trouble import tell

logger = get_logger(__name__)


class Autoscaler(autoscale.Autoscaler):
    """Celery's autoscaler, counting what waits in the store instead of what was prefetched."""

    worker: Any

    @property
    def qty(self) -> int:
        """How many tasks run or wait, and so how many children there is work for."""
        consumer = getattr(self.worker, "consumer", None)
        if consumer is None:  # Celery starts this thread first.
            return int(self.processes)
        queues = consumer.app.amqp.queues.consume_from
        try:
            waiting = sum(consumer.engine.queue_sizes(tuple(queues)).values())
        except EngineError as exc:
            # Raised here, it would end the whole worker.
            tell(logger, "%s", exc)
            return int(self.processes)
        return int(waiting + self.pool.count_running())
