"""What is pinned: every input of every image by its SHA-256, in images.lock.json.

    lock = read_lock()                        # images/images.lock.json
    base = lock.base(target)                  # `target` from images.releases
    wheel = lock.wheel(target)                # None where the base's own FastDeploy serves
    packages = lock.packages_for(target, requirements_digest(target))
    model = lock.model("org/name")
    write_lock(path, lock.having(base))       # replaces what has the same key, or adds it

Each of the four raises Unlocked with the exact `just lock` command when the input is not pinned. The file is versioned and canonical: keys
and entries are sorted, so the same entries are the same bytes, and `Lock.parse(text).text() == text` for any text that was written here.

Addresses are hints, digests are the truth: an input may come from its origin, from any of its `mirrors` (registry/repository, where it is a
blob of that digest), or from the cache on this disk, and is always checked. No token, user name or path of a machine is ever written here.
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
from images.digest import Digest, file_digest
from images.locked import Base, Blob, EngineWheel, Entry, File, Layer, Model, ModelFile, Packages, Replaced, layers_of
from images.releases import Target
from images.schema import decode, encode

__all__ = [
    "LOCK",
    "VERSION",
    "Base",
    "Blob",
    "EngineWheel",
    "Entry",
    "File",
    "Layer",
    "Lock",
    "Model",
    "ModelFile",
    "Packages",
    "Replaced",
    "layers_of",
    "read_lock",
    "requirements",
    "requirements_digest",
    "write_lock",
]

LOCK = Path(__file__).with_name("images.lock.json")
VERSION = 1
"""The version of the file's form, and of the bytes that are built from it: a change to either changes it."""

_TREE = Path(__file__).resolve().parent.parent
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """All that is pinned."""

    version: int = VERSION
    bases: tuple[Base, ...] = ()
    wheels: tuple[EngineWheel, ...] = ()
    packages: tuple[Packages, ...] = ()
    models: tuple[Model, ...] = ()

    def __post_init__(self) -> None:
        for name, entries in self._tables().items():
            keys = [_key(entry) for entry in entries]
            twice = sorted({" ".join(key) for key in keys if keys.count(key) > 1})
            if twice:
                raise ValueError(f"{name}: {', '.join(twice)} comes twice")

    @classmethod
    def parse(cls, text: str, name: str = "images.lock.json") -> Lock:
        """Return the lock that `text` writes; `name` is what errors call it.

        Raises:
            InvalidFile: with every problem of the text, or because its version is not known.
        """
        value = _parsed(text)
        version = value.get("version") if isinstance(value, dict) else None
        if version != VERSION or isinstance(version, bool):
            raise InvalidFile(name, [f"version: got {version!r}, expected {VERSION}; write it again with `just lock`"])
        problems: list[str] = []
        found = decode(cls, value, problems)
        if found is None or problems:
            raise InvalidFile(name, problems)
        return found

    def text(self) -> str:
        """Return the canonical text."""
        tables: dict[str, Any] = {name: tuple(sorted(entries, key=_key)) for name, entries in self._tables().items()}
        return json.dumps(encode(dataclasses.replace(self, **tables)), ensure_ascii=True, indent=1, sort_keys=True) + "\n"

    def having(self, *entries: Entry) -> Lock:
        """Return this lock with these entries in the place of those that have the same key."""
        tables: dict[str, Any] = {}
        for name, old in self._tables().items():
            new = {_key(entry): entry for entry in (*old, *(entry for entry in entries if _table_of(entry) == name))}
            tables[name] = tuple(new[key] for key in sorted(new))
        return dataclasses.replace(self, **tables)

    def base(self, target: Target) -> Base:
        """Return the target's base, or raise Unlocked."""
        return _found(self.bases, lambda base: base.reference == target.base, f"the base {target.base}", target.arguments)

    def wheel(self, target: Target) -> EngineWheel | None:
        """Return the FastDeploy that replaces the base's own, None where that serves, or raise Unlocked."""
        if target.wheels is None:
            return None
        key = (target.release, target.cuda, *sorted(target.wheels.architectures))
        what = f"FastDeploy {target.release} for {' and '.join(target.wheels.architectures)}"
        return _found(self.wheels, lambda wheel: _key(wheel) == key, what, target.arguments)

    def packages_for(self, target: Target, requirements: Digest) -> Packages:
        """Return the worker's own packages for the target's Python, chosen from the requirements of that digest, or raise Unlocked."""
        what = f"the worker's packages for Python {target.python} (engine {target.engine})"
        chosen = _found(self.packages, lambda entry: (entry.engine, entry.python) == (target.engine, target.python), what, target.arguments)
        if chosen.requirements != requirements:
            changed = f"locked from requirements {chosen.requirements}, which are now {requirements}"
            raise Unlocked(f"{what}: {changed}; pin them again with `just lock {target.arguments}`")
        return chosen

    def model(self, repository: str, arguments: str = "") -> Model:
        """Return the model, or raise Unlocked; `arguments` are the target's, for the command."""
        wanted = f"{arguments} model={repository}".strip()
        return _found(self.models, lambda model: model.repository == repository, f"the model {repository}", wanted)

    def _tables(self) -> dict[str, tuple[Entry, ...]]:
        return {"bases": self.bases, "wheels": self.wheels, "packages": self.packages, "models": self.models}


_lock_of = lru_cache(maxsize=1)(Lock.parse)
"""The steps of one command all read the same lock."""


def read_lock(path: Path = LOCK) -> Lock:
    """Return the lock in a file.

    Raises:
        InvalidFile: when it cannot be read, with every problem otherwise.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile(str(path), [f"cannot be read ({error})"]) from None
    return _lock_of(text, str(path))


def write_lock(path: Path, lock: Lock) -> None:
    """Write the lock to a file, at once or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(lock.text(), encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def requirements(target: Target) -> Path:
    """Return the requirements.lock that the worker's packages in the target's image are chosen from."""
    return _TREE / ("cpu_engine" if target.engine == "cpu" else "handler") / "requirements.lock"


def requirements_digest(target: Target) -> Digest:
    """Return the digest of those requirements as they are now."""
    return file_digest(requirements(target))[0]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _key(entry: Entry) -> tuple[str, ...]:
    if isinstance(entry, Base):
        return (entry.reference,)
    if isinstance(entry, EngineWheel):
        return (entry.release, entry.cuda, *sorted(entry.architectures))
    return (entry.engine, entry.python) if isinstance(entry, Packages) else (entry.repository,)


def _table_of(entry: Entry) -> str:
    return {Base: "bases", EngineWheel: "wheels", Packages: "packages", Model: "models"}[type(entry)]


def _found(entries: Iterable[T], fits: Callable[[T], bool], what: str, arguments: str) -> T:
    for entry in entries:
        if fits(entry):
            return entry
    raise Unlocked(f"{what}: not in the lock; pin it with `just lock {arguments}`")
