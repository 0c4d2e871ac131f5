"""Where the weights come from: a directory, the image, RunPod's cache, a network volume, or a download.

Places are asked in this order, and the first whole checkpoint is served; one that is there in part is named in the log and passed over.

 1. MODEL names a directory: that directory, as it is.
 2. Baked into the image: a Hugging Face cache at `Places.baked`, outside /runpod-volume, which a mounted volume would hide.
 3. RunPod's cached model: a Hugging Face cache at `Places.cached`, whose folders may be lower-cased.
 4. HF_HUB_CACHE where it is set, else HF_HOME, else the network volume where one is mounted, else huggingface_hub's own folder: if the
    revision is a branch or a tag, the hub is asked what it means today; where the hub cannot be asked, a whole copy of it is served with a
    warning.
 5. A download from the hub to the place of step 4.

ModelScope and AIStudio are FastDeploy's own work (`FD_MODEL_SOURCE`): their interfaces are not open to a check from here, so the name goes
to the engine as it is.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from checkpoint.files import damage, read_json, snapshot_folder, wanted
from checkpoint.unavailable import ModelUnavailable

__all__ = ["Origin", "Places", "Source", "Weights", "find_cached", "find_weights"]

log = logging.getLogger(__name__)

Origin = Literal["directory", "image", "RunPod's cache", "disk", "download", "engine"]

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where weights may be; each but `volume` is a Hugging Face cache (the folder that holds models--org--name)."""

    baked: Path = Path("/models")
    cached: Path = Path("/runpod-volume/huggingface-cache/hub")
    volume: Path = Path("/runpod-volume")
    """Where a network volume is mounted; downloads go to huggingface/hub below it."""
    home: Path | None = None
    """HF_HOME, if the operator set it; downloads go to hub below it."""
    hub_cache: Path | None = None
    """HF_HUB_CACHE, if the operator set it; downloads go there, as huggingface_hub's own do, whatever HF_HOME says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Which weights are wanted: a directory, or a repository `name` at a `revision` (empty: the default branch)."""

    name: str
    revision: str = ""
    hub: str = "huggingface"
    """Who has the repository: huggingface, modelscope or aistudio."""
    endpoint: str = ""
    """The hub's address; empty means huggingface_hub's own default."""
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What was found: `model` is what the engine gets as its model, a directory unless the engine itself is to download it."""

    model: str
    directory: Path | None
    origin: Origin
    variables: dict[str, str] = field(default_factory=dict)
    """What the engine's environment needs beside."""


def find_weights(source: Source, places: Places | None = None, accept: Callable[[Mapping[str, Any]], None] = lambda _: None) -> Weights:
    """Return the first whole checkpoint of the model, downloading it if there is none.

    Before a download `accept` gets its config.json, and raises where such a checkpoint would be of no use.

    Raises:
        ModelUnavailable: in one sentence: what is missing or wrong, and which variable to set.
    """
    directory = _expanded(source.name)
    try:
        if directory.is_dir():
            return _from_directory(directory.resolve(), source)
    except OSError as error:
        raise ModelUnavailable(f"MODEL={source.name}: cannot be read ({error})") from error
    if not _NAME.fullmatch(source.name):
        raise ModelUnavailable(f"MODEL: got {source.name!r}, which is no directory here and no repository name of the form org/name")
    places = places or Places()
    if source.hub != "huggingface":
        log.info("MODEL_SOURCE=%s: the engine downloads %s itself", source.hub, source.name)
        variables = {"FD_MODEL_SOURCE": source.hub.upper()}
        if _is_writable(places.volume):
            variables["FD_MODEL_CACHE"] = str(places.volume / source.hub)
        return Weights(model=source.name, directory=None, origin="engine", variables=variables)
    read_only: tuple[tuple[Origin, Path], ...] = (("image", places.baked), ("RunPod's cache", places.cached))
    for origin, cache in read_only:
        found = find_cached(cache, source.name, source.revision)
        if found:
            log.info("weights: %s, %s", origin, found)
            return Weights(model=str(found), directory=found, origin=origin)
    return _from_hub(source, _own_cache(places), accept)


