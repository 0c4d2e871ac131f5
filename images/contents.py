"""What an image will be made of: its layers from the bottom to the top, its environment and its labels, before anything is written.

    base        referenced: its layers stay in the registry
    engine      the FastDeploy that replaces the base's own, where that does not cover the architecture
    packages    what the worker imports, in its own tree
    model       one layer for each large file, the small ones together
    settings    which model to serve, and how
    worker      the code, last, a few files to a layer: an edit changes one small layer alone

A layer's recipe is all that its bytes are made of, so the same recipe needs to be cooked but once (`Cache.known_layer`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from images.build_errors import BadSource, Missing, TooLarge, UnknownChoice, nearest
from images.cache import Cache
from images.digest import Digest, canonical_json
from images.entries import Entry, with_parents
from images.install_paths import Place, replacing
from images.lock import VERSION, Base, File, Lock, Model, ModelFile, Packages, requirements_digest
from images.model_layers import FOLDER as MODELS
from images.model_layers import groups, model_entries, settings_entries
from images.releases import Releases, Target, read_toml
from images.tar import tar_size
from images.worker_layers import FOLDER, RESERVED, TREE, worker_entries, worker_groups

__all__ = ["LAYERS", "SIZE", "ImagePlan", "LayerPlan", "Order", "plan_image"]

LAYERS = 127
"""Layers that Docker's overlay driver stacks."""

SIZE = 80 * 10**9
"""Bytes of an image that RunPod takes (its limit is 80 GB)."""

_PROJECT = TREE / "pyproject.toml"
_MAKERS = ("entries", "install_paths", "model_layers", "tar", "wheels", "worker_layers")
"""The modules that decide about a layer's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a person asks for."""

    target: Target
    model: str = ""
    """A repository that the lock has; empty bakes none."""
    quantization: str = ""
    commit: str = ""
    """What the label org.opencontainers.image.revision says; empty means a digest of the worker's files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One layer of ours."""

    title: str
    recipe: Mapping[str, Any]
    """What its bytes are made of, as JSON."""
    size: int
    """Bytes, roughly: those of the wheels or files that it is made of."""
    entries: Callable[[], AbstractContextManager[list[Entry]]]
    missing: Callable[[], list[str]] = list
    """One sentence for each input that is not in the cache."""

    @property
    def key(self) -> Digest:
        """Return the digest of the recipe, and of the code that cooks it."""
        return Digest.of(canonical_json({"recipe": dict(self.recipe), "code": str(_code())}))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """All that an image will be."""

    target: Target
    base: Base
    layers: tuple[LayerPlan, ...]
    environment: Mapping[str, str]
    """What stands above the base's own environment."""
    labels: Mapping[str, str]

    directory: str = "/worker"
    """Where the container starts."""

    @property
    def entrypoint(self) -> list[str]:
        """Return the container's command: -I and -S hide what the base has installed from the worker, and -B writes no bytecode."""
        return [self.target.interpreter, "-I", "-S", "-B", f"/{FOLDER}"]


def plan_image(order: Order, releases: Releases, lock: Lock, cache: Cache, *, tree: Path = TREE) -> ImagePlan:
    """Return what the image will be made of.

    Raises:
        Unlocked: for an input that is not pinned, with the command that pins it.
        UnknownChoice, BadSource, TooLarge: for what does not go together.
    """
    target = order.target
    base = lock.base(target)
    wheel = lock.wheel(target)
    packages = lock.packages_for(target, requirements_digest(target))
    files = worker_entries(target.engine, tree)
    model = lock.model(order.model, target.arguments) if order.model else None
    _check_quantization(order)
    arguments = target.arguments + (f" model={order.model}" if order.model else "")
    layers = [
        *([_engine(target, base, wheel.file, cache, arguments)] if wheel else []),
        _packages(target, packages, cache, arguments),
        *(_model(model, cache, arguments) if model else []),
        *([_settings(model, order.quantization)] if model else []),
        *_worker(files),
    ]
    _check_limits(base, layers)
    return ImagePlan(
        target=target,
        base=base,
        layers=tuple(layers),
        environment=_environment(target, baked=model is not None),
        labels=_labels(releases, base, order.commit or str(Digest.of(canonical_json(_inline(files))))),
    )


