"""The plan of an image: its layers from the bottom to the top, its environment and its labels, before anything is written.

    base        referenced: its layers stay in the registry
    engine      the FastDeploy that replaces the base's own, where that does not cover the architecture
    packages    what the worker imports, in a folder of its own
    model       one layer for each large file, the small files together
    settings    which model to serve, and how
    worker      the code, last, a few files to a layer: an edit changes one small layer

A layer's recipe holds all that its bytes are made from, so a layer with a known recipe is not built again (`Cache.known_layer`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from images.build_errors import BadSource, Missing, TooLarge, UnknownChoice, nearest
from images.cache import Cache
from images.digest import Count, Digest, canonical_json
from images.entries import LayerEntry, with_parents
from images.image import ContainerConfig
from images.lock import VERSION, Lock, requirements_digest
from images.lock_entries import Base, File, LockedModel, ModelFile, Packages
from images.model_layers import FOLDER as MODELS
from images.model_layers import groups, model_entries, settings_entries
from images.releases import Releases, Target
from images.schema import read_toml
from images.tar import tar_size
from images.worker_layers import FOLDER, RESERVED, TREE, worker_entries, worker_groups

__all__ = [
    "BAKED_ENVIRONMENT",
    "LAYERS",
    "SIZE",
    "ImagePlan",
    "ImageSpec",
    "LayerPlan",
    "check_spec",
    "engine_layer",
    "image_environment",
    "model_layers",
    "packages_layer",
    "plan_image",
    "worker_layers",
]

LAYERS = 127
"""Layers that Docker's overlay driver stacks."""

SIZE = 80 * 10**9
"""Bytes of an image that RunPod takes (its limit is 80 GB)."""

_DIRECTORY = "/worker"
"""Where a container starts."""

