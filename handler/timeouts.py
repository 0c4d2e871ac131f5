"""A bound in time that loses no cancellation.

`asyncio.wait_for` of Python 3.10 and 3.11 gives the result, and drops the cancellation, when both come in one step of the loop: who repeats
until he is cancelled then goes on for ever. A law in tests/test_architecture.py keeps it out of the worker.
"""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

__all__ = ["timeout"]