def _engine(target: Target, base: Base, file: File, cache: Cache, arguments: str) -> LayerPlan:
    old = sorted({path for replaced in base.replaced for path in replaced.paths})
    if not old:
        raise BadSource(
            f"{base.reference}: got no FastDeploy in {target.site_packages}, expected one to replace; lock it again: just lock {arguments}"
        )
    packages = target.site_packages.strip("/")
    prefix = str(Path(packages).parents[2])
    place = Place(packages=packages, python=target.python, prefix=prefix, interpreter=target.interpreter)

    find = partial(_find, cache, arguments)

    @contextmanager
    def entries() -> Iterator[list[Entry]]:
        from images.wheels import wheel_entries  # and with it what reads wheels: an edit needs neither

        with wheel_entries([(file, find(file))], place) as found:
            yield replacing(found, old, place)

    recipe = {
        "kind": "engine",
        "wheel": [file.name, str(file.digest)],
        "old": old,
        "place": [packages, prefix, target.python, target.interpreter],
    }
    return LayerPlan(title=f"engine {file.name}", recipe=recipe, size=file.size, entries=entries, missing=partial(_missing, find, [file]))


def _packages(target: Target, packages: Packages, cache: Cache, arguments: str) -> LayerPlan:
    place = Place(packages=FOLDER, python=target.python, reserved=RESERVED)
    wheels = sorted(packages.wheels, key=lambda wheel: wheel.name)

    find = partial(_find, cache, arguments)

    @contextmanager
    def entries() -> Iterator[list[Entry]]:
        from images.wheels import wheel_entries

        with wheel_entries([(wheel, find(wheel)) for wheel in wheels], place) as found:
            yield with_parents(found)

    recipe = {"kind": "packages", "wheels": [[wheel.name, str(wheel.digest)] for wheel in wheels], "place": [FOLDER, target.python]}
    size = sum(wheel.size for wheel in wheels)
    title = f"packages of the worker ({len(wheels)} wheels)"
    return LayerPlan(title=title, recipe=recipe, size=size, entries=entries, missing=partial(_missing, find, wheels))


def _model(model: Model, cache: Cache, arguments: str) -> Iterator[LayerPlan]:
    find = partial(_find, cache, arguments)
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


def _settings(model: Model, quantization: str) -> LayerPlan:
    found = settings_entries(model, quantization)
    title = f"settings {model.repository}" + (f" {quantization}" if quantization else "")
    recipe = {"kind": "settings", "entries": _inline(found)}
    return LayerPlan(title=title, recipe=recipe, size=tar_size(found), entries=partial(_given, partial(list, found)))


def _worker(files: list[Entry]) -> Iterator[LayerPlan]:
    parts = worker_groups(files)
    for number, part in enumerate(parts, 1):
        recipe = {"kind": "worker", "entries": _inline(part)}
        yield LayerPlan(
            title=f"worker {number}/{len(parts)}", recipe=recipe, size=tar_size(part), entries=partial(_given, partial(list, part))
        )


def _inline(entries: list[Entry]) -> list[list[str]]:
    return sorted([entry.path, str(entry.digest)] for entry in entries)


def _find(cache: Cache, arguments: str, file: File | ModelFile) -> Path:
    return cache.find(file.digest, file.size, file.name if isinstance(file, File) else file.path, arguments)


def _missing(find: Callable[[Any], Path], files: Sequence[File | ModelFile]) -> list[str]:
    said = []
    for file in files:
        try:
            find(file)
        except Missing as error:
            said.append(str(error))
    return said


@contextmanager
def _given(entries: Callable[[], list[Entry]]) -> Iterator[list[Entry]]:
    yield entries()


def _environment(target: Target, *, baked: bool) -> dict[str, str]:
    """Return what the worker reads of its image: `handler.settings` has their meaning."""
    found: dict[str, str] = {"ENGINE": target.engine}
    if target.engine == "fastdeploy":
        found["ENGINE_PYTHON"] = target.interpreter
        found["FASTDEPLOY_RELEASE"] = ".".join(target.release.split(".")[:2])
        found["IMAGE_ARCHITECTURES"] = ",".join(name.removeprefix("sm") for name in target.covers)
        found["IMAGE_CUDA"] = target.cuda
    if baked:
        # All that is served is in the image: the hub is not asked, whatever the network does.
        found |= {"BAKED_MODELS": f"/{MODELS}", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return found


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


def _check_quantization(order: Order) -> None:
    value, known = order.quantization, order.target.quantizations
    if not value:
        return
    if not order.model:
        raise UnknownChoice(f"quantization: got {value!r} without a model; give model=org/name, or set QUANTIZATION on the endpoint")
    if value not in known:
        expected = f"expected one of {', '.join(known)}{nearest(value, known)}" if known else "but the CPU engine has none: leave it out"
        raise UnknownChoice(f"quantization: got {value!r}, {expected}")


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
    """Return the first file of a package that need not be imported; `installer` has its version there."""
    spec = find_spec(package)
    assert spec is not None  # noqa: S101  # for the type checker: it is locked
    assert spec.origin is not None  # noqa: S101
    return Path(spec.origin)
