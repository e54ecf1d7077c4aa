"""Celeriac beside stock Celery, measured in one run: ``python -m benchmarks``.

``__main__``     the command line: rounds, shuffled, one process for each trial
``contenders``   who is measured, with which URLs and flags
``trial``        one contender measured once: enqueue, drain, rest, latency
``queues``       how a trial talks to a contender
``worker``       the worker process: started, watched, ended by its own pid
``limit``        raw ``sqlite3`` with no library around it: the least that a durable queue costs
``machine``      what the figures depend on
``report``       medians, the Markdown table, the JSON file
``apps``         the three programs, as a user would write them
``retention``    another: does the file stop growing? One million tasks under retention
``memory``       and another: does a producer or a worker? One million tasks
``publishing``   a question apart: enqueuing against that limit, in turns
``profile``      another: where the microseconds of one task go
"""
