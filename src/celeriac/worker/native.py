"""Threads of the system's own, also where gevent makes greenlets of threads.

For what must go on while the worker's loop, and with it every greenlet, does not.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any


def start_thread(run: Callable[[], None], name: str) -> None:
    """Start a thread that ends with the program."""
    if "gevent.monkey" in sys.modules:
        original("_thread", "start_new_thread")(run, ())
    else:
        threading.Thread(target=run, name=name, daemon=True).start()


def original(module: str, name: str) -> Any:
    """Return what gevent may have put something else in the place of."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return getattr(sys.modules[module], name)
    return monkey.get_original(module, name)
