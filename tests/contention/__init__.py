"""``make contention``: many producers and workers on one queue file, and nobody is locked out.

:mod:`.run` starts them and waits until all is done; :mod:`.producer` sends, and notes how long
each ``delay()`` took.
"""
