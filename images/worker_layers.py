"""The worker's code as entries: its packages, and the file that starts it.

    worker/lib/handler/...      the worker: its modules and its tables
    worker/lib/checkpoint/...   what finds and downloads weights
    worker/lib/cpu_engine/...   the engine of the image without a GPU, and of no other image
    worker/lib/__main__.py      what the image's entrypoint runs

The files are cut into layers of eight, by the order of their paths: a layer is sent as a whole, so an edit sends less than 100 KB. Which
files share a layer depends on their names alone, so an edit does not move others.

Only *.py and *.json are taken, so that other files of a checkout (bytecode, locks, an editor's files) do not enter the image. A symbolic
link is refused: its target may be outside the tree, such as a file with a secret.
"""

from __future__ import annotations

from pathlib import Path

from images.build_errors import BadSource, UnsafePath
from images.entries import LayerEntry, check_path, data_entry, ordered, with_parents

__all__ = ["FOLDER", "PACKAGES", "RESERVED", "TOGETHER", "TREE", "worker_entries", "worker_groups"]

TREE = Path(__file__).resolve().parent.parent
FOLDER = "worker/lib"
"""The folder of the worker and all it imports: beside it, the worker's interpreter sees the standard library only."""

PACKAGES = {"fastdeploy": ("checkpoint", "handler"), "cpu": ("checkpoint", "cpu_engine", "handler")}
"""The packages of an image's worker, by its engine."""

RESERVED = ("__main__.py", "checkpoint", "cpu_engine", "handler")
"""Names in `FOLDER` that no wheel may have."""

TOGETHER = 7
"""Files that share a layer; the average is 7 KB."""

_START = b'''"""Run the worker. Python puts this file's folder on the path, and with -I -S nothing else beside its standard library."""

import runpy

runpy.run_module("handler", run_name="__main__", alter_sys=True)
'''


def worker_entries(engine: str, tree: Path = TREE) -> list[LayerEntry]:
    """Return the files of the worker's packages in the folder `tree`, by their paths.

    Raises:
        BadSource: when there is no worker in it, or a file cannot be read.
        UnsafePath: for a symbolic link, or a name that may not be in a layer.
    """
    if not (tree / "handler" / "__main__.py").is_file():
        raise BadSource(f"{tree / 'handler'}: got no __main__.py, expected the worker's package")
    entries = [data_entry(f"{FOLDER}/__main__.py", _START)]
    files = (path for package in PACKAGES[engine] for path in [tree / package, *(tree / package).rglob("*")])
    for path in files:
        if path.is_symlink() and path.exists():  # a link without a target is an editor's lock on a file
            raise UnsafePath(f"{path}: a symbolic link, expected files and folders: put what it points to in its place")
        if path.suffix not in (".py", ".json") or not path.is_file():
            continue
        inside = check_path(path.relative_to(tree).as_posix(), str(tree))
        try:
            entries.append(data_entry(f"{FOLDER}/{inside}", path.read_bytes()))
        except OSError as error:
            raise BadSource(f"{path}: cannot be read ({error.strerror or error}); was it replaced just now?") from None
    return ordered(entries, str(tree))


def worker_groups(entries: list[LayerEntry]) -> list[list[LayerEntry]]:
    """Return the files by layer, with their folders."""
    return [with_parents(entries[start : start + TOGETHER]) for start in range(0, len(entries), TOGETHER)]
