"""Which releases of FastDeploy exist, and which architectures have an image.

releases = read_releases()                       # images/releases.toml
target = releases.target("sm89")                 # the default release, its default CUDA version
target = releases.target("sm86", release="2.5.0", cuda="12.9")
target = releases.target("sm89", release="2.3.3", base="registry.example.com/vendor/fastdeploy-cuda-12.6:2.3.3")
target.base, target.wheels, target.covers        # what the image is made from, and the architectures it serves
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from images.build_errors import UnknownChoice, nearest
from images.schema import read_table

__all__ = ["RELEASES", "Build", "Cpu", "Release", "Releases", "Target", "Wheels", "check_reference", "read_releases"]

RELEASES = Path(__file__).with_name("releases.toml")

_REFERENCE = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+:\w[\w.-]{0,127}", re.ASCII)
_ARCHITECTURE = re.compile(r"sm\d{2,3}")
_MINOR = re.compile(r"\d+\.\d+\.(?=\d+(rc\d+|\.post\d+)?$)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One of a release's base images."""

    cuda: str
    """Such as 12.6."""
    base: str
    """Registry, repository and tag: what the label base.name says, and the lock's key of the base."""

    def __post_init__(self) -> None:
        check_reference(self.base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheels:
    """A build of FastDeploy for other architectures, which replaces the base's own."""

    architectures: tuple[str, ...]
    """The architectures that the build covers, such as sm86 and sm89."""
    index: str
    """Address of the package index that has it as fastdeploy-gpu, in the release's version."""

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
    """The base of the image without a GPU: any image with a Python that the worker runs on."""

    base: str
    python: str
    interpreter: str
    site_packages: str

    def __post_init__(self) -> None:
        check_reference(self.base)
        _check_paths(self.interpreter, self.site_packages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One image that can be made, as `Releases.target` puts it together."""

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
    """The build of FastDeploy that replaces the base's own; None where the base's own covers the architecture."""
    quantizations: tuple[str, ...]

    @property
    def arguments(self) -> str:
        """Return the arguments that name this target on a command line, such as "arch=sm89 release=2.3.0 cuda=12.6"."""
        return f"arch={self.architecture}" + (f" release={self.release} cuda={self.cuda}" if self.release else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Releases:
    """The content of releases.toml."""

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

    def target(self, architecture: str, release: str = "", cuda: str = "", base: str = "") -> Target:
        """Return the image for an architecture; an empty release or CUDA version means the default one.

        `base` names another base image. With it, the release may be one that releases.toml lacks: such a release is like the one of the
        same minor version that releases.toml has.

        Raises:
            UnknownChoice: when it is not possible, with the choices that are.
        """
        known = sorted({target.architecture for target in self.targets()})
        if architecture not in known:
            raise UnknownChoice(f"arch: got {architecture!r}, expected one of {', '.join(known)}{nearest(architecture, known)}")
        if architecture == "cpu":
            if release or cuda:
                raise UnknownChoice(
                    f"arch=cpu: got {release and 'release'}{cuda and ' cuda'}, but the cpu image holds no FastDeploy: leave it out"
                )
            return _cpu(replace(self.cpu, base=_reference(base)) if base else self.cpu)
        chosen = self._similar(release) if base and release else self.release(release or self.default)
        builds = [build for build in chosen.builds if cuda in ("", build.cuda)]
        if not builds or architecture not in _architectures(chosen):
            asked = f"arch={architecture} release={chosen.name}" + (f" cuda={cuda}" if cuda else "")
            raise UnknownChoice(f"{asked}: there is no such image; expected one of\n{self._possible()}")
        build = replace(builds[0], base=_reference(base)) if base else builds[0]
        return _target(chosen, build, architecture)

    def release(self, name: str) -> Release:
        """Return the release of that name.

        Raises:
            UnknownChoice: with those that exist.
        """
        names = [release.name for release in self.releases]
        if name not in names:
            raise UnknownChoice(f"release: got {name!r}, expected one of {', '.join(names)}{nearest(name, names)}{self._hint(name)}")
        return self.releases[names.index(name)]

    def _hint(self, name: str) -> str:
        """Return how to build a release that releases.toml lacks."""
        try:
            similar = self._similar(name)
        except UnknownChoice:
            return ""
        repository = similar.builds[0].base.rpartition(":")[0]
        return f"; another one needs the base image that holds it, probably base={repository}:{name}"

    def _similar(self, name: str) -> Release:
        """Return the release of that name, or one like the release of the same minor version."""
        minor = _MINOR.match(name)
        found = [release for release in self.releases if release.name == name or (minor and release.name.startswith(minor.group()))]
        if not minor or not found:
            minors = ", ".join(sorted({release.name.rpartition(".")[0] for release in self.releases}))
            raise UnknownChoice(f"release: got {name!r}, expected a version of one of {minors}, which releases.toml describes")
        return replace(next((release for release in found if release.name == name), found[0]), name=name)

    def _possible(self) -> str:
        rows = ((release, build) for release in self.releases for build in release.builds)
        lines = [f"  release={release.name} cuda={build.cuda} arch={'|'.join(_architectures(release))}" for release, build in rows]
        return "\n".join([*lines, "  arch=cpu"])


def read_releases(path: Path = RELEASES) -> Releases:
    """Return the content of a file like releases.toml.

    Raises:
        InvalidFile: with every problem of the file.
    """
    return read_table(Releases, path)


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


def _reference(text: str) -> str:
    """Return the base that a user names."""
    try:
        check_reference(text)
    except ValueError as error:
        raise UnknownChoice(str(error)) from None
    return text


def check_reference(text: str) -> None:
    """Raise ValueError for what does not name a base image in the way of releases.toml and the lock."""
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
