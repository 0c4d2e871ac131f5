"""The rows of the lock: a base image, an engine wheel that replaces a base's own, the worker's packages, a model.

A row refuses what cannot be right in itself: a text that has another digest, layers that the manifest does not list, a path that leaves its
folder, an address that is not one of the web. Its key says which row of the lock a new one replaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from images.digest import Digest, parse_json
from images.releases import check_reference

__all__ = [
    "Base",
    "Blob",
    "EngineWheel",
    "File",
    "LockEntry",
    "LockedLayer",
    "LockedModel",
    "ModelFile",
    "Packages",
    "Replaced",
    "layers_of",
]

_MIRROR = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+", re.ASCII)
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PYTHON = re.compile(r"\d\.\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A JSON document of a registry, byte for byte: `text` is what was received, and `digest` is that of its UTF-8 bytes."""

    digest: Digest
    text: str

    def __post_init__(self) -> None:
        got = Digest.of(self.data)
        if got != self.digest:
            raise ValueError(f"digest: got {self.digest}, expected {got}, the digest of the text")
        if not isinstance(parse_json(self.text), dict):
            raise ValueError("text: expected a JSON object")  # noqa: TRY004  # a problem of the text

    @property
    def data(self) -> bytes:
        """Return the bytes as they were received."""
        return self.text.encode()

    @property
    def json(self) -> dict[str, Any]:
        """Return what the text holds."""
        return dict(parse_json(self.text))


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedLayer:
    """A layer of a base: the digest and size of the registry's blob, and the digest of the tar in it."""

    digest: Digest
    size: int
    diff_id: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """A distribution in the base that an engine wheel replaces."""

    name: str
    """As its metadata says, such as fastdeploy-gpu."""
    version: str
    paths: tuple[str, ...]
    """What to remove: absolute paths of folders that belong to the distribution alone (its packages, its dist-info), and of single files
    elsewhere (its scripts). `wheels.owned_paths` finds them in its RECORD."""

    def __post_init__(self) -> None:
        for path in self.paths:
            if not path.startswith("/") or not _is_plain(path[1:]):
                raise ValueError(f"paths: got {path!r}, expected an absolute path without . and ..")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What a registry had as `reference`, for linux/amd64, when it was locked. Key: reference."""

    reference: str
    """Registry, repository and tag as releases.toml has them; it goes into the label org.opencontainers.image.base.name."""
    manifest: Blob
    """The image's own manifest (Docker's schema 2 or OCI's), never an index of several platforms."""
    config: Blob
    layers: tuple[LockedLayer, ...]
    """The layers of manifest and config, bottom first; written out for a reader of the file, and checked against both."""
    replaced: tuple[Replaced, ...] = ()
    """The distributions named fastdeploy-gpu or fastdeploy in the base."""
    mirrors: tuple[str, ...] = ()
    """Repositories that have its blobs as well: registry/repository."""

    def __post_init__(self) -> None:
        check_reference(self.reference)
        _check_mirrors(self.mirrors)
        try:
            layers = layers_of(self.manifest.json, self.config.json)
            config = self.manifest.json["config"]["digest"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"manifest: expected an image's manifest and its config ({type(error).__name__}: {error})") from None
        if config != str(self.config.digest):
            raise ValueError(f"config: got {self.config.digest}, expected {config}, which the manifest names")
        if layers != self.layers:
            raise ValueError("layers: got others than those of manifest and config")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file that the build reads, by name and content."""

    name: str
    size: int
    digest: Digest
    url: str = ""
    """Its origin; empty for a file from the package index or the hub."""

    def __post_init__(self) -> None:
        if not _is_plain(self.name) or "/" in self.name:
            raise ValueError(f"name: got {self.name!r}, expected the name of a file")
        if self.size < 0:
            raise ValueError(f"size: got {self.size}, expected 0 or more")
        if self.url and not _is_web_address(self.url):
            raise ValueError(f"url: got {self.url!r}, expected an address of http or https without a user name")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineWheel:
    """The FastDeploy that replaces a base's own. Key: release, CUDA version and architectures."""

    release: str
    cuda: str
    architectures: tuple[str, ...]
    """As releases.toml lists them for the wheel's index."""
    file: File
    mirrors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_mirrors(self.mirrors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """The wheels that the worker imports, for one Python on linux/amd64. Key: engine and Python."""

    engine: Literal["fastdeploy", "cpu"]
    python: str
    """Such as 3.10."""
    requirements: Digest
    """Of the requirements.lock that they were chosen from: the row is out of date when that file has another digest."""
    wheels: tuple[File, ...]
    mirrors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_mirrors(self.mirrors)
        if not _PYTHON.fullmatch(self.python):
            raise ValueError(f"python: got {self.python!r}, expected a version such as 3.10")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of a model's repository."""

    path: str
    """In the repository, with / between folders."""
    size: int
    digest: Digest

    def __post_init__(self) -> None:
        if not _is_plain(self.path):
            raise ValueError(f"path: got {self.path!r}, expected a relative path without . and ..")


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedModel:
    """The files of a model at one commit that an engine needs (`checkpoint.files.wanted`). Key: repository."""

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
        if not _REVISION.fullmatch(self.revision):
            raise ValueError(f"revision: got {self.revision!r}, expected a branch, a tag or a commit")


LockEntry = Base | EngineWheel | Packages | LockedModel


def layers_of(manifest: dict[str, Any], config: dict[str, Any]) -> tuple[LockedLayer, ...]:
    """Return the layers of an image's manifest and config, bottom first.

    Raises:
        KeyError, TypeError, ValueError: when they are not a manifest and a config, or do not fit each other.
    """
    blobs, diff_ids = manifest["layers"], config["rootfs"]["diff_ids"]
    if len(blobs) != len(diff_ids):
        raise ValueError(f"the manifest has {len(blobs)} layers and the config {len(diff_ids)}")
    return tuple(
        LockedLayer(digest=Digest.parse(blob["digest"]), size=int(blob["size"]), diff_id=Digest.parse(diff_id))
        for blob, diff_id in zip(blobs, diff_ids, strict=True)
    )


def _check_mirrors(mirrors: Iterable[str]) -> None:
    for mirror in mirrors:
        if not _MIRROR.fullmatch(mirror):
            raise ValueError(f"mirrors: got {mirror!r}, expected registry/repository")


def _is_plain(path: str) -> bool:
    """Return whether a relative path stays in its folder."""
    return not {"", ".", ".."} & set(path.split("/")) and "\\" not in path and "\0" not in path


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
