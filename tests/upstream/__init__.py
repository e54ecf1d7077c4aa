"""``make upstream``: Celery's own integration suite on Redis with Celery's worker, and on SQLite
with ours.

:mod:`.__main__` fetches the suite and makes its environment, :mod:`.column` runs it on one broker,
:mod:`.report` lays the two side by side. :mod:`.plugin` and :mod:`.application` are what runs
inside; :mod:`.known` tells what is special about which test.
"""
