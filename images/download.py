"""Download a pinned file into the cache: from its origin or else from a mirror, continued where it stopped, checked, then named.

Rules, which the tests cite:

 1. A file has its final name in the cache only when its bytes have the pinned digest.
 2. What an interrupted download of a pinned file received stays beside it, and the next one asks for the rest.
 3. Where the origin does not answer, or has other bytes than the pinned ones, a mirror is used; without a mirror it is an error.

HF_TOKEN is the only secret, and is sent to the hub alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from checkpoint.http_client import Remote, ask, byte_range
from checkpoint.hub import DEFAULT_ENDPOINT, bearer, file_address
from checkpoint.progress import Progress, size_text
from checkpoint.receive import fill
from checkpoint.unavailable import masked
from images.auth import AuthFile
from images.build_errors import DigestMismatch, ImageError, Silent, Unreachable
from images.cache import Cache
from images.context import Tell, say
from images.digest import Digest
from images.lock_entries import File, LockedModel
from images.registry import ImageReference, RegistryRepository, unreachable_on_http_errors

__all__ = ["Input", "Location", "download_input", "file_input", "model_inputs", "on_hub", "on_web", "pin", "size_at"]

_LARGE = 64 << 20
"""Bytes from which a file gets a line of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """An address that may have a file."""

    name: str
    host: str
    open: Callable[[int, int | None], HTTPResponse]
    """As in `http_client.Remote`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One pinned file, and its locations in the order to try them."""

    name: str
    size: int
    digest: Digest
    locations: tuple[Location, ...]


def file_input(file: File, mirrors: Sequence[str] = ()) -> Input:
    """Return a pinned file with its origin, if it has one, and its mirrors."""
    origin = [on_web(file.url)] if file.url else []
    return Input(name=file.name, size=file.size, digest=file.digest, locations=(*origin, *_on_mirrors(mirrors, file.digest)))


def model_inputs(model: LockedModel, environment: Mapping[str, str]) -> Iterator[Input]:
    """Yield a model's files; HF_ENDPOINT of the environment names another hub, and HF_TOKEN is for a gated model."""
    for file in model.files:
        locations = (on_hub(model.repository, model.commit, file.path, environment), *_on_mirrors(model.mirrors, file.digest))
        yield Input(name=f"{model.repository}/{file.path}", size=file.size, digest=file.digest, locations=locations)


def on_web(url: str) -> Location:
    """Return the location of an address."""
    return Location(name=masked(url), host=urlsplit(url).netloc, open=lambda start, end: ask(url, headers=byte_range(start, end)))


def on_hub(repository: str, commit: str, path: str, environment: Mapping[str, str]) -> Location:
    """Return the location of a model's file on the hub."""
    url = file_address(environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT, repository, commit, path)
    secret = bearer(environment.get("HF_TOKEN", ""))
    return Location(
        name=masked(url), host=urlsplit(url).netloc, open=lambda start, end: ask(url, headers=byte_range(start, end), secret=secret)
    )


def _on_mirrors(mirrors: Sequence[str], digest: Digest) -> Iterator[Location]:
    for mirror in mirrors:
        repository = RegistryRepository(ImageReference.parse(mirror), AuthFile.find(os.environ))
        yield Location(name=f"{mirror}@{digest}", host=repository.reference.registry, open=partial(repository.blob, digest))


def download_input(wanted: Input, cache: Cache, tell: Tell = say, silent: set[str] | None = None) -> Path:
    """Return the file of the cache that holds the input, downloaded if it is not there yet.

    `silent` are hosts that did not answer before: they are skipped, and a host that does not answer now is added.

    Raises:
        Unreachable: when no location has it, with the reason of each.
        DigestMismatch: when a location has other bytes than the pinned ones, and no later location has the pinned ones.
    """
    path = cache.path(wanted.digest)
    errors: list[ImageError] = []
    silent = set() if silent is None else silent
    with cache.alone():
        if cache.has(wanted.digest, wanted.size):
            return path
        for location in wanted.locations:
            try:
                if location.host in silent:
                    raise Silent(f"{location.name}: {location.host} did not answer before")
                return _download_from(location, wanted, path, tell)
            except (Unreachable, DigestMismatch) as error:
                errors.append(error)
                silent |= {location.host} if isinstance(error, Silent) else set()
    kind = next((type(error) for error in errors if isinstance(error, DigestMismatch)), Unreachable)
    reasons = "".join(f"\n  {error}" for error in errors) or " no address is known; pin it again with `ci/just lock`"
    raise kind(f"{wanted.name} ({wanted.digest}, {wanted.size} bytes): not found at any of {len(errors)} locations:{reasons}")


def pin(location: Location, size: int, cache: Cache, tell: Tell = say) -> Digest:
    """Receive a file of which only the size is known into the cache, and return its digest.

    Raises:
        Unreachable: when the location has no such file, or one of another size.
    """
    with cache.alone():
        part = cache.root / "sha256" / f"{Digest.of(location.name.encode()).hex}.part"
        part.unlink(missing_ok=True)  # the address may have another file now than when an earlier try received a part
        digest = _receive(location, size, part, tell)
        part.replace(cache.path(digest))
    return digest


def size_at(location: Location) -> int:
    """Return the size of a file that a location announces, 0 where it announces none.

    Raises:
        Unreachable: when it has no such file, or does not answer.
    """
    with unreachable_on_http_errors(), location.open(0, None) as response:
        return int(response.headers.get("Content-Length") or 0)


def _download_from(location: Location, wanted: Input, path: Path, tell: Tell) -> Path:
    part = path.with_name(f"{path.name}.part")
    found = _receive(location, wanted.size, part, tell)
    if found != wanted.digest:
        part.unlink()
        raise DigestMismatch(f"{location.name}: has {found}, expected {wanted.digest}; it is not the file that was pinned")
    part.replace(path)
    return path


def _receive(location: Location, size: int, part: Path, tell: Tell) -> Digest:
    """Fill `part`, from where an earlier try stopped (rule 2), and return the digest of the whole file."""
    if size >= _LARGE:
        tell(f"fetching {location.name} ({size_text(size)})")
    with unreachable_on_http_errors(), Progress(size, location.name.rpartition("/")[2], tell=tell) as progress:
        digest = fill(
            part,
            Remote(name=location.name, size=size, open=location.open),
            lambda count, received: progress.add(count, received=received),
        )
    with part.open("rb") as file:
        os.fsync(file.fileno())
    return Digest(digest)
