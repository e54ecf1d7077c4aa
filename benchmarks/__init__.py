"""Celeriac beside its peers, measured in one run: ``python -m benchmarks``.

``__main__``     the command line: rounds, shuffled, one process for each trial
``contenders``   who is measured, with which URLs and flags; ``apps`` are their programs
``queues``       how a producer talks to each of them
``servers``      Redis, RabbitMQ and PostgreSQL: are they there, what do they cost
``trial``        one workload of one contender; ``stage`` is what it plays on
``workloads``    what is measured: enqueue, drain, mix, latency, rest, backlog, stored
``worker``       the worker processes: started, watched, ended by their own pids
``producer``     processes that enqueue while the workers work
``limit``        raw ``sqlite3`` with no library around it: the least that a durable queue costs
``machine``      what the figures depend on
``run``          all that one run found, kept as JSON
``report``       medians, the Markdown tables; ``plot`` draws the bars
``publishing``   a question apart: enqueuing against that limit, in turns
``profile``      another: where the microseconds of one task go
``growth``       another: what one step costs in a file of ever more messages and results
``retention``    and another: does the file stop growing? One million tasks under retention
``memory``       and another: does a producer or a worker? One million tasks
"""
