"""What exists: releases of FastDeploy, and the architectures that images can be made for.

releases = read_releases()                       # images/releases.toml
target = releases.target("sm89")                 # the default release, its default CUDA
target = releases.target("sm86", release="2.5.0", cuda="12.9")
target.base, target.wheels, target.covers        # from what the image is made, and which GPUs it serves
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from images.build_errors import InvalidFile, UnknownChoice, nearest
from images.schema import decode

__all__ = ["RELEASES", "Build", "Cpu", "Release", "Releases", "Target", "Wheels", "read_releases", "read_table", "read_toml"]

RELEASES = Path(__file__).with_name("releases.toml")

_REFERENCE = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9._-]+)+:[\w][\w.-]{0,127}")
_ARCHITECTURE = re.compile(r"sm\d{2,3}")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One of a release's base images."""

    cuda: str
    """Such as 12.6."""
    base: str
    """Registry, repository and tag: what the label base.name says, and the lock's key of the base."""

    def __post_init__(self) -> None:
        _check_reference(self.base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheels:
    """Where the build of FastDeploy is that replaces a base's own."""

    architectures: tuple[str, ...]
    """What that build covers, such as sm86 and sm89."""
    index: str
    """Address of a package index that has it as fastdeploy-gpu, in the release's version."""

    def __post_init__(self) -> None:
        _check_architectures("architectures", self.architectures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release of FastDeploy."""

    name: str
    """Such as 2.3.0."""
    paddle: str
    """The version of paddlepaddle-gpu that it was built with."""
    python: str
    """The base's Python, such as 3.10."""
    interpreter: str
    """Its absolute path in the base."""
    site_packages: str
    """The absolute path in the base under which FastDeploy is installed."""
    prebuilt: tuple[str, ...]
    """The architectures that the base's own FastDeploy covers."""
    quantizations: tuple[str, ...]
    """The values that its --quantization takes."""
    builds: tuple[Build, ...]
    """One for each CUDA version, the default one first."""
    wheels: Wheels | None = None

    def __post_init__(self) -> None:
        _check_architectures("prebuilt", self.prebuilt)
        if not self.builds:
            raise ValueError("builds: got none, expected at least one")
        _check_paths(self.interpreter, self.site_packages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The base of the image without a GPU: any Python that the worker runs on."""

    base: str
    python: str
    interpreter: str
    site_packages: str

    def __post_init__(self) -> None:
        _check_reference(self.base)
        _check_paths(self.interpreter, self.site_packages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One image that can be made: what `Releases.target` found to belong together."""

    architecture: str
    """sm80, sm86, sm89, sm90 or cpu."""
    engine: Literal["fastdeploy", "cpu"]
    release: str
    """FastDeploy's, such as 2.3.0; empty for cpu."""
    cuda: str
    """Such as 12.6; empty for cpu."""
    covers: tuple[str, ...]
    """The architectures that the image serves, at least `architecture`; none for cpu."""
    base: str
    """The base's reference: registry, repository and tag."""
    python: str
    interpreter: str
    site_packages: str
    wheels: Wheels | None
    """Where the FastDeploy is that replaces the base's own; None where the base's own covers the architecture."""
    quantizations: tuple[str, ...]

    @property
    def arguments(self) -> str:
        """Return the arguments of the commands that mean this target, such as "arch=sm89 release=2.3.0 cuda=12.6"."""
        return f"arch={self.architecture}" + (f" release={self.release} cuda={self.cuda}" if self.release else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Releases:
    """All that exists, as releases.toml tells it."""

    default: str
    licenses: str
    source: str
    releases: tuple[Release, ...]
    cpu: Cpu

    def __post_init__(self) -> None:
        names = [release.name for release in self.releases]
        if self.default not in names:
            raise ValueError(f"default: got {self.default!r}, expected one of {', '.join(names)}")
        if len(set(names)) < len(names):
            raise ValueError(f"releases: a name comes twice in {', '.join(names)}")

    def targets(self) -> tuple[Target, ...]:
        """Return every image that can be made, the default release's first."""
        ordered = sorted(self.releases, key=lambda release: release.name != self.default)
        choices = ((release, build, name) for release in ordered for build in release.builds for name in _architectures(release))
        return (*(_target(*choice) for choice in choices), _cpu(self.cpu))

    def target(self, architecture: str, release: str = "", cuda: str = "") -> Target:
        """Return the image for an architecture; an empty release or CUDA version means the default one.

        Raises:
            UnknownChoice: when it is not possible, with those that are.
        """
        known = sorted({target.architecture for target in self.targets()})
        if architecture not in known:
            raise UnknownChoice(f"arch: got {architecture!r}, expected one of {', '.join(known)}{nearest(architecture, known)}")
        if architecture == "cpu":
            if release or cuda:
                raise UnknownChoice(
                    f"arch=cpu: got {release and 'release'}{cuda and ' cuda'}, but the cpu image holds no FastDeploy: leave it out"
                )
            return _cpu(self.cpu)
        chosen = self.release(release or self.default)
        builds = [build for build in chosen.builds if cuda in ("", build.cuda)]
        if not builds or architecture not in _architectures(chosen):
            asked = f"arch={architecture} release={chosen.name}" + (f" cuda={cuda}" if cuda else "")
            raise UnknownChoice(f"{asked}: there is no such image; expected one of\n{self._possible()}")
        return _target(chosen, builds[0], architecture)

    def release(self, name: str) -> Release:
        """Return the release of that name.

        Raises:
            UnknownChoice: with those that exist.
        """
        names = [release.name for release in self.releases]
        if name not in names:
            raise UnknownChoice(f"release: got {name!r}, expected one of {', '.join(names)}{nearest(name, names)}")
        return self.releases[names.index(name)]

    def _possible(self) -> str:
        rows = ((release, build) for release in self.releases for build in release.builds)
        lines = [f"  release={release.name} cuda={build.cuda} arch={'|'.join(_architectures(release))}" for release, build in rows]
        return "\n".join([*lines, "  arch=cpu"])


def read_releases(path: Path = RELEASES) -> Releases:
    """Return what `path`, a file like releases.toml, says that exists.

    Raises:
        InvalidFile: with every problem of the file.
    """
    return read_table(Releases, path)


def read_table(kind: type[T], path: Path) -> T:
    """Return the `kind` that a TOML file holds.

    Raises:
        InvalidFile: with every problem of the file.
    """
    problems: list[str] = []
    found = decode(kind, read_toml(path), problems)
    if found is None or problems:
        raise InvalidFile(str(path), problems)
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file.

    Raises:
        InvalidFile: when it cannot be read, or is not TOML.
    """
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InvalidFile(str(path), [str(error)]) from None


def _architectures(release: Release) -> list[str]:
    return sorted({*release.prebuilt, *(release.wheels.architectures if release.wheels else ())})


def _target(release: Release, build: Build, architecture: str) -> Target:
    wheels = release.wheels if architecture not in release.prebuilt else None
    return Target(
        architecture=architecture,
        engine="fastdeploy",
        release=release.name,
        cuda=build.cuda,
        covers=wheels.architectures if wheels else release.prebuilt,
        base=build.base,
        python=release.python,
        interpreter=release.interpreter,
        site_packages=release.site_packages,
        wheels=wheels,
        quantizations=release.quantizations,
    )


def _cpu(cpu: Cpu) -> Target:
    return Target(
        architecture="cpu",
        engine="cpu",
        release="",
        cuda="",
        covers=(),
        base=cpu.base,
        python=cpu.python,
        interpreter=cpu.interpreter,
        site_packages=cpu.site_packages,
        wheels=None,
        quantizations=(),
    )


def _check_reference(text: str) -> None:
    if not _REFERENCE.fullmatch(text):
        raise ValueError(f"base: got {text!r}, expected registry/repository:tag")


def _check_architectures(field: str, names: Iterable[str]) -> None:
    for name in names:
        if not _ARCHITECTURE.fullmatch(name):
            raise ValueError(f"{field}: got {name!r}, expected a name such as sm89")


def _check_paths(*paths: str) -> None:
    for path in paths:
        if not path.startswith("/") or path != str(Path(path)):
            raise ValueError(f"got {path!r}, expected an absolute path such as /usr/bin/python3.10")
