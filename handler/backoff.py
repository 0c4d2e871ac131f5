"""How long to wait before the next try of something that failed."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

__all__ = ["Backoff", "asked_to_wait"]

_SPREAD = 0.5
"""Pauses are this share shorter or longer by chance, so that the workers of an endpoint do not all come back at once."""


class Backoff:
    """Pauses in seconds: `first`, then twice as long each time, never over `longest`, each one spread by chance."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._next = first

    def pause(self) -> float:
        """Return the next pause."""
        pause, self._next = self._next, min(self._next * 2, self._longest)
        return pause * random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311  # nobody gains by guessing it

    def reset(self) -> None:
        """Begin with the first pause again."""
        self._next = self._first


def asked_to_wait(headers: Mapping[str, str]) -> float:
    """Return for how many seconds an answer's Retry-After asks, a number or a date (RFC 9110, 10.2.3); 0 without one that can be read."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError, IndexError, TypeError):
        return 0.0