def _expanded(path: str) -> Path:
    """Return the path with its ~ resolved as the library does it: a user whom nobody knows is left as he is written."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # pathlib's raises


def _from_directory(directory: Path, source: Source) -> Weights:
    problems = damage(directory)
    if problems:
        raise ModelUnavailable(f"MODEL={source.name}: the directory holds no whole checkpoint: {'; '.join(problems)}")
    if source.revision:
        log.warning("MODEL_REVISION=%s says nothing about a directory and is ignored", source.revision)
    return Weights(model=str(directory), directory=directory, origin="directory")


def _own_cache(places: Places) -> Path:
    """Return the cache that downloads go to."""
    if places.hub_cache:
        return _named("HF_HUB_CACHE", places.hub_cache)
    if places.home:
        return _named("HF_HOME", places.home) / "hub"
    if _is_writable(places.volume):
        return places.volume / "huggingface" / "hub"
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _named(variable: str, folder: Path) -> Path:
    expanded = _expanded(str(folder))
    if expanded.parts[0].startswith("~"):
        raise ModelUnavailable(f"{variable}: got {str(folder)!r}, expected a folder: there is no such home")
    return expanded


def _is_writable(directory: Path) -> bool:
    return directory.is_dir() and os.access(directory, os.W_OK)


def _from_hub(source: Source, cache: Path, accept: Callable[[Mapping[str, Any]], None]) -> Weights:
    there = find_cached(cache, source.name, source.revision)
    if there and source.revision == there.name:
        # A commit never changes: nothing to ask.
        log.info("weights: %s", there)
        return Weights(model=str(there), directory=there, origin="disk")
    from checkpoint import hub  # its threads, hashes and locks are for those who download

    where = hub.Hub(endpoint=source.endpoint, token=source.token)
    try:
        listing = hub.list_files(source.name, source.revision, where)
    except ModelUnavailable as error:
        if not there:
            raise
        log.warning("%s; serving the copy in %s", error, there)
        return Weights(model=str(there), directory=there, origin="disk")
    new = not (there and there.name == listing.commit)
    directory = hub.download(listing, cache, where, accept)
    log.info("weights: %s%s", directory, " (downloaded)" if new else "")
    return Weights(model=str(directory), directory=directory, origin="download" if new else "disk")


def find_cached(cache: Path, repository: str, revision: str) -> Path | None:
    """Return the snapshot of a repository in a Hugging Face cache, if it is there and whole.

    Names of folders are compared without regard to case: RunPod lower-cases them. An empty revision means main or, where the cache has
    no such reference, its only snapshot; a commit may be cut to seven digits. What is there in part is named in the log.
    """
    try:
        snapshot = _snapshot(cache, repository, revision)
        problems = [*damage(snapshot), *_not_yet_there(snapshot)] if snapshot else []
    except OSError as error:
        log.warning("%s cannot be read, so it is passed over: %s", cache, error)
        return None
    if snapshot and problems:
        log.warning("%s is passed over, it is not whole: %s", snapshot, "; ".join(problems))
        return None
    return snapshot


def _snapshot(cache: Path, repository: str, revision: str) -> Path | None:
    folder = _folder(cache, snapshot_folder(cache, repository).name)
    if folder is None or not (folder / "snapshots").is_dir():
        return None
    snapshots = {path.name: path for path in (folder / "snapshots").iterdir() if path.is_dir()}
    if revision in snapshots:
        return snapshots[revision]
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        return snapshots.get(reference.read_text(encoding="ascii", errors="replace").strip())
    meant = [path for name, path in snapshots.items() if not revision or (len(revision) >= 7 and name.startswith(revision))]
    return meant[0] if len(meant) == 1 else None


def _folder(cache: Path, name: str) -> Path | None:
    """Return the folder of that name, or else one that differs from it in case only."""
    if (cache / name).is_dir():
        return cache / name
    if not cache.is_dir():
        return None
    alike = sorted(path for path in cache.iterdir() if path.name.lower() == name.lower() and path.is_dir())
    return alike[0] if alike else None


def _not_yet_there(snapshot: Path) -> list[str]:
    """Return one sentence for each file that huggingface_hub's own note of the repository's files has and the snapshot has not.

    The note (trees/COMMIT.json) is written before the files, so a snapshot that another worker is busy filling is not taken for whole.
    """
    try:
        note = read_json(snapshot.parent.parent / "trees" / f"{snapshot.name}.json")
        sizes = {path: about["size"] for path, about in note["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [f"{path}: missing or cut short" for path in wanted(sizes) if not _has_size(snapshot / path, sizes[path])]


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
