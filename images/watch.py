"""Do something now, and again after every edit of the worker, until it is interrupted."""

from __future__ import annotations

import sys
from collections.abc import Callable

from images.worker_layers import PACKAGES, TREE

__all__ = ["after_every_edit"]

_SETTLED_MS = 5
"""Milliseconds without another change after which an edit is whole: `git checkout` writes many files in a row."""

_LOOK_MS = 100


def after_every_edit(act: Callable[[], int]) -> int:
    """Call `act`, and again whenever a file of the worker has changed since that began; return its last exit code on Ctrl-C.

    When the first call fails, that is all; after a later one the next edit has another chance.
    """
    from watchfiles import watch  # the kernel tells it of edits, also of those made while `act` runs

    code = None
    try:
        for edited in watch(*(TREE / name for name in PACKAGES["cpu"]), step=_SETTLED_MS, rust_timeout=_LOOK_MS, yield_on_timeout=True):
            if not edited and code is not None:
                continue
            code = act()
            if code and not edited:
                return code
            sys.stdout.flush()
            print("waiting for the next edit of the worker; Ctrl-C ends", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        if code is None:
            raise
    return code or 0
