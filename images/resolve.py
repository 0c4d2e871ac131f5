"""Pin the inputs of an image: ask registry, package index and hub what they have today, and write it to the lock.

HF_TOKEN comes from the environment and goes to the hub only. Nothing is pinned that was not seen: where no digest is told, the file is
received and hashed, and stays in the cache for the build.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from checkpoint.hub import Hub, list_files
from checkpoint.unavailable import ModelUnavailable
from images.arguments import TARGET_KEYS, Command, Key, file_named
from images.auth import AuthFile
from images.build import cache_from
from images.build_errors import BadSource, UnknownChoice, Unreachable
from images.cache import Cache
from images.digest import Digest, file_digest
from images.fetch import on_hub, on_web, pin
from images.http_client import ask
from images.index import download_wheels, locked_requirements, wheel_address
from images.lock import (
    LOCK,
    Base,
    Blob,
    EngineWheel,
    Entry,
    File,
    Lock,
    Model,
    ModelFile,
    Packages,
    layers_of,
    read_lock,
    requirements,
    requirements_digest,
    write_lock,
)
from images.registry import Reference, Repository
from images.releases import RELEASES, Target, read_releases
from images.scan import find_engine

__all__ = ["COMMAND", "resolve_base", "resolve_model", "resolve_packages", "resolve_wheel"]

Tell = Callable[[str], None]
_PROJECT = "fastdeploy-gpu"


def resolve_base(target: Target, known: Lock, tell: Tell = print) -> Base:
    """Return what the registry has as the target's base today; a base that is unchanged is not read again.

    Raises:
        Unreachable: when the registry could not be asked.
        BadSource: when the base is no image for linux/amd64, or holds no FastDeploy although it should.
    """
    reference = Reference.parse(target.base)
    repository = Repository(reference, AuthFile.find(os.environ))
    manifest = repository.manifest(reference.tag, reference.digest)
    old = next((base for base in known.bases if base.reference == target.base), None)
    if old and old.manifest.digest == manifest.digest:
        tell(f"{target.base}: unchanged, {manifest.digest}")
        return old
    try:
        told = manifest.parsed()
        config = repository.small_blob(Digest.parse(told["config"]["digest"]))
        blobs = Blob(digest=manifest.digest, text=manifest.data.decode()), Blob(digest=Digest.of(config), text=config.decode())
        layers = layers_of(blobs[0].json, blobs[1].json)
    except (KeyError, TypeError, ValueError) as error:
        raise BadSource(f"{target.base}: {manifest.digest} is no image that can be understood ({type(error).__name__}: {error})") from None
    replaced = find_engine(repository, layers, target.site_packages, tell) if target.engine == "fastdeploy" else ()
    found = Base(reference=target.base, manifest=blobs[0], config=blobs[1], layers=layers, replaced=replaced)
    _check_release(found, target)
    size = sum(layer.size for layer in layers)
    tell(f"{target.base}: {manifest.digest}, {len(layers)} layers, {size / 1e9:.2f} GB")
    return found


def resolve_wheel(target: Target, cache: Cache, tell: Tell = print) -> EngineWheel | None:
    """Return the FastDeploy that replaces the base's own, received into the cache; None where the base's serves.

    Raises:
        Unreachable: when the index has no such release; pip's own words say what it has.
    """
    if target.wheels is None:
        return None
    url = wheel_address(target.wheels.index, _PROJECT, target.release, target.python)
    with ask(url) as answer:
        size = int(answer.headers.get("Content-Length") or 0)
    if not size:
        raise Unreachable(f"{url}: the server does not tell how long the wheel is; use another index, or a mirror of it")
    name = unquote(PurePosixPath(urlsplit(url).path).name)
    digest = pin(on_web(url), size, cache, tell)
    tell(f"{name}: {digest}, {size / 1e9:.2f} GB")
    file = File(name=name, size=size, digest=digest, url=url)
    return EngineWheel(release=target.release, cuda=target.cuda, architectures=tuple(sorted(target.wheels.architectures)), file=file)


def resolve_packages(target: Target, known: Lock, cache: Cache, tell: Tell = print) -> Packages:
    """Return the wheels of the worker's own packages for the target's Python, received into the cache from the user's index.

    Requirements name every wheel by its digest, so while they are unchanged the wheels are, and nothing is asked.

    Raises:
        Unreachable: when one of them cannot be had, with pip's own words.
    """
    pinned = requirements_digest(target)
    for old in known.packages:
        if (old.engine, old.python, old.requirements) == (target.engine, target.python, pinned):
            tell(f"the worker's packages for Python {target.python}: unchanged, {len(old.wheels)} wheels")
            return old
    text = requirements(target).read_text(encoding="utf-8")
    with cache.alone(), tempfile.TemporaryDirectory(prefix="images-", dir=cache.root) as folder:
        download_wheels(locked_requirements(text, target.python), Path(folder), target.python)
        wheels = []
        for path in sorted(Path(folder).iterdir()):
            digest, size = file_digest(path)
            path.replace(cache.path(digest))
            wheels.append(File(name=path.name, size=size, digest=digest))
    tell(f"the worker's packages for Python {target.python}: {len(wheels)} wheels, {sum(file.size for file in wheels) / 1e6:.0f} MB")
    return Packages(engine=target.engine, python=target.python, requirements=pinned, wheels=tuple(wheels))


def resolve_model(repository: str, revision: str, cache: Cache, environment: Mapping[str, str], tell: Tell = print) -> Model:
    """Return the model's files at the commit that the revision means today; an empty revision means main.

    Large files are pinned by the SHA-256 that the hub tells, small ones are received into the cache and hashed.

    Raises:
        Unreachable: when the hub could not be asked, or has no such model for this token.
    """
    hub = Hub(endpoint=environment.get("HF_ENDPOINT", ""), token=environment.get("HF_TOKEN", ""))
    try:
        listing = list_files(repository, revision, hub)
    except ModelUnavailable as error:
        raise Unreachable(str(error)) from None
    files = []
    for file in listing.files:
        place = on_hub(repository, listing.commit, file.path, environment)
        digest = Digest(file.sha256) if file.sha256 else pin(place, file.size, cache, tell)
        files.append(ModelFile(path=file.path, size=file.size, digest=digest))
    tell(f"{repository}: commit {listing.commit}, {len(files)} files, {sum(file.size for file in files) / 1e9:.2f} GB")
    try:
        return Model(repository=repository, revision=revision or "main", commit=listing.commit, files=tuple(files))
    except ValueError as error:
        raise UnknownChoice(f"model={repository} revision={revision}: {error}") from None


def _check_release(base: Base, target: Target) -> None:
    for held in base.replaced:
        if held.version.partition("+")[0] != target.release:
            raise BadSource(
                f"{base.reference}: holds {held.name} {held.version}, expected {target.release}: correct the base in releases.toml"
            )


def _with_mirrors(entry: Entry, known: Lock) -> Entry:
    """Return the entry with the mirrors that the lock names for the very same content."""
    every: tuple[Entry, ...] = (*known.bases, *known.wheels, *known.packages, *known.models)
    return next((old for old in every if replace(old, mirrors=()) == entry), entry)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run(values: Mapping[str, str]) -> int:
    target = read_releases(file_named(values["releases"]) if values["releases"] else RELEASES).target(
        values["arch"], values["release"], values["cuda"]
    )
    path = file_named(values["lock"]) if values["lock"] else LOCK
    cache = cache_from(values)
    lock = read_lock(path) if path.exists() else Lock()
    entries: list[Entry | None] = [
        resolve_base(target, lock, _say),
        resolve_wheel(target, cache, _say),
        resolve_packages(target, lock, cache, _say),
        resolve_model(values["model"], values["revision"], cache, os.environ, _say) if values["model"] else None,
    ]
    write_lock(path, lock.having(*(_with_mirrors(entry, lock) for entry in entries if entry is not None)))
    print(path)
    return 0


COMMAND = Command(
    name="lock",
    help="Pin the inputs of an image as they are today, and write them to the lock.",
    keys=(
        *TARGET_KEYS,
        Key("model", "A model that is to be baked in, org/name."),
        Key("revision", "The model's branch, tag or commit; empty means main."),
        Key("cache", "Another folder than dist/cache."),
    ),
    run=_run,
)
