"""Waiting by predicate: no test sleeps for a time that "should be enough"."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T],
    timeout: float = 10.0,
    *,
    interval: float = 0.01,
    message: str | Callable[[], str] | None = None,
) -> T:
    """Call ``predicate`` until it returns something true, and return that.

    :param timeout: seconds, after which the test fails.
    :param message: what was waited for; called if it can only be told then.
    """
    deadline = time.monotonic() + timeout
    while not (found := predicate()):
        if time.monotonic() > deadline:
            told = message() if callable(message) else message
            raise AssertionError(f"waited {timeout:g} s in vain" + (f" for {told}" if told else ""))
        time.sleep(interval)
    return found