BAKED_ENVIRONMENT = {"BAKED_MODELS": f"/{MODELS}", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""Variables of an image with a model: it holds all that it serves, so no start depends on the hub."""

_USER = re.compile(r"[a-z_0-9][a-z0-9_.-]*(:[a-z_0-9][a-z0-9_.-]*)?")
_PROJECT = TREE / "pyproject.toml"
_MAKERS = ("entries", "model_layers", "tar", "wheels", "worker_layers")
"""The modules that a layer's bytes depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """The image that a user asks for."""

    target: Target
    model: str = ""
    """A repository to bake; empty bakes none."""
    revision: str = ""
    """The model's branch, tag or commit; empty means the one in the lock."""
    quantization: str = ""
    commit: str = ""
    """The label org.opencontainers.image.revision; empty means a digest of the worker's files."""
    user: str = ""
    """The user that a container runs as; empty means the base's, which is root."""
    words: str = ""
    """The user's own arguments, for the commands that errors suggest; empty means those of the target and the model."""

    @property
    def arguments(self) -> str:
        """Return the arguments that mean this image on a command line."""
        return self.words or self.target.arguments + (f" model={self.model}" if self.model else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One layer of ours."""

    title: str
    recipe: Mapping[str, Any]
    """What its bytes are made from, as JSON."""
    size: int
    """The size of its wheels or files in bytes, which is about that of the layer."""
    entries: Callable[[Count], AbstractContextManager[list[LayerEntry]]]
    """Yields the layer's entries, whose contents can be read until the context ends; bytes that are hashed before are counted."""
    missing: Callable[[], list[str]] = list
    """One sentence for each input that is not in the cache."""

    @property
    def key(self) -> Digest:
        """Return the digest of the recipe and of the code that builds the layer."""
        return Digest.of(canonical_json({"recipe": dict(self.recipe), "code": str(_code())}))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """An image before it is written."""

    base: Base
    layers: tuple[LayerPlan, ...]
    container: ContainerConfig


def plan_image(spec: ImageSpec, releases: Releases, lock: Lock, cache: Cache, *, tree: Path = TREE) -> ImagePlan:
    """Return the plan of an image; `tree` is the folder of the worker's packages.

    Raises:
        Unlocked: for inputs that are not pinned, with the command that pins them.
        UnknownChoice, BadSource, TooLarge: for an image that is not possible.
    """
    target = spec.target
    check_spec(spec)
    pinned = lock.pinned(target, requirements_digest(target), spec.model, spec.revision, spec.arguments)
    files = worker_entries(target.engine, tree)
    layers = [
        *([engine_layer(spec, pinned.base, pinned.wheel.file, cache)] if pinned.wheel else []),
        packages_layer(spec, pinned.packages, cache),
        *(model_layers(spec, pinned.model, cache) if pinned.model else []),
        *worker_layers(files),
    ]
    _check_limits(pinned.base, layers)
    container = ContainerConfig(
        # -I and -S hide the base's own packages from the worker, and -B writes no bytecode.
        entrypoint=(target.interpreter, "-I", "-S", "-B", f"/{FOLDER}"),
        directory=_DIRECTORY,
        environment=image_environment(target) | (BAKED_ENVIRONMENT if pinned.model else {}),
        labels=_labels(releases, pinned.base, spec.commit or str(Digest.of(canonical_json(_inline(files))))),
        user=spec.user,
    )
    return ImagePlan(base=pinned.base, layers=tuple(layers), container=container)


def check_spec(spec: ImageSpec) -> None:
    """Check what can be checked before an input is resolved or fetched.

    Raises:
        UnknownChoice: for a quantization that the engine does not have, or that has no model, and for a user that is none.
    """
    value, known = spec.quantization, spec.target.quantizations
    if value and not spec.model:
        raise UnknownChoice(f"quantization: got {value!r} without a model; give model=org/name, or set QUANTIZATION on the endpoint")
    if value and value not in known:
        expected = f"expected one of {', '.join(known)}{nearest(value, known)}" if known else "but the CPU engine has none: leave it out"
        raise UnknownChoice(f"quantization: got {value!r}, {expected}")
    if spec.revision and not spec.model:
        raise UnknownChoice(f"revision: got {spec.revision!r} without a model; give model=org/name")
    if spec.user and not _USER.fullmatch(spec.user):
        raise UnknownChoice(f"user: got {spec.user!r}, expected a number or a name of the image, with :GROUP if needed, such as 1000:1000")


def engine_layer(spec: ImageSpec, base: Base, file: File, cache: Cache) -> LayerPlan:
    """Return the layer in which an engine wheel replaces the base's FastDeploy.

    Raises:
        BadSource: when the base has none.
    """
    target = spec.target
    old = sorted({path for replaced in base.replaced for path in replaced.paths})
    if not old:
        raise BadSource(
            f"{base.reference}: no FastDeploy in {target.site_packages}, expected one; lock it again: ci/just lock {spec.arguments}"
        )
    packages = target.site_packages.strip("/")
    prefix = str(Path(packages).parents[2])
    find = partial(_find, cache, spec.arguments)

    @contextmanager
    def entries(count: Count) -> Iterator[list[LayerEntry]]:
        from images.wheels import InstallPaths, replacing, wheel_entries  # slow to import, and a push after an edit reads no wheel

        paths = InstallPaths(packages=packages, python=target.python, prefix=prefix, interpreter=target.interpreter)
        with wheel_entries([(file, find(file))], paths, count) as found:
            yield replacing(found, old, paths)

    recipe = {
        "kind": "engine",
        "wheel": [file.name, str(file.digest)],
        "old": old,
        "place": [packages, prefix, target.python, target.interpreter],
    }
    return LayerPlan(title=f"engine {file.name}", recipe=recipe, size=file.size, entries=entries, missing=partial(_missing, find, [file]))


def packages_layer(spec: ImageSpec, packages: Packages, cache: Cache) -> LayerPlan:
    """Return the layer of what the worker imports."""
    target = spec.target
    wheels = sorted(packages.wheels, key=lambda wheel: wheel.name)
    find = partial(_find, cache, spec.arguments)

    @contextmanager
    def entries(count: Count) -> Iterator[list[LayerEntry]]:
        from images.wheels import InstallPaths, wheel_entries

        paths = InstallPaths(packages=FOLDER, python=target.python, reserved=RESERVED)
        with wheel_entries([(wheel, find(wheel)) for wheel in wheels], paths, count) as found:
            yield with_parents(found)

    recipe = {"kind": "packages", "wheels": [[wheel.name, str(wheel.digest)] for wheel in wheels], "place": [FOLDER, target.python]}
    size = sum(wheel.size for wheel in wheels)
    title = f"packages of the worker ({len(wheels)} wheels)"
    return LayerPlan(title=title, recipe=recipe, size=size, entries=entries, missing=partial(_missing, find, wheels))


def model_layers(spec: ImageSpec, model: LockedModel, cache: Cache) -> Iterator[LayerPlan]:
    """Yield the layers of a baked model, and the one of its settings."""
    find = partial(_find, cache, spec.arguments)
    parts = groups(model)
    for number, files in enumerate(parts, 1):
        ordered = sorted(files, key=lambda file: file.path.encode())
        recipe = {
            "kind": "model",
            "model": [model.repository, model.commit],
            "files": [[file.path, file.size, str(file.digest)] for file in ordered],
        }
        title = f"model {model.repository} {number}/{len(parts)} ({ordered[0].path if len(ordered) == 1 else f'{len(ordered)} files'})"
        entries = partial(_given, partial(model_entries, model, ordered, find))
        size = sum(file.size for file in files)
        yield LayerPlan(title=title, recipe=recipe, size=size, entries=entries, missing=partial(_missing, find, ordered))
    found = settings_entries(model, spec.quantization)
    title = f"settings {model.repository}" + (f" {spec.quantization}" if spec.quantization else "")
    yield LayerPlan(
        title=title,
        recipe={"kind": "settings", "entries": _inline(found)},
        size=tar_size(found),
        entries=partial(_given, partial(list, found)),
    )


def worker_layers(files: list[LayerEntry]) -> Iterator[LayerPlan]:
    """Yield the layers of the worker's code."""
    parts = worker_groups(files)
    for number, part in enumerate(parts, 1):
        recipe = {"kind": "worker", "entries": _inline(part)}
        yield LayerPlan(
            title=f"worker {number}/{len(parts)}", recipe=recipe, size=tar_size(part), entries=partial(_given, partial(list, part))
        )


def _inline(entries: list[LayerEntry]) -> list[list[str]]:
    return sorted([entry.path, str(entry.digest)] for entry in entries)


def _find(cache: Cache, arguments: str, file: File | ModelFile) -> Path:
    return cache.find(file.digest, file.size, file.name if isinstance(file, File) else file.path, arguments)


def _missing(find: Callable[[Any], Path], files: Sequence[File | ModelFile]) -> list[str]:
    problems = []
    for file in files:
        try:
            find(file)
        except Missing as error:
            problems.append(str(error))
    return problems


@contextmanager
def _given(entries: Callable[[], list[LayerEntry]], _: Count) -> Iterator[list[LayerEntry]]:
    yield entries()


def image_environment(target: Target) -> dict[str, str]:
    """Return the variables that tell the worker what its image is; `handler.settings` has their meaning."""
    if target.engine == "cpu":
        return {"ENGINE": target.engine}
    return {
        "ENGINE": target.engine,
        "ENGINE_PYTHON": target.interpreter,
        "FASTDEPLOY_RELEASE": ".".join(target.release.split(".")[:2]),
        "IMAGE_ARCHITECTURES": ",".join(name.removeprefix("sm") for name in target.covers),
        "IMAGE_CUDA": target.cuda,
    }


def _labels(releases: Releases, base: Base, revision: str) -> dict[str, str]:
    prefix = "org.opencontainers.image."
    found = {
        "source": releases.source,
        "revision": revision,
        "version": str(read_toml(_PROJECT)["project"]["version"]),
        "licenses": releases.licenses,
        "base.name": base.reference,
        "base.digest": str(base.manifest.digest),
    }
    return {prefix + name: value for name, value in found.items() if value}


def _check_limits(base: Base, layers: list[LayerPlan]) -> None:
    count = len(base.layers) + len(layers)
    if count > LAYERS:
        raise TooLarge(f"layers: got {count} ({len(base.layers)} of the base), expected at most {LAYERS}; bake a smaller model, or none")
    size = sum(layer.size for layer in base.layers) + sum(layer.size for layer in layers)
    if size > SIZE:
        limit = f"{SIZE / 10**9:.0f}, which RunPod takes"
        raise TooLarge(f"size: got {size / 10**9:.1f} GB, expected at most {limit}; bake a smaller model, or none and set MODEL")


@lru_cache(maxsize=1)
def _code() -> Digest:
    paths = [*(Path(__file__).with_name(f"{name}.py") for name in _MAKERS), _path_of("installer")]
    return Digest.of(b"\0".join([*(path.read_bytes() for path in paths), str(VERSION).encode()]))


def _path_of(package: str) -> Path:
    """Return a package's first file without importing the package; `installer` has its version there."""
    spec = find_spec(package)
    assert spec is not None  # noqa: S101  # for the type checker: it is locked
    assert spec.origin is not None  # noqa: S101
    return Path(spec.origin)
