"""From the worker's code to entries: the package `handler`, and the file that starts it beside its packages.

    worker/lib/handler/...      the package: its modules and its tables
    worker/lib/__main__.py      what the image's entrypoint runs

It is cut into layers of a few files each, by the order of their paths: a layer cannot be sent in part, and this way an edit sends less than
100 KB (`TOGETHER`). Which files share a layer depends on their names alone, so an edit does not move others.

Only *.py and *.json are taken, so that what a checkout has beside them (bytecode, locks, an editor's files) does not enter the bytes.
"""

from __future__ import annotations

from pathlib import Path

from images.entries import Entry, check_path, ordered, text_entry, with_parents
from images.errors import BadSource

__all__ = ["FOLDER", "HANDLER", "TOGETHER", "handler_entries", "handler_groups"]

HANDLER = Path(__file__).resolve().parent.parent / "handler"
FOLDER = "worker/lib"
"""Where the worker and all it imports are: the only folder beside the standard library that its interpreter sees."""

TOGETHER = 8
"""Files that share a layer; the worker's average is 7 KB."""

_START = b'''"""Run the worker. Python puts this file's folder on the path, and with -I -S nothing else beside its standard library."""

import runpy

runpy.run_module("handler", run_name="__main__", alter_sys=True)
'''


def handler_entries(source: Path = HANDLER) -> list[Entry]:
    """Return the files of the worker's code in the folder `source`, by their paths.

    Raises:
        BadSource: when there is no worker in it, or a file cannot be read.
        UnsafePath: for a name that may not stand in a layer.
    """
    files = [path for path in source.rglob("*") if path.suffix in (".py", ".json") and path.is_file()]
    if source / "__main__.py" not in files:
        raise BadSource(f"{source}: got no __main__.py, expected the worker's package")
    entries = [text_entry(f"{FOLDER}/__main__.py", _START)]
    for path in files:
        inside = check_path(path.relative_to(source).as_posix(), str(source))
        try:
            entries.append(text_entry(f"{FOLDER}/handler/{inside}", path.read_bytes()))
        except OSError as error:
            raise BadSource(f"{path}: cannot be read ({error.strerror or error}); was it replaced just now?") from None
    return ordered(entries, str(source))


def handler_groups(entries: list[Entry]) -> list[list[Entry]]:
    """Return the files as they share layers, each with the folders they stand in."""
    return [with_parents(entries[start : start + TOGETHER]) for start in range(0, len(entries), TOGETHER)]
