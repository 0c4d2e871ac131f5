"""Bring the pinned inputs of an image into the cache: from their origin or else from a mirror, resumed where it broke off, checked, named.

The only secret is HF_TOKEN, read from the environment, and sent to the hub alone. Rules, which the tests cite:

 1. A file has its final name in the cache only when its bytes have the pinned digest.
 2. What an interrupted fetch of a pinned file received stays beside it, and the next one asks for the rest.
 3. An origin that is gone, or has other bytes than the pinned ones, is passed over for a mirror; without a mirror it is an error.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

from images.arguments import Command, Key, file_named
from images.auth import AuthFile
from images.build import BUILD_KEYS, cache_from
from images.build_errors import DigestMismatch, ImageError, UnknownChoice, Unreachable
from images.cache import Cache
from images.digest import Digest, file_digest, read_chunks
from images.http_client import Answer, Rest, Silent, ask
from images.lock import LOCK, File, Lock, Packages, read_lock, requirements_digest
from images.registry import Reference, Repository
from images.releases import RELEASES, Target, read_releases

__all__ = ["COMMAND", "Input", "Place", "bring", "fetch", "inputs_of", "on_hub", "on_web", "pin"]

Tell = Callable[[str], None]
_HUB = "https://huggingface.co"
_LARGE = 64 << 20
"""Bytes from which a file is worth a line of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a file may be: `ask_from` asks for its content from an offset on."""

    name: str
    host: str
    ask_from: Callable[[int], Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One pinned file, and the places that may have it, the first best."""

    name: str
    size: int
    digest: Digest
    places: tuple[Place, ...]


def fetch(lock: Lock, target: Target, cache: Cache, model: str = "", tell: Tell = print, *, only: Digest | None = None) -> None:
    """Bring all that building the target's image reads, or the `only` file; what the cache has already is not asked for.

    Raises:
        Unlocked: when an input is not pinned.
        Unreachable: when a file can be had nowhere, with what every place said; what has come by then stays.
    """
    packages = lock.packages_for(target, requirements_digest(target))
    silent: set[str] = set()
    for wanted in inputs_of(lock, target, model, os.environ):
        if only in (None, wanted.digest):
            bring(wanted, cache, tell, silent)
    _bring_packages(replace(packages, wheels=tuple(file for file in packages.wheels if only in (None, file.digest))), cache, tell, silent)


def inputs_of(lock: Lock, target: Target, model: str, environment: Mapping[str, str]) -> Iterator[Input]:
    """Yield every file that the target's image reads, but the worker's own packages, which pip brings from the user's index."""
    wheel = lock.wheel(target)
    if wheel:
        yield _input(wheel.file, [on_web(wheel.file.url)] if wheel.file.url else [], wheel.mirrors)
    if model:
        entry = lock.model(model, target.arguments)
        for file in entry.files:
            name = f"{entry.repository}/{file.path}"
            places = (on_hub(entry.repository, entry.commit, file.path, environment), *_on_mirrors(entry.mirrors, file.digest))
            yield Input(name=name, size=file.size, digest=file.digest, places=places)


def bring(wanted: Input, cache: Cache, tell: Tell = print, silent: set[str] | None = None) -> Path:
    """Return the file in the cache that holds the input, brought now if it is not there yet.

    `silent` are hosts that did not answer before; they are passed over, and those that do not answer now join them.

    Raises:
        Unreachable: when no place has it, with what each of them said.
        DigestMismatch: when a place has other bytes than the pinned ones, and no later place has those.
    """
    path = cache.path(wanted.digest)
    said: list[ImageError] = []
    silent = set() if silent is None else silent
    with cache.alone():
        if cache.has(wanted.digest, wanted.size):
            return path
        for place in wanted.places:
            try:
                if place.host in silent:
                    raise Silent(f"{place.name}: {place.host} did not answer before")
                return _bring_from(place, wanted, path, tell)
            except (Unreachable, DigestMismatch) as error:
                said.append(error)
                silent |= {place.host} if isinstance(error, Silent) else set()
    kind = next((type(error) for error in said if isinstance(error, DigestMismatch)), Unreachable)
    problems = "".join(f"\n  {error}" for error in said) or " has no address; pin it again with `just lock`"
    raise kind(f"{wanted.name} ({wanted.digest}, {wanted.size} bytes): expected at one of {len(said)} places:{problems}")


def pin(place: Place, size: int, cache: Cache, tell: Tell = print) -> Digest:
    """Receive a file of which only the size is known into the cache, and return its digest.

    Raises:
        Unreachable: when the place has no such file, or one of another size.
    """
    with cache.alone():
        part = cache.root / "sha256" / f"{Digest.of(place.name.encode()).hex}.part"
        part.unlink(missing_ok=True)  # nothing tells whether what is there now is what an earlier try has received a part of
        digest = _receive(place, size, part, tell)
        part.replace(cache.path(digest))
    return digest


