"""What one pinned input is: a base image, a FastDeploy that replaces a base's own, the worker's packages, a model.

Each is a row of images.lock.json (`lock`), and refuses what cannot be true of it: a text whose digest is another, layers that the manifest
does not tell, a path that is not absolute. Its key says which row a new one replaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from images.digest import Digest

__all__ = ["Base", "Blob", "EngineWheel", "Entry", "File", "Layer", "Model", "ModelFile", "Packages", "Replaced", "layers_of"]

_MIRROR = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9._-]+)+")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A JSON document of a registry, byte for byte: its text is what was received, and `digest` is that of its UTF-8 bytes."""

    digest: Digest
    text: str

    def __post_init__(self) -> None:
        got = Digest.of(self.data)
        if got != self.digest:
            raise ValueError(f"digest: got {self.digest}, expected {got}, which the text beside it has")
        if not _is_object(self.text):
            raise ValueError("text: expected a JSON object")

    @property
    def data(self) -> bytes:
        """Return the bytes as they were received."""
        return self.text.encode()

    @property
    def json(self) -> dict[str, Any]:
        """Return what the bytes say."""
        return dict(json.loads(self.text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of a base: the digest and size of the blob that the registry holds, and the digest of the tar in it."""

    digest: Digest
    size: int
    diff_id: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """A distribution that the base holds and an engine wheel replaces."""

    name: str
    """As its metadata says, such as fastdeploy-gpu."""
    version: str
    paths: tuple[str, ...]
    """All that is to vanish: absolute paths in the base of folders that are wholly the distribution's (its packages, its dist-info) and of
    single files elsewhere (its scripts). `wheels.owned_paths` finds them in its RECORD."""

    def __post_init__(self) -> None:
        for path in self.paths:
            if not path.startswith("/") or "//" in path or {"..", "."} & set(path.split("/")):
                raise ValueError(f"paths: got {path!r}, expected an absolute path without . and ..")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base image: what a registry calls `reference` was this, for linux/amd64, when it was locked. Key: reference."""

    reference: str
    """Registry, repository and tag as releases.toml has them; it goes into the label org.opencontainers.image.base.name."""
    manifest: Blob
    """The image's own manifest (Docker's schema 2 or OCI's), never an index of several platforms."""
    config: Blob
    layers: tuple[Layer, ...]
    """As manifest and config say, bottom first; written out for the reader, and checked against both."""
    replaced: tuple[Replaced, ...] = ()
    """The distributions named fastdeploy-gpu or fastdeploy that were found in it; empty where it holds none."""
    mirrors: tuple[str, ...] = ()
    """Where its blobs are as well: registry/repository."""

    def __post_init__(self) -> None:
        _check_mirrors(self.mirrors)
        try:
            told = layers_of(self.manifest.json, self.config.json)
            config = self.manifest.json["config"]["digest"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"manifest: expected an image's manifest and its config ({type(error).__name__}: {error})") from None
        if config != str(self.config.digest):
            raise ValueError(f"config: got {self.config.digest}, expected {config}, which the manifest names")
        if told != self.layers:
            raise ValueError("layers: got others than manifest and config tell")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file that the build reads, by name and content."""

    name: str
    size: int
    digest: Digest
    url: str = ""
    """Where it was; empty for what the installer's default index or the hub has."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name in (".", ".."):
            raise ValueError(f"name: got {self.name!r}, expected a file's name")
        if self.size < 0:
            raise ValueError(f"size: got {self.size}, expected 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineWheel:
    """The FastDeploy that replaces a base's own. Key: release, CUDA and architectures."""

    release: str
    cuda: str
    architectures: tuple[str, ...]
    """As releases.toml says of the index."""
    file: File
    mirrors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_mirrors(self.mirrors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """The wheels of what the worker imports, for one Python on linux/amd64. Key: engine and Python."""

    engine: Literal["fastdeploy", "cpu"]
    python: str
    """Such as 3.10."""
    requirements: Digest
    """Of the requirements.lock that they were chosen from (`requirements`): another one means that this entry is out of date."""
    wheels: tuple[File, ...]
    mirrors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_mirrors(self.mirrors)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of a model's repository."""

    path: str
    """In the repository, with / between folders."""
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model's files at one commit: those that an engine needs (`checkpoint.files.wanted`). Key: repository."""

    repository: str
    """Such as org/name."""
    revision: str
    """The branch, tag or commit that was asked for."""
    commit: str
    files: tuple[ModelFile, ...]
    mirrors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_mirrors(self.mirrors)
        if not _REPOSITORY.fullmatch(self.repository):
            raise ValueError(f"repository: got {self.repository!r}, expected org/name")
        if not _COMMIT.fullmatch(self.commit):
            raise ValueError(f"commit: got {self.commit!r}, expected 40 hexadecimal digits")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", self.revision) or {".", ".."} & set(self.revision.split("/")):
            raise ValueError(f"revision: got {self.revision!r}, expected a branch, a tag or a commit")


Entry = Base | EngineWheel | Packages | Model


def layers_of(manifest: dict[str, Any], config: dict[str, Any]) -> tuple[Layer, ...]:
    """Return the layers that an image's manifest and config tell, bottom first.

    Raises:
        KeyError, TypeError, ValueError: when they are none, or do not fit each other.
    """
    blobs, diff_ids = manifest["layers"], config["rootfs"]["diff_ids"]
    if len(blobs) != len(diff_ids):
        raise ValueError(f"the manifest has {len(blobs)} layers and the config {len(diff_ids)}")
    return tuple(
        Layer(digest=Digest.parse(blob["digest"]), size=int(blob["size"]), diff_id=Digest.parse(diff_id))
        for blob, diff_id in zip(blobs, diff_ids, strict=True)
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _check_mirrors(mirrors: Iterable[str]) -> None:
    for mirror in mirrors:
        if not _MIRROR.fullmatch(mirror):
            raise ValueError(f"mirrors: got {mirror!r}, expected registry/repository")
