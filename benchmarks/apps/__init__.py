"""The programs that are measured: the same task, made by three factories."""
