"""Pin the inputs of an image: ask hub, registry and package index what they have today, and write each answer to the lock.

The hub is asked first, since it answers in a second and a misspelt model is the most likely error. Every entry is written as soon as it is
known, so that an error or Ctrl-C later loses nothing. Where no digest is published, the file is received and hashed, and stays in the cache
for the build: nothing is pinned that was not seen. HF_TOKEN comes from the environment and goes to the hub only.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from checkpoint.hub import Hub, list_files
from checkpoint.progress import size_text
from checkpoint.unavailable import ModelUnavailable
from images.arguments import Command
from images.auth import AuthFile
from images.build_errors import BadSource, UnknownChoice, Unlocked, Unreachable
from images.cache import Cache
from images.context import IMAGE_KEYS, Context, Tell, say
from images.digest import Digest, file_digest
from images.download import on_hub, on_web, pin, size_at
from images.index import download_wheels, locked_requirements, wheel_address
from images.lock import Lock, requirements, requirements_digest
from images.lock_entries import Base, Blob, EngineWheel, File, LockedModel, LockEntry, ModelFile, Packages, layers_of
from images.registry import ImageReference, RegistryRepository
from images.releases import Target
from images.scan import find_engine

__all__ = ["COMMAND", "pin_all", "pin_missing", "resolve_base", "resolve_model", "resolve_packages", "resolve_wheel"]

_PROJECT = "fastdeploy-gpu"


def pin_all(context: Context, tell: Tell = say) -> None:
    """Resolve all inputs of an image, and write them to the lock.

    Raises:
        Unreachable, BadSource: when an input cannot be had; what was resolved before is in the lock then.
    """
    context.check_writable()
    for resolve in _resolvers(context, tell).values():
        _keep(context, resolve())


def pin_missing(context: Context, tell: Tell = say) -> None:
    """Resolve those inputs of an image that the lock does not pin, and write them to the lock.

    Raises:
        Unreachable, BadSource: when an input cannot be had; what was resolved before is in the lock then.
    """
    target, spec, lock = context.target, context.spec, context.lock()
    look_ups: dict[str, Callable[[], object]] = {
        "model": lambda: lock.model(spec.model, spec.revision),
        "base": lambda: lock.base(target),
        "engine": lambda: lock.wheel(target),
        "packages": lambda: lock.packages_for(target, requirements_digest(target)),
    }
    names = {
        "model": f"model {spec.model}",
        "base": f"base {target.base}",
        "engine": f"FastDeploy {target.release}",
        "packages": "the worker's packages",
    }
    for kind, resolve in _resolvers(context, tell).items():
        try:
            look_ups[kind]()
        except Unlocked:
            context.check_writable()
            tell(f"pinning {names[kind]} as of today, in {context.lock_file}")
            _keep(context, resolve())


def _resolvers(context: Context, tell: Tell) -> dict[str, Callable[[], LockEntry | None]]:
    """Return what resolves each input of an image, in the order to do it."""
    target, spec, cache = context.target, context.spec, context.cache
    model = {"model": lambda: resolve_model(spec.model, spec.revision, cache, os.environ, tell)} if spec.model else {}
    return {
        **model,
        "base": lambda: resolve_base(target, context.lock(), tell),
        "engine": lambda: resolve_wheel(target, cache, tell),
        "packages": lambda: resolve_packages(target, context.lock(), cache, tell),
    }


def _keep(context: Context, entry: LockEntry | None) -> None:
    if entry is not None:
        context.keep(_with_mirrors(entry, context.lock()))


def resolve_base(target: Target, known: Lock, tell: Tell = say) -> Base:
    """Return what the registry has as the target's base today; the layers of a base that has not changed are not read again.

    Raises:
        Unreachable: when the registry does not answer.
        BadSource: when the base is not an image for linux/amd64, or lacks the FastDeploy that it should hold.
    """
    reference = ImageReference.parse(target.base)
    repository = RegistryRepository(reference, AuthFile.find(os.environ))
    manifest = repository.manifest(reference.tag, reference.digest)
    old = next((base for base in known.bases if base.reference == target.base), None)
    if old and old.manifest.digest == manifest.digest:
        tell(f"{target.base}: unchanged, {manifest.digest}")
        return old
    try:
        config = repository.small_blob(Digest.parse(manifest.parsed()["config"]["digest"]))
        blobs = Blob(digest=manifest.digest, text=manifest.data.decode()), Blob(digest=Digest.of(config), text=config.decode())
        layers = layers_of(blobs[0].json, blobs[1].json)
    except (KeyError, TypeError, ValueError) as error:
        raise BadSource(f"{target.base}: {manifest.digest} is not an image's manifest ({type(error).__name__}: {error})") from None
    replaced = find_engine(repository, layers, target.site_packages, tell) if target.engine == "fastdeploy" else ()
    found = Base(reference=target.base, manifest=blobs[0], config=blobs[1], layers=layers, replaced=replaced)
    _check_release(found, target)
    tell(f"{target.base}: {manifest.digest}, {len(layers)} layers, {size_text(sum(layer.size for layer in layers))}")
    return found


def resolve_wheel(target: Target, cache: Cache, tell: Tell = say) -> EngineWheel | None:
    """Return the FastDeploy that replaces the base's own, received into the cache; None where the base's own serves.

    Raises:
        Unreachable: when the index has no such release, with the releases that it has.
    """
    if target.wheels is None:
        return None
    url = wheel_address(target.wheels.index, _PROJECT, target.release, target.python)
    location = on_web(url)
    size = size_at(location)
    if not size:
        raise Unreachable(f"{location.name}: the server announces no size of the wheel; use another index, or a mirror of it")
    name = unquote(PurePosixPath(urlsplit(url).path).name)
    digest = pin(location, size, cache, tell)
    tell(f"{name}: {digest}, {size_text(size)}")
    file = File(name=name, size=size, digest=digest, url=url)
    return EngineWheel(release=target.release, cuda=target.cuda, architectures=tuple(sorted(target.wheels.architectures)), file=file)


def resolve_packages(target: Target, known: Lock, cache: Cache, tell: Tell = say) -> Packages:
    """Return the wheels of the worker's packages for the target's Python, received into the cache from the user's index.

    Requirements name every wheel by its digest: while they are unchanged the wheels are, and no index is asked.

    Raises:
        Unreachable: when one of them cannot be had, with pip's own error.
    """
    pinned = requirements_digest(target)
    for old in known.packages:
        if (old.engine, old.python, old.requirements) == (target.engine, target.python, pinned):
            tell(f"the worker's packages for Python {target.python}: unchanged, {len(old.wheels)} wheels")
            return old
    wanted = list(locked_requirements(requirements(target).read_text(encoding="utf-8"), target.python))
    tell(f"fetching the worker's {len(wanted)} packages for Python {target.python} from the package index")
    with cache.alone(), tempfile.TemporaryDirectory(prefix="images-", dir=cache.root) as temporary:
        folder = Path(temporary, "wheels")
        folder.mkdir()
        download_wheels(wanted, folder, target.python, tell=tell)
        wheels = []
        for path in sorted(folder.iterdir()):
            digest, size = file_digest(path)
            path.replace(cache.path(digest))
            wheels.append(File(name=path.name, size=size, digest=digest))
    tell(f"the worker's packages for Python {target.python}: {len(wheels)} wheels, {size_text(sum(file.size for file in wheels))}")
    return Packages(engine=target.engine, python=target.python, requirements=pinned, wheels=tuple(wheels))


def resolve_model(repository: str, revision: str, cache: Cache, environment: Mapping[str, str], tell: Tell = say) -> LockedModel:
    """Return the model's files at the commit that the revision means today; an empty revision means main.

    Large files are pinned by the SHA-256 that the hub publishes, small ones are received into the cache and hashed.

    Raises:
        Unreachable: when the hub does not answer, or has no such model for this token.
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
    tell(f"{repository}: commit {listing.commit}, {len(files)} files, {size_text(sum(file.size for file in files))}")
    try:
        return LockedModel(repository=repository, revision=revision or "main", commit=listing.commit, files=tuple(files))
    except ValueError as error:
        raise UnknownChoice(f"model={repository} revision={revision}: {error}") from None


def _check_release(base: Base, target: Target) -> None:
    for held in base.replaced:
        if held.version.partition("+")[0] != target.release:
            raise BadSource(
                f"{base.reference}: holds {held.name} {held.version}, expected {target.release}: correct the base in releases.toml"
            )


def _with_mirrors(entry: LockEntry, known: Lock) -> LockEntry:
    """Return the entry with the mirrors that the lock has for the same content."""
    every: tuple[LockEntry, ...] = (*known.bases, *known.wheels, *known.packages, *known.models)
    return next((old for old in every if replace(old, mirrors=()) == entry), entry)


def _run(values: Mapping[str, str]) -> int:
    context = Context.of(values)
    pin_all(context)
    print(context.lock_file)
    return 0


COMMAND = Command(name="lock", help="Pin the inputs of an image as they are today, in the lock.", keys=IMAGE_KEYS, run=_run)
