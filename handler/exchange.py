"""How a request is put to an engine, and how its answer is read back.

An engine makes one `Exchange` of each request. This one is for an engine that needs no help: what goes in and out is left as it is.
"""

from __future__ import annotations

from typing import Any

from handler.job import Request

__all__ = ["Exchange"]


class Exchange:
    """One request on its way there, and its answer on its way back.

    `sent` may ask for a stream where the caller did not: then `collect` takes the frames, and `collected` gives the whole answer.
    """

    def __init__(self, request: Request) -> None:
        self.sent = request

    def run(self, run: bytes) -> bytes:
        """Return what the caller gets of the next whole frames of a stream that the caller asked for; most often just these."""
        return run

    def whole(self, answer: Any) -> Any:
        """Return what the caller gets of a whole answer."""
        return answer

    def collect(self, run: bytes) -> None:
        """Take the next whole frames of a stream that the caller did not ask for."""
        raise NotImplementedError

    def collected(self) -> Any:
        """Return the whole answer that the collected frames make; call it after the last of them."""
        raise NotImplementedError

    def failed(self, error: BaseException) -> BaseException:
        """Return what the caller gets of an error; most often just this."""
        return error
