"""``--autoscale``: as many children as there is work for."""

from __future__ import annotations

from typing import Any

from celery.worker import autoscale


class Autoscaler(autoscale.Autoscaler):
    """Celery's autoscaler, counting what waits in the store instead of what was prefetched."""

    worker: Any

    @property
    def qty(self) -> int:
        """How many tasks run or wait, and so how many children there is work for."""
        consumer = self.worker.consumer
        queues = consumer.app.amqp.queues.consume_from
        waiting = sum(consumer.engine.queue_sizes(tuple(queues)).values())
        running = sum(activity.running for _, activity in self.pool.activities())
        return int(waiting + running)
