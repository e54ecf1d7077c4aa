"""``make faults``: workers and producers killed at random, and what was promised checked.

:mod:`.program` is what runs, and writes a journal of what it did; :mod:`.producer` sends and
notes what was confirmed. :mod:`.arena` keeps them running, on a :mod:`.disk` and by a
:mod:`.clock` of their own; :mod:`.disturb` disturbs them by a seeded schedule. :mod:`.story` reads
what is left, :mod:`.check` compares it with the promises, and :mod:`.report` prints the table.
"""
