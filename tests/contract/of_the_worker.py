"""A module that only workers can import."""

from __future__ import annotations


class Unheard(Exception):
    """An error that its caller does not know."""
