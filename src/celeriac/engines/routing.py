"""AMQP's rules for the way from an exchange into queues."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache


def unique(queues: Iterable[str]) -> tuple[str, ...]:
    """Return the queues in order, each once: one that is bound twice gets a message once."""
    return tuple(dict.fromkeys(queues))


@lru_cache(maxsize=4096)
def topic_matches(pattern: str, routing_key: str) -> bool:
    """Match as AMQP does: ``*`` is one word, ``#`` any number of words, also none."""
    return _words_match(pattern.split("."), routing_key.split("."))


def _words_match(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return any(_words_match(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and first in ("*", words[0]) and _words_match(rest, words[1:])
