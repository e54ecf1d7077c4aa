"""``make power``: cuts of the power, simulated, and what was confirmed looked for afterwards.

:mod:`.recording` runs a producer and a worker and records each write to the queue file and its
log, and each sync (``record.c``). :mod:`.replay` makes from the record what the disk may hold
after a cut at any moment: all that was synced, and of the rest nothing, all, or any sectors of
it. :mod:`.check` opens that with a fresh engine, and looks for what callers had been told.
"""
