"""Copy the pinned inputs of an image to the user's own registry, and note in the lock that they are there.

The base is copied as an image, files as OCI artifacts with one blob each; since the lock knows every file by its digest, a fetch finds it
in the mirror's repository by that alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from images.arguments import TARGET_KEYS, Command, Key, file_named
from images.build import cache_from
from images.build_errors import UnknownChoice
from images.cache import Cache
from images.digest import Digest, canonical_json
from images.fetch import fetch
from images.lock import LOCK, Entry, File, Lock, Model, ModelFile, read_lock, requirements_digest, write_lock
from images.push import copy_base
from images.registry import Reference
from images.releases import RELEASES, Target, read_releases
from images.skopeo import copy

__all__ = ["COMMAND", "mirror"]

Tell = Callable[[str], None]
ARTIFACT = "application/vnd.worker-fastdeploy.inputs"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_EMPTY = "application/vnd.oci.empty.v1+json"
"""A config that says nothing, for artifacts (OCI image specification 1.1)."""


def mirror(lock: Lock, target: Target, to: str, cache: Cache, model: str = "", tell: Tell = print) -> Lock:
    """Copy all that the target's image is made of to the repository `to`, and return the lock that names it as a mirror.

    Raises:
        Unlocked: when an input is not pinned.
        Unreachable: when a registry fails for good, or an input can be had nowhere.
    """
    place = _repository(to)
    fetch(lock, target, cache, model, tell)
    base = lock.base(target)
    copy_base(Reference.parse(base.reference).at(base.manifest.digest), place, base.mirrors, tell)
    entries: list[Entry] = [base]
    wheel, packages = lock.wheel(target), lock.packages_for(target, requirements_digest(target))
    if wheel:
        _copy_files([wheel.file], place, f"wheel-{wheel.file.digest.hex[:16]}", cache, tell)
        entries.append(wheel)
    _copy_files(packages.wheels, place, f"packages-{packages.engine}-{packages.python}-{packages.requirements.hex[:16]}", cache, tell)
    entries.append(packages)
    if model:
        found: Model = lock.model(model, target.arguments)
        _copy_files(found.files, place, f"model-{found.commit[:16]}", cache, tell)
        entries.append(found)
    return lock.having(*(replace(entry, mirrors=tuple(sorted({*entry.mirrors, to}))) for entry in entries))


def _repository(text: str) -> Reference:
    found = Reference.parse(text)
    if found.tag or found.digest or found.name != text:
        raise UnknownChoice(f"got {text!r}, expected registry/repository")
    return found


def _copy_files(files: Sequence[File | ModelFile], to: Reference, tag: str, cache: Cache, tell: Tell) -> None:
    """Push files of the cache as one artifact."""
    tell(f"copying {len(files)} files, {sum(file.size for file in files) / 1e9:.2f} GB, to {to.tagged(tag)}")
    with tempfile.TemporaryDirectory(prefix="mirror-", dir=cache.root) as folder:
        blobs = Path(folder) / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for file in files:
            blobs.joinpath(file.digest.hex).unlink(missing_ok=True)
            blobs.joinpath(file.digest.hex).hardlink_to(cache.path(file.digest))
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "artifactType": ARTIFACT,
            "config": _write(blobs, _EMPTY, b"{}"),
            "layers": [_described(file) for file in files],
        }
        entry = _write(blobs, _MANIFEST, canonical_json(manifest))
        Path(folder, "index.json").write_bytes(canonical_json({"schemaVersion": 2, "manifests": [entry]}))
        Path(folder, "oci-layout").write_bytes(canonical_json({"imageLayoutVersion": "1.0.0"}))
        copy("oci:.", f"docker://{to.tagged(tag)}", folder=Path(folder))


def _described(file: File | ModelFile) -> dict[str, Any]:
    name = file.name if isinstance(file, File) else file.path
    return {
        "mediaType": "application/octet-stream",
        "digest": str(file.digest),
        "size": file.size,
        "annotations": {"org.opencontainers.image.title": name},
    }


def _write(blobs: Path, media_type: str, data: bytes) -> dict[str, Any]:
    digest = Digest.of(data)
    blobs.joinpath(digest.hex).write_bytes(data)
    return {"mediaType": media_type, "digest": str(digest), "size": len(data)}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run(values: Mapping[str, str]) -> int:
    releases = read_releases(file_named(values["releases"]) if values["releases"] else RELEASES)
    target = releases.target(values["arch"], values["release"], values["cuda"])
    path = file_named(values["lock"]) if values["lock"] else LOCK
    cache = cache_from(values)
    write_lock(path, mirror(read_lock(path), target, values["to"], cache, values["model"], _say))
    print(path)
    return 0


COMMAND = Command(
    name="mirror",
    help="Copy the pinned inputs of an image to a registry of your own, and note it in the lock.",
    keys=(
        *TARGET_KEYS,
        Key("to", "The repository to copy to, registry/repository.", required=True, check=_repository),
        Key("model", "A locked model whose files are copied too, org/name."),
        Key("cache", "Another folder than dist/cache."),
    ),
    run=_run,
)
