"""Push an image to a registry: its base once from registry to registry, then only what is new, and the tag last of all.

Rules, which the tests cite:

 1. The manifest goes up by its digest; the tag moves only when the registry has given it back byte for byte.
 2. A blob that the target has is not sent again, so a push that was interrupted goes on where it was when it is run again.
 3. What is large goes through skopeo; little things, and whatever moves the tag, are sent from here. Both use the accounts that
    `docker login` and `skopeo login` keep, and neither changes a blob or a manifest on the way.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.arguments import Command, Key, file_named, yes_or_no
from images.auth import AuthFile
from images.build import BUILD_KEYS, default_folder
from images.build_errors import BadSource, BrokenLayout, DigestMismatch, ImageError, UnknownChoice, Unreachable
from images.digest import Digest
from images.http_client import Refused
from images.lock import LOCK, read_lock
from images.registry import Manifest, Reference, Repository

__all__ = ["COMMAND", "Pushable", "copy_base", "mirrors_of", "push", "read_pushable"]

Tell = Callable[[str], None]

LITTLE = 4 << 20
"""Bytes of new blobs up to which they are sent from here, as those of an edit are: sooner than another program has been started and has
asked for every blob, one after the other."""

_ASKED = 8
"""Blobs that are asked for, or sent, at the same time."""


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
    _tagged(str(to))
    target = Repository(to, AuthFile.find(os.environ))
    copy_base(image.base, to, mirrors, tell)
    _send(image, target)
    _check(target.manifest(digest=image.digest), image, f"{to.name}@{image.digest}")
    target.put_manifest(image.manifest, to.tag)
    _check(target.manifest(to.tag), image, str(to))
    tell(f"{to}: {image.digest}, {image.layers} layers")
    return image.digest


def _send(image: Pushable, target: Repository) -> None:
    """Let the target have the image by its digest."""
    try:
        sent = _send_little(image, target)
    except Unreachable:
        sent = False  # skopeo tries on, and has the words for what is wrong
    if not sent:
        _copy("oci:.", f"docker://{target.reference.at(image.digest)}", folder=image.layout)


def _send_little(image: Pushable, target: Repository) -> bool:
    """Send what the target lacks if that is little, and tell whether it was."""
    folder = image.layout / "blobs" / "sha256"
    paths = {digest: folder / digest.hex for digest in _named(image.manifest) if (folder / digest.hex).exists()}  # the base's are not there
    asked = sorted(paths.keys() - _known(target))
    with ThreadPoolExecutor(max_workers=_ASKED) as pool:
        new = [digest for digest, there in zip(asked, pool.map(target.has, asked), strict=True) if not there]
        if sum(paths[digest].stat().st_size for digest in new) > LITTLE:
            return False
        list(pool.map(lambda digest: target.put_blob(digest, _blob(image.layout, digest)), new))
    target.put_manifest(image.manifest)
    return True


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
            _copy(f"docker://{place}", f"docker://{there}")
        except ImageError as error:
            said.append(str(error))
        else:
            if Repository(there, AuthFile.find(os.environ)).manifest(there.tag).digest != base.digest:
                raise DigestMismatch(f"{there}: the registry has something else than {base.digest}, which was sent; use another")
            return there
    raise Unreachable("\n  ".join([f"{base}: the base cannot be copied to {to.name}:", *said]))


def _copy(source: str, destination: str, folder: Path | None = None) -> None:
    from images.skopeo import copy  # and with it the ways of starting programs, which an edit does not need

    copy(source, destination, folder=folder)


def _known(target: Repository) -> set[Digest]:
    """Return what the repository has for certain: all that the image names which has the tag now."""
    try:
        return _named(target.manifest(target.reference.tag))
    except (ImageError, KeyError, TypeError, ValueError):
        return set()


def _named(manifest: Manifest) -> set[Digest]:
    told = manifest.parsed()
    return {Digest.parse(blob["digest"]) for blob in (told["config"], *told["layers"])}


def _blob(layout: Path, digest: Digest) -> bytes:
    path = layout / "blobs" / "sha256" / digest.hex
    data = path.read_bytes()
    if Digest.of(data) != digest:
        raise BrokenLayout(str(path), [f"has {Digest.of(data)}; build the image again"])
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


def _tagged(text: str) -> Reference:
    found = Reference.parse(text)
    if not found.tag or found.digest:
        raise UnknownChoice(f"got {text!r}, expected registry/repository:tag")
    return found


def _run(values: Mapping[str, str]) -> int:
    image = read_pushable(default_folder(values))
    print(push(image, _tagged(values["to"]), mirrors_of(image, values), _say))
    return 0


def mirrors_of(image: Pushable, values: Mapping[str, str]) -> tuple[str, ...]:
    """Return where the lock that a person's arguments mean has the image's base as well."""
    path = file_named(values["lock"]) if values["lock"] else LOCK
    bases = read_lock(path).bases if path.exists() else ()
    return next((base.mirrors for base in bases if base.manifest.digest == image.base.digest), ())


COMMAND = Command(
    name="push",
    help="Push a built image to a registry, and print its digest as the last line.",
    keys=(
        *BUILD_KEYS,
        Key("to", "Where to: registry/repository:tag.", required=True, check=_tagged),
        Key("watch", "yes pushes again after every edit of the worker, until Ctrl-C.", check=yes_or_no),
    ),
    run=_run,
)
