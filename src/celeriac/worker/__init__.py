"""The worker: Celery's own program, with our pool and our consumer.

The life of a worker: Celery's :class:`~celery.worker.WorkController` starts a pool
(:mod:`.pool`: :mod:`.prefork`, :mod:`.thread`, :mod:`.gevent`, :mod:`.solo`) and a consumer
(:mod:`.consumer`). The consumer registers the worker and starts the pool's children
(:mod:`.child`, :mod:`.spawn`). Each child claims, runs and completes by itself (:mod:`.claimant`,
:mod:`.request`, :mod:`.arguments`, :mod:`.completion`), and writes on the board (:mod:`.board`)
what it does. The parent keeps their time limits (:mod:`.fence`), hands out what waits behind a
long task (:mod:`.stuck`), looks at their memory (:mod:`.memory`), answers remote control from the
store (:mod:`.picture`, :mod:`.control`), and does its chores (:mod:`.chore`). Where there are many
threads, most of them rest (:mod:`.door`), and the worker asks for the open files that they may
need (:mod:`.files`).

When a child dies, :mod:`.redelivery` decides what becomes of what it held; :mod:`.shutdown` is the
worker's own end. What a worker does when the database refuses is in :mod:`.trouble`. A thread of
the parent notices what hangs (:mod:`.watchdog`), has it begin anew (:mod:`.restart`), and tells
over HTTP how the worker is (:mod:`.probe`).
"""

from __future__ import annotations

from typing import Any

from celery import signals
from celery.concurrency import get_implementation
from celery.exceptions import ImproperlyConfigured
from celery.utils.log import get_logger

from celeriac.brokers import worker_cautions
from celeriac.config import own_setting
from celeriac.engines import EngineConfigurationError
from celeriac.engines import is_engine_url
from celeriac.engines import open_engine

logger = get_logger(__name__)

_POOLS = {
    "celery.concurrency.prefork:TaskPool": "celeriac.worker.prefork:ProcessPool",
    "celery.concurrency.thread:TaskPool": "celeriac.worker.thread:ThreadPool",
    "celery.concurrency.gevent:TaskPool": "celeriac.worker.gevent:GeventPool",
    "celery.concurrency.solo:TaskPool": "celeriac.worker.solo:SoloPool",
}


def choose_parts(sender: Any, **kwargs: Any) -> None:
    """Give a worker whose broker is an engine our pool and consumer; leave others alone.

    A receiver of Celery's ``worker_init``, which is sent when the pool's class is known and
    nothing was made of it yet. A pool or consumer that the user chose is kept.
    """
    if not is_engine_url(sender.app.conf.broker_read_url):
        signals.worker_ready.connect(_tell_cautions, weak=False, dispatch_uid=__name__)
        return
    pool = get_implementation(sender.pool_cls)
    ours = _POOLS.get(f"{pool.__module__}:{pool.__qualname__}")
    if ours is None or sender.consumer_cls != "celery.worker.consumer:Consumer":
        return
    _check(sender.app.conf)
    if isinstance(sender.concurrency, str):
        # "auto", which Celery resolves right after this signal, by the class of its own pool. No
        # door: see WorkController.setup_instance.
        sender.pool_cls = pool
        sender._resolve_auto_concurrency()
    sender.pool_cls = get_implementation(ours)
    sender.consumer_cls = "celeriac.worker.consumer:Consumer"
    sender.autoscaler_cls = "celeriac.worker.autoscale:Autoscaler"


def _tell_cautions(sender: Any, **kwargs: Any) -> None:
    if own_setting(sender.app.conf, "worker_health_address") is not None:
        logger.warning(
            "worker_health_address is for workers of a queue file, and does nothing here. "
            "Ask this worker by: inspect ping"
        )
    if hasattr(sender.app, "flask_app"):
        for caution in worker_cautions(sender.app):
            logger.warning(caution)


def _check(conf: Any) -> None:
    """End with a sentence, rather than later with a traceback, where the worker can not work."""
    try:
        own_setting(conf, "worker_grace_period")
        open_engine(conf.broker_read_url).list_workers()
    except (EngineConfigurationError, ImproperlyConfigured) as exc:
        # Celery lets nothing else out of a signal's receiver.
        raise SystemExit(f"The worker can not start. {exc}") from None
