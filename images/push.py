"""Push an image to a registry: its base once from registry to registry, then only what is new, and the tag last of all.

Rules, which the tests cite:

 1. The manifest goes up by its digest; the tag moves only when the registry has given it back byte for byte.
 2. A blob that the target has is not sent again, so a push that was interrupted goes on where it was when it is run again.
 3. skopeo does all writing, with the user's own auth file; blobs and manifests are never changed on the way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.arguments import Command, Key, file_named
from images.build import BUILD_KEYS, default_folder
from images.digest import Digest
from images.errors import BadSource, BrokenLayout, DigestMismatch, ImageError, UnknownChoice, Unreachable
from images.lock import LOCK, read_lock
from images.registry import AuthFile, Manifest, Reference, Repository
from images.web import PAUSES, Refused, is_loopback

__all__ = ["COMMAND", "Pushable", "copy", "copy_base", "mirrors_of", "push", "read_pushable"]

Tell = Callable[[str], None]
_HOPELESS = ("unauthorized", "authentication required", "denied", "no space left", "manifest unknown", "name unknown", "no such host")
"""Words of skopeo after which another try would end like the first."""

_LAST_WORDS = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushable:
    """An image in an OCI layout that lacks its base's blobs, and where its base is."""

    layout: Path
    manifest: Manifest
    base: Reference
    """The base by its digest, as the image's labels have it."""
    layers: int

    @property
    def digest(self) -> Digest:
        """The image's."""
        return self.manifest.digest


