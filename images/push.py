"""Push an image to a registry: its base once, from registry to registry, then only what is new, and the tag last.

Rules, which the tests cite:

 1. The manifest goes up by its digest; the tag moves only when the registry has returned the manifest byte for byte.
 2. A blob that the target has is not sent again, so a push that was interrupted continues when it is run again.
 3. Large copies go through skopeo; small blobs, and the manifest of a tag, are sent from here. Both use the accounts that `docker login`
    and `skopeo login` keep, and neither changes a blob or a manifest.

skopeo follows a registry to any token server, so each registry is asked from here first, where `auth` checks that server.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.progress import size_text
from images.arguments import Command, Key, yes_or_no
from images.auth import AuthFile
from images.build_errors import BadSource, BrokenLayout, DigestMismatch, ImageError, UnknownChoice, Unreachable
from images.context import BUILD_KEYS, Context, Tell, say
from images.digest import Digest, parse_json
from images.registry import ImageReference, Manifest, RegistryRepository

__all__ = ["COMMAND", "Pushable", "copy_base", "mirrors_of", "push", "read_pushable", "size_of"]

SMALL = 4 << 20
"""Bytes of new blobs up to which they are sent from here, as those of an edit are: that is faster than starting skopeo, which asks for
every blob one after the other."""

_AT_ONCE = 8
"""Blobs that are asked for, or sent, at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushable:
    """An image in an OCI layout that lacks its base's blobs, and the name of the base."""

    layout: Path
    manifest: Manifest
    base: ImageReference
    """The base by its digest, from the image's labels."""
    layers: int

    @property
    def digest(self) -> Digest:
        """Return the image's digest."""
        return self.manifest.digest


