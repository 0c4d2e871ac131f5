"""Lay an image's files over the system that this runs in: for builders that know only `docker build`.

The files, their places and their modes are those of `build`, from the same plan. What stands below is not read from a registry but found
here: the FastDeploy that is to be replaced tells its own files. Packages are pinned by their requirements, nothing else is: whoever wants
the same bytes twice uses `build`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from images.arguments import TARGET_KEYS, Command, Key, file_named
from images.build import cache_from
from images.build_errors import BadSource, DigestMismatch
from images.cache import Cache
from images.contents import Order, plan_image
from images.digest import Digest, canonical_json, file_digest, read_chunks
from images.entries import Entry, ordered
from images.fetch import fetch
from images.install_paths import owned_paths
from images.lock import Base, Blob, Lock, Replaced
from images.releases import RELEASES, Releases, read_releases
from images.resolve import resolve_model, resolve_packages, resolve_wheel
from images.tar import EPOCH

__all__ = ["COMMAND", "lay"]

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


def lay(entries: Iterable[Entry], root: Path) -> None:
    """Write a layer's entries below `root`, and remove what its marks hide.

    Raises:
        DigestMismatch: when a content is not the pinned one.
    """
    found = ordered(entries, "this image")
    marks = [entry for entry in found if Path(entry.path).name.startswith(_WHITEOUT)]
    for mark in marks:
        for path in _hidden_by(root / mark.path):
            _remove(path)
    for entry in found:
        if entry not in marks:
            _write(entry, root / entry.path)


def _hidden_by(mark: Path) -> list[Path]:
    """Return what a mark hides: one name beside it, or all that its folder holds."""
    if mark.name != _OPAQUE:
        return [mark.with_name(mark.name.removeprefix(_WHITEOUT))]
    return list(mark.parent.iterdir()) if mark.parent.is_dir() else []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(entry: Entry, path: Path) -> None:
    if entry.open is None:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with entry.open() as content, path.open("wb") as file:
        for piece in read_chunks(content):
            file.write(piece)
    got, _ = file_digest(path)
    if entry.digest not in (None, got):
        raise DigestMismatch(f"{entry.source or 'this image'}: {entry.path}: got {got}, expected {entry.digest}; fetch it again")
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
    """Return what stands for the base in a plan: its name and its FastDeploy; its layers are here already."""
    config = canonical_json({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}})
    described = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(Digest.of(config)), "size": len(config)}
    manifest = canonical_json({"schemaVersion": 2, "config": described, "layers": []})
    blobs = [Blob(digest=Digest.of(data), text=data.decode()) for data in (manifest, config)]
    return Base(reference=reference, manifest=blobs[0], config=blobs[1], layers=(), replaced=replaced)


def apply(order: Order, releases: Releases, revision: str, cache: Cache, root: Path) -> None:
    """Lay the image that `order` asks for over `root`.

    Raises:
        ImageError: as `lock`, `fetch` and `build` do.
    """
    target = order.target
    replaced = _installed(root, target.site_packages)
    if target.engine == "fastdeploy" and not replaced:
        raise BadSource(f"{root}: no FastDeploy in {target.site_packages}; expected this to run in {target.base}")
    model = resolve_model(order.model, revision, cache, os.environ, _say) if order.model else None
    wheel, packages = resolve_wheel(target, cache, _say), resolve_packages(target, Lock(), cache, _say)
    lock = Lock().having(_base(target.base, replaced), packages, *(entry for entry in (wheel, model) if entry is not None))
    fetch(lock, target, cache, order.model, _say)
    for layer in plan_image(order, releases, lock, cache).layers:
        _say(f"laying {layer.title}")
        with layer.entries() as entries:
            lay(entries, root)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run(values: Mapping[str, str]) -> int:
    releases = read_releases(file_named(values["releases"]) if values["releases"] else RELEASES)
    target = releases.target(values["arch"], values["release"], values["cuda"])
    order = Order(target=target, model=values["model"], quantization=values["quantization"])
    apply(order, releases, values["revision"], cache_from(values), Path(values["root"]))
    return 0


COMMAND = Command(
    name="apply",
    help="Lay an image's files over the base that this runs in, as .runpod/Dockerfile does.",
    keys=(
        *(key for key in TARGET_KEYS if key.name != "lock"),
        Key("model", "A model to bake, org/name; empty bakes none."),
        Key("revision", "The model's branch, tag or commit; empty means main."),
        Key("quantization", "How FastDeploy quantizes the baked model, such as wint4."),
        Key("cache", "The folder of fetched inputs; empty means dist/cache."),
        Key("root", "The folder to lay the files over.", default="/"),
    ),
    run=_run,
)
