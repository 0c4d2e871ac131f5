"""Apply an image's layers to the system that this runs in: for builders that know only `docker build`.

The files, their paths and their modes are those of `build`, from the same plan. The base is not read from a registry: FastDeploy's files
are found in the system itself. What the lock pins is taken as pinned, and the rest as it is today: `build` is for an image that can be
built again bit for bit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from images.arguments import Command, Key
from images.build_errors import BadSource, DigestMismatch, UnknownChoice, Unlocked, nearest
from images.contents import LayerPlan, engine_layer, image_environment, model_layers, packages_layer, worker_layers
from images.context import IMAGE_KEYS, QUANTIZATION, Context, Tell, say
from images.digest import CHUNK, Digest, canonical_json, file_digest
from images.entries import LayerEntry, ordered
from images.fetch import fetch
from images.lock_entries import Base, Blob, Replaced
from images.resolve import resolve_model, resolve_packages, resolve_wheel
from images.tar import EPOCH
from images.wheels import owned_paths
from images.worker_layers import worker_entries

__all__ = ["COMMAND", "apply_image", "apply_layer"]

T = TypeVar("T")
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


def apply_layer(entries: Iterable[LayerEntry], root: Path) -> None:
    """Remove what a layer's whiteouts hide below `root`, and write its other entries.

    Raises:
        DigestMismatch: when a content is not the pinned one.
    """
    found = ordered(entries, "this image")
    whiteouts = [entry for entry in found if Path(entry.path).name.startswith(_WHITEOUT)]
    for entry in whiteouts:
        for path in _hidden_by(root / entry.path):
            _remove(path)
    for entry in found:
        if entry not in whiteouts:
            _write(entry, root / entry.path)


def _hidden_by(whiteout: Path) -> list[Path]:
    """Return what a whiteout hides: one name beside it, or all that its folder holds."""
    if whiteout.name != _OPAQUE:
        return [whiteout.with_name(whiteout.name.removeprefix(_WHITEOUT))]
    return list(whiteout.parent.iterdir()) if whiteout.parent.is_dir() else []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(entry: LayerEntry, path: Path) -> None:
    if entry.open is None:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with entry.open() as content, path.open("wb") as file:
        shutil.copyfileobj(content, file, CHUNK)
    got, _ = file_digest(path)
    if entry.digest not in (None, got):
        raise DigestMismatch(f"{entry.source or 'this image'}: {entry.path}: got {got}, expected {entry.digest}; run the command again")
    path.chmod(0o755 if entry.executable else 0o644)
    os.utime(path, (EPOCH, EPOCH))


def _installed(root: Path, site_packages: str) -> tuple[Replaced, ...]:
    """Return the distributions of FastDeploy that are installed below `root`."""
    found = []
    for record in sorted((root / site_packages.strip("/")).glob("fastdeploy*.dist-info/RECORD")):
        project, _, version = record.parent.name.removesuffix(".dist-info").partition("-")
        paths = owned_paths(record.read_text(encoding="utf-8"), site_packages)
        found.append(Replaced(name=project.replace("_", "-"), version=version, paths=paths))
    return tuple(found)


def _base(reference: str, replaced: tuple[Replaced, ...]) -> Base:
    """Return a base for a plan: its name and its FastDeploy, without layers, since those are the system itself."""
    config = canonical_json({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}})
    descriptor = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(Digest.of(config)), "size": len(config)}
    manifest = canonical_json({"schemaVersion": 2, "config": descriptor, "layers": []})
    blobs = [Blob(digest=Digest.of(data), text=data.decode()) for data in (manifest, config)]
    return Base(reference=reference, manifest=blobs[0], config=blobs[1], layers=(), replaced=replaced)


def apply_image(context: Context, parts: Iterable[str], root: Path, tell: Tell = say) -> None:
    """Apply parts of the image that the context asks for to `root`.

    Raises:
        ImageError: as `lock`, `fetch` and `build` do, or when the container's variables are not those of the image.
    """
    _check_environment(context, os.environ)
    root.mkdir(parents=True, exist_ok=True)
    for part in parts:
        for layer in _PARTS[part](context, root, tell):
            tell(f"applying {layer.title}")
            with layer.entries(lambda _: None) as entries:
                apply_layer(entries, root)


def _dependencies(context: Context, root: Path, tell: Tell) -> Iterator[LayerPlan]:
    """Yield the layers of FastDeploy, where the base's own does not cover the architecture, and of what the worker imports."""
    target, cache, lock = context.target, context.cache, context.lock()
    replaced = _installed(root, target.site_packages)
    if target.engine == "fastdeploy" and not replaced:
        raise BadSource(f"{root}: no FastDeploy in {target.site_packages}; expected this to run in {target.base}")
    wheel = _pinned_or(lambda: lock.wheel(target), lambda: resolve_wheel(target, cache, tell))
    packages = resolve_packages(target, lock, cache, tell)
    fetch([*([wheel] if wheel else []), packages], cache, tell)
    if wheel:
        yield engine_layer(context.spec, _base(target.base, replaced), wheel.file, cache)
    yield packages_layer(context.spec, packages, cache)


def _model(context: Context, _: Path, tell: Tell) -> Iterator[LayerPlan]:
    """Yield the layers of the model, if there is one."""
    spec, cache, lock = context.spec, context.cache, context.lock()
    if spec.model:
        model = _pinned_or(
            lambda: lock.model(spec.model, spec.revision), lambda: resolve_model(spec.model, spec.revision, cache, os.environ, tell)
        )
        fetch([model], cache, tell)
        yield from model_layers(spec, model, cache)


def _worker(context: Context, _: Path, __: Tell) -> Iterator[LayerPlan]:
    """Yield the layers of the worker's code."""
    yield from worker_layers(worker_entries(context.target.engine))


_PARTS: dict[str, Callable[[Context, Path, Tell], Iterator[LayerPlan]]] = {
    "dependencies": _dependencies,
    "model": _model,
    "worker": _worker,
}
"""The stages of .runpod/Dockerfile, and their layers."""


def _check_environment(context: Context, environment: Mapping[str, str]) -> None:
    """Check the variables that the Dockerfile sets: a worker believes them, and a wrong one would let it start on a wrong GPU."""
    wrong = [
        f"{name}: got {environment.get(name)!r}, expected {value!r} in an image for {context.spec.arguments}"
        for name, value in image_environment(context.target).items()
        if environment.get(name) != value
    ]
    if wrong:
        raise UnknownChoice(
            "\n".join([*wrong, "give --build-arg ARCH, ARCHITECTURES, RELEASE, FASTDEPLOY_RELEASE and PYTHON that fit together"])
        )


def _pinned_or(look_up: Callable[[], T], resolve: Callable[[], T]) -> T:
    try:
        return look_up()
    except Unlocked:
        return resolve()


def _part(text: str) -> None:
    if text not in _PARTS:
        raise UnknownChoice(f"got {text!r}, expected one of {', '.join(_PARTS)}{nearest(text, _PARTS)}")


def _run(values: Mapping[str, str]) -> int:
    apply_image(Context.of(values), [values["part"]] if values["part"] else _PARTS, Path(values["root"]))
    return 0


COMMAND = Command(
    name="apply",
    help="Apply an image's layers to the base that this runs in, as .runpod/Dockerfile does.",
    keys=(
        *IMAGE_KEYS,
        QUANTIZATION,
        Key("part", "The stage of the Dockerfile: dependencies, model or worker; empty means all.", check=_part),
        Key("root", "The folder that stands for the image's root.", default="/"),
    ),
    run=_run,
)
