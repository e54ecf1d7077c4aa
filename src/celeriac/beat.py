"""Celery's beat with its state in the queue file, next to the messages that it sends.

:class:`Scheduler` is Celery's own but for one thing: when an entry is due, its message and the
time of its run are recorded in one transaction, and only if no other beat recorded that run
before. So any number of beats may run, and what is due is sent once; one that dies neither takes
a run with it nor leaves one to be repeated. :mod:`celeriac.commands` chooses it where the broker
is an engine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from datetime import datetime
from functools import cached_property
from typing import Any

from celery import beat
from celery.exceptions import ImproperlyConfigured
from celery.schedules import schedule
from celery.utils.time import maybe_make_aware

from .collect import collecting
from .collect import Collector
from .engines import Engine
from .engines import EngineError
from .engines import is_engine_url
from .engines import open_engine
from .engines.base import Entry

logger = logging.getLogger("celery.beat")

#: Seconds until a run that could not be recorded is tried again.
RETRY = 1.0
#: A clock that moves by so much against the monotonic one was set (seconds).
SET = 1.0
#: A last run that is so far in the future was recorded by a clock that was wrong (seconds).
WRONG = 86400.0


class Scheduler(beat.Scheduler):
    """The schedule of one Celery app, its last runs kept by the engine that is the broker."""

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        #: What the engine said of each entry when it was last asked.
        self._stored: dict[str, Entry] = {}
        #: How far the wall clock is ahead of the monotonic one.
        self._ahead = _ahead()
        super().__init__(app, *args, **kwargs)

    @cached_property
    def engine(self) -> Engine:
        """Where the schedule is kept.

        :raises ImproperlyConfigured: when the broker is none of ours.
        """
        url = self.app.conf.broker_write_url
        if not is_engine_url(url):
            raise ImproperlyConfigured(
                "celeriac.beat:Scheduler keeps the schedule in the broker's queue file, and the "
                f"broker is {self.app.connection_for_write().as_uri()}. Leave out -S and "
                "beat_scheduler, or name another scheduler."
            )
        return open_engine(url)

    @property
    def info(self) -> str:
        """A line of beat's banner."""
        return f"    . db -> {self.engine.url}"

    def setup_schedule(self) -> None:
        """Take the entries from the configuration, and their last runs from the engine."""
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)
        starts = {name: _instant(entry.last_run_at) for name, entry in self.schedule.items()}
        self._adopt(self.engine.save_entries(self._name, starts).values())

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """Send what is due; return for how long to sleep (seconds)."""
        self._follow_clock()
        try:
            return super().tick(*args, **kwargs)
        except EngineError as exc:
            logger.error("beat: %s Trying again in %g seconds.", exc, RETRY)
            return RETRY

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send a due entry's task, and record its run with it, unless another beat did.

        :raises EngineError: when nothing could be recorded; the entry stays due.
        """
        try:
            if self._is_behind(entry):
                logger.debug("beat: Another beat sent %s.", entry.name)
                self._adopt(self._read(entry))
            elif not self._run(entry, producer):
                logger.info("beat: Another beat sent %s at the same moment.", entry.name)
                self._adopt(self._read(entry))
        except EngineError:
            self.schedule[entry.name] = entry
            self._heap = None
            raise

    @property
    def _name(self) -> str:
        # Several apps may share a file, each with a schedule of its own.
        return self.app.main or ""

    def _run(self, entry: Any, producer: Any) -> bool:
        following: Any = self.schedule[entry.name]
        now = _instant(following.last_run_at)
        with collecting(Collector(self.engine, closing=True)) as collected:
            super().apply_entry(entry, producer=producer)
        before = self._before(entry)
        if not self.engine.record_run(before, now, collected.messages):
            return False
        self._stored[entry.name] = before._replace(last_run_at=now, runs=before.runs + 1)
        if collected.results:  # Of tasks that run eagerly, in this process.
            self.engine.store_results(collected.results)
        return True

    def _is_behind(self, entry: Any) -> bool:
        """Say whether another beat recorded a run since this one looked."""
        return any(stored != self._before(entry) for stored in self._read(entry))

    def _before(self, entry: Any) -> Entry:
        fresh = Entry(self._name, entry.name, _instant(entry.last_run_at), entry.total_run_count)
        return self._stored.get(entry.name, fresh)

    def _read(self, entry: Any) -> Iterable[Entry]:
        return self.engine.get_entries(self._name, [entry.name]).values()

    def _follow_clock(self) -> None:
        """Draw up anew what is due when, if somebody has set the clock."""
        before, self._ahead = self._ahead, _ahead()
        if abs(self._ahead - before) > SET:
            self._adopt(self._stored.values())
            self._heap = None

    def _adopt(self, entries: Iterable[Entry]) -> None:
        for stored in list(entries):
            entry = self.schedule[stored.name]
            # A clock that was set back must not hold an interval up; a time of the day that
            # comes a second time is not to run twice, unless the clock had been quite wrong.
            slack = 0.0 if isinstance(entry.schedule, schedule) else WRONG
            now = time.time()
            last = now if stored.last_run_at > now + slack else stored.last_run_at
            entry.last_run_at = datetime.fromtimestamp(last, self.app.timezone)
            entry.total_run_count = stored.runs
            self._stored[stored.name] = stored


class Service(beat.Service):
    """Celery's beat with this :class:`Scheduler`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "scheduler_cls": Scheduler})


def _ahead() -> float:
    return time.time() - time.monotonic()


def _instant(moment: Any) -> float:
    return float(maybe_make_aware(moment).timestamp())
