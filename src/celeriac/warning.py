"""Warnings that point at the program which caused them, not at Celery or at us."""

from __future__ import annotations

import sys
import warnings

from .exceptions import ConfigurationWarning


def warn(message: str) -> None:
    """Give a :exc:`.ConfigurationWarning` at the first caller that is neither ours nor Celery's."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, ConfigurationWarning, stacklevel=level)


def _is_inside(module: str) -> bool:
    return module.partition(".")[0] in ("celeriac", "celery")
