"""What may be seen of requests on their way, for whoever counts them. These see nothing; `metrics` has the ones that count."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["Observation", "Observer"]


class Observation:
    """One request. Who answers it fills in `path` and `status`; the proxy calls the methods, in this order."""

    def __init__(self) -> None:
        self.path = ""
        self.status = 200

    def sent(self) -> None:
        """Note that the request goes to the engine."""

    def run(self, run: bytes) -> None:
        """See whole frames of the engine's stream, before anything is changed in them."""

    def whole(self, answer: Any) -> None:
        """See a whole answer, as the engine gave it."""

    def ended(self) -> None:
        """Note that nothing more comes of the engine."""


class Observer:
    """Sees every request of one face."""

    @contextlib.contextmanager
    def request(self) -> Iterator[Observation]:
        """See one request, which the block answers."""
        yield Observation()
