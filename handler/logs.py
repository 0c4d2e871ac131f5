"""What the worker logs, in the platform's shape or for a person, and the engine's log files, which tell what its output does not.

On RunPod a line is `{"requestId": ID or null, "message": TEXT, "level": "DEBUG" | "INFO" | "WARN" | "ERROR"}`, as the lines of its own SDK
are (runpod 1.12.0, serverless/modules/rp_logger.py): the console then shows the lines of one job. `current_job` names it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path

__all__ = ["JobFormatter", "Tail", "configure", "current_job"]

current_job: ContextVar[str | None] = ContextVar("current_job", default=None)
"""The id of the job that the running task, and all tasks that it starts, work for."""

MAX_MESSAGE = 4096
"""Characters of one message on RunPod; the SDK cuts its own there, out of the middle."""

_LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR"}


def configure(level: str, *, platform: bool) -> None:
    """Log to stderr from now on: in the platform's shape, or for a person."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JobFormatter(platform=platform))
    logging.basicConfig(level=level, handlers=[handler])


class JobFormatter(logging.Formatter):
    """One line of JSON for each record, or text with the job's id where there is one."""

    def __init__(self, *, platform: bool) -> None:
        super().__init__()
        self._platform = platform

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as it is written."""
        text, job = super().format(record), current_job.get()
        if not self._platform:
            return f"{record.levelname} {record.name}: {f'job {job}: ' if job else ''}{text}"
        message = f"{record.name}: {text}"
        if len(message) > MAX_MESSAGE:
            half = MAX_MESSAGE // 2
            message = f"{message[:half]}\n... {len(message) - MAX_MESSAGE} characters left out ...\n{message[-half:]}"
        return json.dumps({"requestId": job, "message": message, "level": _LEVELS.get(record.levelname, record.levelname)})


MAX_LINE = 65536
"""Characters after which a line is cut: a progress bar may never end its line."""


class Tail:
    """Reads what is added to the files of a folder that match one of some patterns, those included that appear later."""

    def __init__(self, folder: Path, patterns: Iterable[str]) -> None:
        self._folder, self._patterns = folder, tuple(patterns)
        self._read: dict[Path, int] = {}
        self._rest: dict[Path, bytes] = {}

    def skip(self) -> None:
        """Leave out what is there already: the words of an engine that ran before explain nothing of the next."""
        for path in self._paths():
            with contextlib.suppress(OSError):
                self._read[path] = path.stat().st_size

    def lines(self, *, last: bool = False) -> list[tuple[str, str]]:
        """Return (file name, line) for every line completed since the call before; `last` gives unfinished ones too."""
        return [(path.name, line.decode("utf-8", "replace").rstrip()) for path in self._paths() for line in self._added(path, last=last)]

    def _paths(self) -> list[Path]:
        return sorted({path for pattern in self._patterns for path in self._folder.glob(pattern)})

    def _added(self, path: Path, *, last: bool) -> list[bytes]:
        try:
            with path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read.get(path, 0):  # begun anew
                    self._read[path], self._rest[path] = 0, b""
                file.seek(self._read.get(path, 0))
                added = file.read()
        except OSError:  # rotated away between listing and opening
            return []
        self._read[path] = self._read.get(path, 0) + len(added)
        *lines, rest = (self._rest.get(path, b"") + added).split(b"\n")
        if rest and (last or len(rest) > MAX_LINE):
            lines, rest = [*lines, rest], b""
        self._rest[path] = rest
        return lines
