"""``make faults``: workers and producers killed at random, and what was promised checked.

:mod:`.program` is what runs, and writes a journal of what it did; :mod:`.producer` sends and
notes what was confirmed. :mod:`.arena` keeps them running, :mod:`.faults` disturbs them by a
seeded schedule, :mod:`.check` compares journal and store with the promises, and :mod:`.report`
prints the table.
"""
