"""Fetch all inputs of an image into the cache: pin what the lock lacks, then download what the cache lacks.

With locked=yes nothing is pinned: an input that the lock lacks is an error, as continuous integration and a release want it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from checkpoint.progress import size_text
from images.arguments import Command, Key
from images.build_errors import UnknownChoice, Unlocked, Unreachable
from images.cache import Cache
from images.context import BUILD_KEYS, Context, Tell, say
from images.digest import Digest, file_digest
from images.download import Input, download_input, file_input, model_inputs
from images.lock import Pinned
from images.lock_entries import EngineWheel, File, LockedModel, LockEntry, Packages

__all__ = ["COMMAND", "fetch"]


def fetch(entries: Iterable[LockEntry], cache: Cache, tell: Tell = say, *, only: Digest | None = None) -> None:
    """Download the inputs of these rows of the lock, or the `only` one of this digest, that are not in the cache; a base has none.

    Raises:
        Unreachable: when a file cannot be had, with the reason of each location; what was received stays in the cache.
    """
    silent: set[str] = set()
    for entry in entries:
        if isinstance(entry, Packages):
            chosen = tuple(file for file in entry.wheels if only in (None, file.digest))
            _download_packages(replace(entry, wheels=chosen), cache, tell, silent)
        for wanted in _inputs(entry):
            if only in (None, wanted.digest):
                download_input(wanted, cache, tell, silent)


def _inputs(entry: LockEntry) -> Iterable[Input]:
    """Return the files of a row, apart from the worker's packages, which pip downloads."""
    if isinstance(entry, EngineWheel):
        return [file_input(entry.file, entry.mirrors)]
    return model_inputs(entry, os.environ) if isinstance(entry, LockedModel) else []


def _download_packages(packages: Packages, cache: Cache, tell: Tell, silent: set[str]) -> None:
    """Download the worker's packages: pip asks the user's index for those that are missing, and the mirrors have the rest."""
    missing = [file for file in packages.wheels if not cache.has(file.digest, file.size)]
    if not missing:
        return
    size = sum(file.size for file in missing)
    tell(f"fetching {len(missing)} of the worker's packages ({size_text(size)})")
    failed = ""
    with cache.alone(), tempfile.TemporaryDirectory(prefix="images-", dir=cache.root) as temporary:
        folder = Path(temporary, "wheels")
        folder.mkdir()
        try:
            from images.index import download_wheels  # slow to import, and a full cache needs no index

            download_wheels([_requirement(file) for file in missing], folder, packages.python, size, tell)
        except Unreachable as error:
            failed = str(error)
        for path in folder.iterdir():
            digest, _ = file_digest(path)
            path.replace(cache.path(digest))
    if failed and not packages.mirrors:
        raise Unreachable(failed)
    for file in missing:
        download_input(file_input(file, packages.mirrors), cache, tell, silent)


def _requirement(file: File) -> str:
    project, version = file.name.split("-")[:2]
    return f"{project}=={version} --hash=sha256:{file.digest.hex}"


def _pinned(context: Context, *, locked: bool) -> Pinned:
    """Return the lock's rows for the image, after pinning those that are missing unless the lock is final."""
    try:
        return context.pinned()
    except Unlocked:
        if locked:
            raise
    from images.resolve import pin_missing  # slow to import, and a complete lock needs none of it

    pin_missing(context)
    return context.pinned()


def _run(values: Mapping[str, str]) -> int:
    context = Context.of(values)
    try:
        only = Digest.parse(values["only"]) if values["only"] else None
    except ValueError as error:
        raise UnknownChoice(f"only: {error}") from None
    fetch(_pinned(context, locked=values["locked"] == "yes").entries, context.cache, only=only)
    if only and not context.cache.path(only).is_file():
        raise UnknownChoice(f"only: got {only}, expected a file that the image of {context.target.arguments} reads")
    return 0


COMMAND = Command(
    name="fetch",
    help="Fetch the inputs of an image into the cache, from their origin or from a mirror; pin those that the lock lacks.",
    # Those of `build`, so that both take the same words.
    keys=(*BUILD_KEYS, Key("only", "The digest of the one file to fetch; empty fetches all.")),
    run=_run,
)