def _bring_from(place: Place, wanted: Input, path: Path, tell: Tell) -> Path:
    part = path.with_name(f"{path.name}.part")
    found = _receive(place, wanted.size, part, tell)
    if found != wanted.digest:
        part.unlink()
        raise DigestMismatch(f"{place.name}: has {found}, expected {wanted.digest}; it is not the file that was pinned")
    part.replace(path)
    return path


def _receive(place: Place, size: int, part: Path, tell: Tell) -> Digest:
    """Fill `part`, beginning where an earlier try broke off (rule 2), and return the digest of the whole."""
    sha = hashlib.sha256()
    with part.open("ab+") as file:
        file.seek(0)
        for piece in read_chunks(file):
            sha.update(piece)
        have = file.tell()
        if size - have >= _LARGE:
            tell(f"fetching {place.name} ({size / 1e9:.2f} GB{f', {have / 1e9:.2f} of them here already' if have else ''})")
        if have < size:
            with Rest(place.ask_from, size, place.name, offset=have) as body:
                for piece in read_chunks(body):  # type: ignore[arg-type]  # raw, as the reader wants it
                    file.write(piece)
                    sha.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return Digest(sha.hexdigest())


def on_web(url: str) -> Place:
    """Return the place that an address is."""
    return Place(name=url, host=urlsplit(url).netloc, ask_from=lambda offset: ask(url, offset=offset))


def on_hub(repository: str, commit: str, path: str, environment: Mapping[str, str]) -> Place:
    """Return the place of a model's file on the hub, or on the one that HF_ENDPOINT names."""
    url = f"{(environment.get('HF_ENDPOINT') or _HUB).rstrip('/')}/{repository}/resolve/{commit}/{quote(path)}"
    token = environment.get("HF_TOKEN", "")
    secret = {"Authorization": f"Bearer {token}"} if token else {}
    return Place(
        name=url,
        host=urlsplit(url).netloc,
        ask_from=lambda offset: ask(url, headers={"Accept-Encoding": "identity"}, secret=secret, offset=offset),
    )


def _on_mirrors(mirrors: Sequence[str], digest: Digest) -> Iterator[Place]:
    for mirror in mirrors:
        repository = Repository(Reference.parse(mirror), AuthFile.find(os.environ))
        yield Place(name=f"{mirror}@{digest}", host=repository.reference.registry, ask_from=partial(repository.blob, digest))


def _input(file: File, origins: list[Place], mirrors: Sequence[str]) -> Input:
    return Input(name=file.name, size=file.size, digest=file.digest, places=(*origins, *_on_mirrors(mirrors, file.digest)))


def _bring_packages(packages: Packages, cache: Cache, tell: Tell, silent: set[str]) -> None:
    """Bring the worker's packages: pip asks the user's index for all that are missing, and the mirrors have the rest."""
    missing = [file for file in packages.wheels if not cache.has(file.digest, file.size)]
    if not missing:
        return
    tell(f"fetching {len(missing)} packages of the worker ({sum(file.size for file in missing) / 1e6:.0f} MB)")
    failed = ""
    with cache.alone(), tempfile.TemporaryDirectory(prefix="images-", dir=cache.root) as folder:
        try:
            from images.index import download_wheels  # and with it pip's ways, which a full cache does not need

            download_wheels([_requirement(file) for file in missing], Path(folder), packages.python)
        except Unreachable as error:
            failed = str(error)
        for path in Path(folder).iterdir():
            digest, _ = file_digest(path)
            path.replace(cache.path(digest))
    if failed and not packages.mirrors:
        raise Unreachable(failed)
    for file in missing:
        bring(_input(file, [], packages.mirrors), cache, tell, silent)


def _requirement(file: File) -> str:
    project, version = file.name.split("-")[:2]
    return f"{project}=={version} --hash=sha256:{file.digest.hex}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run(values: Mapping[str, str]) -> int:
    releases = read_releases(file_named(values["releases"]) if values["releases"] else RELEASES)
    target = releases.target(values["arch"], values["release"], values["cuda"])
    lock = read_lock(file_named(values["lock"]) if values["lock"] else LOCK)
    cache = cache_from(values)
    try:
        only = Digest.parse(values["only"]) if values["only"] else None
    except ValueError as error:
        raise UnknownChoice(f"only: {error}") from None
    fetch(lock, target, cache, values["model"], _say, only=only)
    if only and not cache.path(only).is_file():
        raise UnknownChoice(f"only: got {only}, expected a file that the image of {target.arguments} reads")
    return 0


COMMAND = Command(
    name="fetch",
    help="Bring the pinned inputs of an image into the cache, from their origin or from a mirror.",
    # Those of `build`, so that both take the same words.
    keys=(
        *BUILD_KEYS,
        Key("only", "The digest of the one file to bring; empty brings all."),
    ),
    run=_run,
)
