"""End a worker that is asked to leave before it serves: the engine, what it leaves, and the process.

A signal handler must not raise here: an exception in the wrong moment leaves a lock held, so that the way out hangs, or is dropped by
Python. The handler only notes the wish and writes into a pipe; a thread does the rest, while the main thread does whatever it does. Once
there is a face that serves, it has handlers of its own, which let running work finish; it looks at `Lifecycle.asked_to_leave` first.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import NoReturn

from handler.early import Waiting
from handler.launch import Launcher
from handler.lifecycle import Event, Lifecycle

__all__ = ["INTERRUPTED", "Departure"]

INTERRUPTED = 130
"""The exit code, as after Ctrl-C."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Departure:
    """Listens for TERM and INT from when it is made; `waiting` and `launcher` are what there is to end."""

    def __init__(self, lifecycle: Lifecycle, waiting: Waiting | None) -> None:
        self._lifecycle, self.waiting = lifecycle, waiting
        self.launcher: Launcher | None = None
        self._wishes, self._wish = os.pipe()
        threading.Thread(target=self._wait, name="departure", daemon=True).start()
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def give_way(self) -> None:
        """Let the process end with the exit code that it has, unless it was asked to leave before; then this does not return."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # Python ends without its handlers, and would die of one more
        if self._lifecycle.asked_to_leave:
            threading.Event().wait()

    def _note(self, *_: object) -> None:
        self._lifecycle.asked_to_leave = True
        os.write(self._wish, b"\n")

    def _wait(self) -> NoReturn:
        os.read(self._wishes, 1)
        try:
            self._lifecycle.report(Event.TERM)
            if self.waiting:
                self.waiting.dismiss()
            if self.launcher and self.launcher.last:
                self.launcher.last.end()
        finally:
            os._exit(INTERRUPTED)
