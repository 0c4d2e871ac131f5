"""Copy the pinned inputs of an image to the user's own registry, and note the mirror in the lock.

The base is copied as an image, files as OCI artifacts with a blob for each file. The lock has every file's digest, which is also the name
of the blob, so a download from the mirror needs no other address.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoint.progress import size_text
from images.arguments import Command, Key
from images.build_errors import UnknownChoice
from images.cache import Cache
from images.context import IMAGE_KEYS, Context, Tell, say
from images.digest import Digest, canonical_json
from images.fetch import fetch
from images.lock import Pinned
from images.lock_entries import File, LockEntry, ModelFile
from images.push import copy_base
from images.registry import ImageReference
from images.skopeo import copy

__all__ = ["COMMAND", "mirror"]

ARTIFACT = "application/vnd.worker-fastdeploy.inputs"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_EMPTY = "application/vnd.oci.empty.v1+json"
"""The media type of an empty config, for artifacts (OCI image specification 1.1)."""


def mirror(pinned: Pinned, to: str, cache: Cache, tell: Tell = say) -> tuple[LockEntry, ...]:
    """Copy all inputs of an image to the repository `to`, and return the lock's rows with it as a mirror.

    Raises:
        Unreachable: when a registry fails four times in a row, or an input cannot be had.
    """
    place = _repository(to)
    fetch(pinned.entries, cache, tell)
    base, wheel, packages, model = pinned.base, pinned.wheel, pinned.packages, pinned.model
    copy_base(ImageReference.parse(base.reference).at(base.manifest.digest), place, base.mirrors, tell)
    if wheel:
        _copy_files([wheel.file], place, f"wheel-{wheel.file.digest.hex[:16]}", cache, tell)
    _copy_files(packages.wheels, place, f"packages-{packages.engine}-{packages.python}-{packages.requirements.hex[:16]}", cache, tell)
    if model:
        _copy_files(model.files, place, f"model-{model.commit[:16]}", cache, tell)
    return tuple(replace(entry, mirrors=tuple(sorted({*entry.mirrors, to}))) for entry in pinned.entries)


def _repository(text: str) -> ImageReference:
    found = ImageReference.parse(text)
    if found.tag or found.digest or found.name != text:
        raise UnknownChoice(f"got {text!r}, expected registry/repository")
    return found


def _copy_files(files: Sequence[File | ModelFile], to: ImageReference, tag: str, cache: Cache, tell: Tell) -> None:
    """Push files of the cache as one artifact."""
    size = sum(file.size for file in files)
    tell(f"copying {len(files)} files, {size_text(size)}, to {to.tagged(tag)}")
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
        copy("oci:.", f"docker://{to.tagged(tag)}", size=size, folder=Path(folder), tell=tell)


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


def _run(values: Mapping[str, str]) -> int:
    context = Context.of(values)
    context.check_writable()
    context.keep(*mirror(context.pinned(), values["to"], context.cache))
    print(context.lock_file)
    return 0


COMMAND = Command(
    name="mirror",
    help="Copy the pinned inputs of an image to a registry of your own, and note it in the lock.",
    keys=(*IMAGE_KEYS, Key("to", "The repository to copy to, registry/repository.", required=True, check=_repository)),
    run=_run,
)