def read_pushable(layout: Path) -> Pushable:
    """Return the one image of a layout.

    Raises:
        BrokenLayout: when the folder is not a layout of one image that this builder wrote.
    """
    try:
        [entry] = parse_json((layout / "index.json").read_bytes())["manifests"]
        digest = Digest.parse(entry["digest"])
        data = _blob(layout, digest)
        manifest = parse_json(data)
        labels = parse_json(_blob(layout, Digest.parse(manifest["config"]["digest"])))["config"]["Labels"]
        name, base = labels["org.opencontainers.image.base.name"], Digest.parse(labels["org.opencontainers.image.base.digest"])
        return Pushable(
            layout=layout,
            manifest=Manifest(data=data, media_type=manifest["mediaType"]),
            base=ImageReference.parse(name).at(base),
            layers=len(manifest["layers"]),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        problem = f"holds no image of `ci/just build-image` ({type(error).__name__}: {error}); build it again"
        raise BrokenLayout(str(layout), [problem]) from None


def push(image: Pushable, to: ImageReference, mirrors: Iterable[str] = (), tell: Tell = say) -> Digest:
    """Push an image to a tag and return the digest of the tag; `mirrors` are repositories that have the base as well.

    Raises:
        Unreachable: when a registry fails four times in a row; the next push continues from there.
        DigestMismatch: when the registry has something else than what was sent; the tag has not moved.
    """
    _tagged(str(to))
    target = RegistryRepository(to, AuthFile.find(os.environ))
    copy_base(image.base, to, mirrors, tell)
    _send(image, target, tell)
    _check(target.manifest(digest=image.digest), image, f"{to.name}@{image.digest}")
    target.put_manifest(image.manifest, to.tag)
    _check(target.manifest(to.tag), image, str(to))
    tell(f"{to}: {image.digest}, {image.layers} layers")
    return image.digest


def _send(image: Pushable, target: RegistryRepository, tell: Tell) -> None:
    """Send the image under its digest."""
    new = _new_blobs(image, target)
    sizes = [_path(image.layout, digest).stat().st_size for digest in new]
    if sum(sizes) <= SMALL and _send_small(image, target, new):
        return
    _copy("oci:.", f"docker://{target.reference.at(image.digest)}", size=sum(sizes), folder=image.layout, tell=tell)


def _new_blobs(image: Pushable, target: RegistryRepository) -> list[Digest]:
    """Return our blobs that the target lacks; where it fails to answer, all that it is not known to have."""
    ours = {digest for digest in _named(image.manifest) if _path(image.layout, digest).exists()}  # the base's are not there
    asked = sorted(ours - _known(target))
    try:
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            return [digest for digest, there in zip(asked, pool.map(target.has, asked), strict=True) if not there]
    except Unreachable:
        return asked


def _send_small(image: Pushable, target: RegistryRepository, new: Iterable[Digest]) -> bool:
    """Send the new blobs and the manifest, and return whether the registry accepted them; skopeo has more tries otherwise."""
    try:
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            list(pool.map(lambda digest: target.put_blob(digest, _blob(image.layout, digest)), new))
        target.put_manifest(image.manifest)
    except Unreachable:
        return False
    return True


def copy_base(base: ImageReference, to: ImageReference, mirrors: Iterable[str] = (), tell: Tell = say) -> ImageReference:
    """Copy the base to the target's repository, from its origin or a mirror, under a tag of its own, and return that.

    The tag keeps a registry's garbage collector off the base, and asking for it shows that every blob is there.

    Raises:
        Unreachable: when it can be copied neither from the origin nor from a mirror, with the reason of each.
    """
    if base.digest is None:
        raise BadSource(f"{base}: expected a base with its digest")
    there = to.tagged(f"base-{base.digest.hex[:16]}")
    if _has(there, base.digest):
        return there
    errors = []
    for place in (base, *(ImageReference.parse(mirror).at(base.digest) for mirror in mirrors)):
        try:
            size = size_of(place)
            tell(f"copying the base, {size_text(size)}, once, from {place} to {there}")
            _copy(f"docker://{place}", f"docker://{there}", size=size, tell=tell)
        except ImageError as error:
            errors.append(str(error))
        else:
            if RegistryRepository(there, AuthFile.find(os.environ)).manifest(there.tag).digest != base.digest:
                raise DigestMismatch(f"{there}: the registry has something else than {base.digest}, which was sent; use another registry")
            return there
    raise Unreachable("\n  ".join([f"{base}: the base cannot be copied to {to.name}:", *errors]))


def size_of(reference: ImageReference) -> int:
    """Return the size in bytes of an image's layers, as its registry has them.

    Raises:
        Unreachable: when the registry does not answer, or lacks the image.
    """
    manifest = RegistryRepository(reference, AuthFile.find(os.environ)).manifest(reference.tag, reference.digest)
    layers: list[dict[str, Any]] = manifest.parsed()["layers"]
    return sum(layer["size"] for layer in layers)


def _copy(source: str, destination: str, **options: Any) -> None:
    from images.skopeo import copy  # slow to import beside an edit's push of milliseconds, which needs no skopeo

    copy(source, destination, **options)


def _known(target: RegistryRepository) -> set[Digest]:
    """Return the blobs of the image that has the tag now, which the repository certainly has."""
    try:
        return _named(target.manifest(target.reference.tag))
    except (ImageError, KeyError, TypeError, ValueError):
        return set()


def _named(manifest: Manifest) -> set[Digest]:
    parsed = manifest.parsed()
    return {Digest.parse(blob["digest"]) for blob in (parsed["config"], *parsed["layers"])}


def _path(layout: Path, digest: Digest) -> Path:
    return layout / "blobs" / "sha256" / digest.hex


def _blob(layout: Path, digest: Digest) -> bytes:
    path = _path(layout, digest)
    data = path.read_bytes()
    if Digest.of(data) != digest:
        raise BrokenLayout(str(path), [f"has {Digest.of(data)}; build the image again"])
    return data


def _check(found: Manifest, image: Pushable, what: str) -> None:
    if found.data != image.manifest.data:
        raise DigestMismatch(f"{what}: the registry has {found.digest}, expected {image.digest}, which was sent; use another registry")


def _has(place: ImageReference, digest: Digest) -> bool:
    try:
        return RegistryRepository(place, AuthFile.find(os.environ)).manifest(place.tag).digest == digest
    except Unreachable as error:
        # For a repository that does not exist yet, registries answer 401 or 403 as well as 404.
        if error.status in (401, 403, 404):
            return False
        raise


def _tagged(text: str) -> ImageReference:
    found = ImageReference.parse(text)
    if not found.tag or found.digest:
        raise UnknownChoice(f"got {text!r}, expected registry/repository:tag")
    return found


def mirrors_of(image: Pushable, context: Context) -> tuple[str, ...]:
    """Return the repositories that have the image's base as well, by the lock."""
    return next((base.mirrors for base in context.lock().bases if base.manifest.digest == image.base.digest), ())


def _run(values: Mapping[str, str]) -> int:
    context = Context.of(values)
    image = read_pushable(context.out)
    print(push(image, _tagged(values["to"]), mirrors_of(image, context)))
    return 0


COMMAND = Command(
    name="push",
    help="Push a built image to a registry, and print its digest as the last line.",
    keys=(
        *BUILD_KEYS,
        Key("to", "The target: registry/repository:tag.", required=True, check=_tagged),
        Key("watch", "yes pushes again after every edit of the worker, until Ctrl-C.", check=yes_or_no),
    ),
    run=_run,
)
