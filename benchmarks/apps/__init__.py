"""The programs that are measured: the same task, as a user of each library writes it."""