def read_pushable(layout: Path) -> Pushable:
    """Return the one image of a layout.

    Raises:
        BrokenLayout: when the folder is no layout of one image made here.
    """
    try:
        [entry] = json.loads((layout / "index.json").read_bytes())["manifests"]
        digest = Digest.parse(entry["digest"])
        data = _blob(layout, digest)
        told = json.loads(data)
        labels = json.loads(_blob(layout, Digest.parse(told["config"]["digest"])))["config"]["Labels"]
        name, base = labels["org.opencontainers.image.base.name"], Digest.parse(labels["org.opencontainers.image.base.digest"])
        manifest = Manifest(data=data, media_type=told["mediaType"])
        return Pushable(layout=layout, manifest=manifest, base=Reference.parse(name).at(base), layers=len(told["layers"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        problem = f"holds no image that `just build-image` made ({type(error).__name__}: {error}); build it again"
        raise BrokenLayout(str(layout), [problem]) from None


def push(image: Pushable, to: Reference, mirrors: Iterable[str] = (), tell: Tell = print) -> Digest:
    """Push an image to a tag and return the digest that the tag has then; `mirrors` may have the base as well.

    Raises:
        Unreachable: when a registry fails for good; running it again goes on from there.
        DigestMismatch: when the registry has something else than what was sent; the tag has not moved.
    """
    if not to.tag:
        raise UnknownChoice(f"to: got {to}, expected registry/repository:tag")
    target = Repository(to, AuthFile.find(os.environ))
    copy_base(image.base, to, mirrors, tell)
    copy("oci:.", f"docker://{to.at(image.digest)}", folder=image.layout)
    _check(target.manifest(digest=image.digest), image, f"{to.name}@{image.digest}")
    copy(f"docker://{to.at(image.digest)}", f"docker://{to}")
    _check(target.manifest(to.tag), image, str(to))
    tell(f"{to}: {image.digest}, {image.layers} layers")
    return image.digest


def copy_base(base: Reference, to: Reference, mirrors: Iterable[str] = (), tell: Tell = print) -> Reference:
    """Let the target's repository have the base, from its origin or a mirror, under a tag of its own; returns that.

    The tag keeps a registry's garbage collector off the base, and one look at it tells that every blob is there.

    Raises:
        Unreachable: when neither the origin nor a mirror has it, with what each of them said.
    """
    if base.digest is None:
        raise BadSource(f"{base}: expected a base with its digest")
    there = to.tagged(f"base-{base.digest.hex[:16]}")
    if _has(there, base.digest):
        return there
    said = []
    for place in (base, *(Reference.parse(mirror).at(base.digest) for mirror in mirrors)):
        try:
            size = _size(Repository(place, AuthFile.find(os.environ)).manifest(digest=base.digest))
            tell(f"copying the base, {size / 1e9:.2f} GB, once, from {place} to {there}")
            copy(f"docker://{place}", f"docker://{there}")
        except ImageError as error:
            said.append(str(error))
        else:
            if not _has(there, base.digest):
                raise DigestMismatch(f"{there}: the registry has something else than {base.digest}, which was sent; use another")
            return there
    raise Unreachable("\n  ".join([f"{base}: the base cannot be copied to {to.name}:", *said]))


def copy(source: str, destination: str, *, folder: Path | None = None, options: Iterable[str] = ("--preserve-digests",)) -> None:
    """Copy an image with skopeo, whose names of places these are, unchanged; what a registry failed to do is tried again.

    `folder` is where relative names of places begin; other `options` allow what must be changed, as for a Docker.

    Raises:
        Unreachable: with skopeo's last words, after four tries or when another one is hopeless.
    """
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", *_plain_http(source, destination), *options, source, destination]
    for pause in (*PAUSES, None):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, errors="replace")
        except FileNotFoundError:
            raise Unreachable("skopeo: not found on this machine; install it (Debian: apt-get install skopeo)") from None
        if done.returncode == 0:
            return
        said = done.stderr.strip()[-_LAST_WORDS:]
        if pause is None or any(word in said for word in _HOPELESS):
            raise Unreachable(f"copying {source} to {destination}: {said}")
        time.sleep(pause)


def _plain_http(source: str, destination: str) -> list[str]:
    """Return the options that let skopeo speak plain HTTP, on loopback only, as Docker does."""
    ends = (("--src-tls-verify=false", source), ("--dest-tls-verify=false", destination))
    return [option for option, place in ends if place.startswith("docker://") and is_loopback(place)]


def _blob(layout: Path, digest: Digest) -> bytes:
    data = (layout / "blobs" / "sha256" / digest.hex).read_bytes()
    if Digest.of(data) != digest:
        raise ValueError(f"blob {digest} has {Digest.of(data)}")
    return data


def _check(found: Manifest, image: Pushable, what: str) -> None:
    if found.data != image.manifest.data:
        raise DigestMismatch(f"{what}: the registry has {found.digest}, expected {image.digest}, which was sent; use another registry")


def _has(place: Reference, digest: Digest) -> bool:
    try:
        return Repository(place, AuthFile.find(os.environ)).manifest(place.tag).digest == digest
    except Refused as refused:
        # Registries answer 401 or 403, rather than 404, for a repository that is yet to be made.
        if refused.status in (401, 403, 404):
            return False
        raise


def _size(manifest: Manifest) -> int:
    layers: list[dict[str, Any]] = manifest.parsed()["layers"]
    return sum(layer["size"] for layer in layers)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run(values: Mapping[str, str]) -> int:
    image = read_pushable(default_folder(values))
    print(push(image, Reference.parse(values["to"]), mirrors_of(image, values), _say))
    return 0


def mirrors_of(image: Pushable, values: Mapping[str, str]) -> tuple[str, ...]:
    """Return where the lock that a person's arguments mean has the image's base as well."""
    path = file_named(values["lock"]) if values["lock"] else LOCK
    bases = read_lock(path).bases if path.exists() else ()
    return next((base.mirrors for base in bases if base.manifest.digest == image.base.digest), ())


COMMAND = Command(
    name="push",
    help="Push a built image to a registry, and print its digest as the last line.",
    keys=(*BUILD_KEYS, Key("to", "Where to: registry/repository:tag.", required=True)),
    run=_run,
)
