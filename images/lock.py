"""The lock, images/images.lock.json: every input of every image, pinned by its SHA-256.

    lock = read_lock()
    pinned = lock.pinned(target, requirements_digest(target), model="org/name")     # what one image is made of
    write_lock(path, lock.having(pinned.base))                                     # replaces the row with the same key, or adds it

The file is canonical: the same rows (`lock_entries`) are the same bytes. Every problem of a file is found before the first is reported.

Addresses are hints and digests are the truth: an input may come from its origin, from one of its `mirrors`, or from the cache, and is
checked each time. The lock holds no token, user name or path of a machine.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from images.build_errors import InvalidFile, Unlocked
from images.digest import Digest, file_digest, parse_json
from images.lock_entries import Base, EngineWheel, LockedModel, LockEntry, Packages
from images.releases import Target
from images.schema import decode, encode

__all__ = ["LOCK", "VERSION", "Lock", "Pinned", "read_lock", "requirements", "requirements_digest", "write_lock"]

LOCK = Path(__file__).with_name("images.lock.json")
VERSION = 1
"""The version of the file's form, and of the bytes that are built from it: a change of either needs another number."""

_TREE = Path(__file__).resolve().parent.parent
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """The rows of one image."""

    base: Base
    wheel: EngineWheel | None
    """None where the base's own FastDeploy covers the architecture."""
    packages: Packages
    model: LockedModel | None

    @property
    def entries(self) -> tuple[LockEntry, ...]:
        """Return the rows there are."""
        return tuple(entry for entry in (self.base, self.wheel, self.packages, self.model) if entry is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """All rows."""

    version: int = VERSION
    bases: tuple[Base, ...] = ()
    wheels: tuple[EngineWheel, ...] = ()
    packages: tuple[Packages, ...] = ()
    models: tuple[LockedModel, ...] = ()

    def __post_init__(self) -> None:
        for name, entries in self._tables().items():
            keys = [_key(entry) for entry in entries]
            twice = sorted({" ".join(key) for key in keys if keys.count(key) > 1})
            if twice:
                raise ValueError(f"{name}: {', '.join(twice)} comes twice")

    @classmethod
    def parse(cls, text: str, name: str = "images.lock.json") -> Lock:
        """Return the lock that `text` holds; errors call the text `name`.

        Raises:
            InvalidFile: with every problem of the text, or because its version is not known.
        """
        try:
            value = parse_json(text)
        except ValueError as error:
            raise InvalidFile(name, [f"cannot be read as JSON ({error}); remove the file and run `ci/just lock` again"]) from None
        version = value.get("version") if isinstance(value, dict) else None
        if version != VERSION or isinstance(version, bool):
            raise InvalidFile(name, [f"version: got {version!r}, expected {VERSION}; remove the file and run `ci/just lock` again"])
        problems: list[str] = []
        found = decode(cls, value, problems)
        if found is None or problems:
            raise InvalidFile(name, problems)
        return found

    def text(self) -> str:
        """Return the canonical text."""
        tables: dict[str, Any] = {name: tuple(sorted(entries, key=_key)) for name, entries in self._tables().items()}
        return json.dumps(encode(dataclasses.replace(self, **tables)), ensure_ascii=True, indent=1, sort_keys=True) + "\n"

    def having(self, *entries: LockEntry) -> Lock:
        """Return this lock with these rows, which replace those that have the same key."""
        tables: dict[str, Any] = {}
        for name, old in self._tables().items():
            new = {_key(entry): entry for entry in (*old, *(entry for entry in entries if _table_of(entry) == name))}
            tables[name] = tuple(new[key] for key in sorted(new))
        return dataclasses.replace(self, **tables)

    def pinned(self, target: Target, requirements: Digest, model: str = "", revision: str = "", words: str = "") -> Pinned:
        """Return the rows of the target's image, with a model if one is named; `requirements` is their digest as they are now.

        `words` are the arguments that mean this image on the command line that errors suggest.

        Raises:
            Unlocked: naming every input that is not pinned, and the command that pins them.
        """
        problems: list[str] = []

        def found(look_up: Callable[[], T]) -> T | None:
            try:
                return look_up()
            except Unlocked as error:
                problems.append(str(error))
                return None

        base = found(lambda: self.base(target))
        wheel = found(lambda: self.wheel(target))
        packages = found(lambda: self.packages_for(target, requirements))
        chosen = found(lambda: self.model(model, revision)) if model else None
        if problems or base is None or packages is None:
            arguments = words or target.arguments + (f" model={model}" if model else "")
            raise Unlocked(f"{'; '.join(problems)}; pin with `ci/just lock {arguments}`")
        return Pinned(base=base, wheel=wheel, packages=packages, model=chosen)

    def base(self, target: Target) -> Base:
        """Return the target's base, or raise Unlocked."""
        return _found(self.bases, lambda base: base.reference == target.base, f"the base {target.base}")

    def wheel(self, target: Target) -> EngineWheel | None:
        """Return the FastDeploy that replaces the base's own, None where the base's own serves, or raise Unlocked."""
        if target.wheels is None:
            return None
        key = (target.release, target.cuda, *sorted(target.wheels.architectures))
        what = f"FastDeploy {target.release} for {' and '.join(target.wheels.architectures)}"
        return _found(self.wheels, lambda wheel: _key(wheel) == key, what)

    def packages_for(self, target: Target, requirements: Digest) -> Packages:
        """Return the worker's packages for the target's Python, chosen from the requirements of that digest, or raise Unlocked."""
        what = f"the worker's packages for Python {target.python} (engine {target.engine})"
        chosen = _found(self.packages, lambda entry: (entry.engine, entry.python) == (target.engine, target.python), what)
        if chosen.requirements != requirements:
            raise Unlocked(f"{what}: locked from requirements {chosen.requirements}, which are now {requirements}")
        return chosen

    def model(self, repository: str, revision: str = "") -> LockedModel:
        """Return the model, at the given revision if there is one, or raise Unlocked."""
        chosen = _found(self.models, lambda model: model.repository == repository, f"the model {repository}")
        if revision not in ("", chosen.revision, chosen.commit):
            raise Unlocked(f"the model {repository}: locked at revision {chosen.revision}, expected {revision}")
        return chosen

    def _tables(self) -> dict[str, tuple[LockEntry, ...]]:
        return {"bases": self.bases, "wheels": self.wheels, "packages": self.packages, "models": self.models}


_lock_of = lru_cache(maxsize=1)(Lock.parse)
"""The commands of one call read the same lock several times."""


def read_lock(path: Path = LOCK) -> Lock:
    """Return the lock in a file.

    Raises:
        InvalidFile: when it cannot be read, or with every problem of its content.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile(str(path), [f"cannot be read ({error})"]) from None
    return _lock_of(text, str(path))


def write_lock(path: Path, lock: Lock) -> None:
    """Write the lock to a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(lock.text(), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def requirements(target: Target) -> Path:
    """Return the requirements.lock that the packages in the target's image are chosen from."""
    return _TREE / ("cpu_engine" if target.engine == "cpu" else "handler") / "requirements.lock"


def requirements_digest(target: Target) -> Digest:
    """Return the digest of those requirements as they are now."""
    return file_digest(requirements(target))[0]


def _key(entry: LockEntry) -> tuple[str, ...]:
    if isinstance(entry, Base):
        return (entry.reference,)
    if isinstance(entry, EngineWheel):
        return (entry.release, entry.cuda, *sorted(entry.architectures))
    return (entry.engine, entry.python) if isinstance(entry, Packages) else (entry.repository,)


def _table_of(entry: LockEntry) -> str:
    return {Base: "bases", EngineWheel: "wheels", Packages: "packages", LockedModel: "models"}[type(entry)]


def _found(entries: Iterable[T], fits: Callable[[T], bool], what: str) -> T:
    for entry in entries:
        if fits(entry):
            return entry
    raise Unlocked(f"{what}: not in the lock")
