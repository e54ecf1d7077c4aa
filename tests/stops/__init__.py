"""``make stops``: workers stopped under load as a container is, and what was promised checked.

What runs, what sends, the journal and the promises are those of :mod:`faults`. :mod:`.producer`
says what is sent, :mod:`.run` stops one worker after the other, and :mod:`.report` prints the
table.
"""
