"""From the worker's code to entries: its packages, and the file that starts it beside theirs.

    worker/lib/handler/...      the worker: its modules and its tables
    worker/lib/checkpoint/...   what it needs of a checkpoint
    worker/lib/cpu_engine/...   the engine of the image without a GPU, and of no other
    worker/lib/__main__.py      what the image's entrypoint runs

It is cut into layers of a few files each, by the order of their paths: a layer cannot be sent in part, and this way an edit sends less than
100 KB (`TOGETHER`). Which files share a layer depends on their names alone, so an edit does not move others.

Only *.py and *.json are taken, so that what a checkout has beside them (bytecode, locks, an editor's files) does not enter the bytes.
"""

from __future__ import annotations

from pathlib import Path

from images.build_errors import BadSource
from images.entries import Entry, check_path, ordered, text_entry, with_parents

__all__ = ["FOLDER", "PACKAGES", "RESERVED", "TOGETHER", "TREE", "worker_entries", "worker_groups"]

TREE = Path(__file__).resolve().parent.parent
FOLDER = "worker/lib"
"""Where the worker and all it imports are: the only folder beside the standard library that its interpreter sees."""

PACKAGES = {"fastdeploy": ("checkpoint", "handler"), "cpu": ("checkpoint", "cpu_engine", "handler")}
"""The packages of an image's worker, by its engine."""

RESERVED = ("__main__.py", "checkpoint", "cpu_engine", "handler")
"""Names in `FOLDER` that no wheel may have."""

TOGETHER = 8
"""Files that share a layer; the worker's average is 7 KB."""

_START = b'''"""Run the worker. Python puts this file's folder on the path, and with -I -S nothing else beside its standard library."""

import runpy

runpy.run_module("handler", run_name="__main__", alter_sys=True)
'''


def worker_entries(engine: str, tree: Path = TREE) -> list[Entry]:
    """Return the files of the worker's packages in the folder `tree`, by their paths.

    Raises:
        BadSource: when there is no worker in it, or a file cannot be read.
        UnsafePath: for a name that may not stand in a layer.
    """
    if not (tree / "handler" / "__main__.py").is_file():
        raise BadSource(f"{tree / 'handler'}: got no __main__.py, expected the worker's package")
    entries = [text_entry(f"{FOLDER}/__main__.py", _START)]
    files = (path for package in PACKAGES[engine] for path in (tree / package).rglob("*"))
    for path in files:
        if path.suffix not in (".py", ".json") or not path.is_file():
            continue
        inside = check_path(path.relative_to(tree).as_posix(), str(tree))
        try:
            entries.append(text_entry(f"{FOLDER}/{inside}", path.read_bytes()))
        except OSError as error:
            raise BadSource(f"{path}: cannot be read ({error.strerror or error}); was it replaced just now?") from None
    return ordered(entries, str(tree))


def worker_groups(entries: list[Entry]) -> list[list[Entry]]:
    """Return the files as they share layers, each with the folders they stand in."""
    return [with_parents(entries[start : start + TOGETHER]) for start in range(0, len(entries), TOGETHER)]
