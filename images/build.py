"""Build an image: plan it, write the layers that are not there yet, append them to the base, and print the digest.

Nothing is fetched: what is pinned and not in the cache stops the build with the command that brings it, before anything is written.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from images.arguments import TARGET_KEYS, Command, Key, file_named
from images.build_errors import Missing
from images.cache import CACHE, Cache
from images.contents import ImagePlan, LayerPlan, Order, plan_image
from images.digest import Digest
from images.image import NewLayer, Settings, append
from images.layout import Layout
from images.lock import LOCK, read_lock
from images.releases import RELEASES, read_releases
from images.tar import write_tar

__all__ = ["BUILD_KEYS", "COMMAND", "PLAN", "build_image", "default_folder", "plan_from"]

_OUT = CACHE.parent / "images"

PLAN_KEYS = (
    *TARGET_KEYS,
    Key("model", "The repository of a model to bake, which the lock has; empty bakes none."),
    Key("quantization", "How FastDeploy quantizes the baked model, such as wint4."),
    Key("cache", "The folder of fetched inputs; empty means dist/cache."),
    Key("commit", "What org.opencontainers.image.revision says; empty means a digest of the worker's files."),
)
BUILD_KEYS = (*PLAN_KEYS, Key("out", "The folder of the OCI layout; empty means one in dist/images."))


def plan_from(values: Mapping[str, str]) -> ImagePlan:
    """Return the plan of the image that a person's arguments mean.

    Raises:
        ImageError: for whatever is wrong with them or with the files they name.
    """
    releases = read_releases(file_named(values["releases"]) if values["releases"] else RELEASES)
    target = releases.target(values["arch"], values["release"], values["cuda"])
    lock = read_lock(file_named(values["lock"]) if values["lock"] else LOCK)
    order = Order(target=target, model=values["model"], quantization=values["quantization"], commit=values["commit"])
    return plan_image(order, releases, lock, cache_from(values))


def cache_from(values: Mapping[str, str]) -> Cache:
    """Return the cache that a person's arguments mean."""
    return Cache(file_named(values["cache"]) if values["cache"] else CACHE)


def default_folder(values: Mapping[str, str]) -> Path:
    """Return the folder of the layout that a person's arguments mean."""
    if values["out"]:
        return file_named(values["out"])
    names = ("arch", "release", "cuda", "model", "quantization")
    return _OUT / "-".join(values[name].replace("/", "--") for name in names if values[name])


def build_image(plan: ImagePlan, layout: Layout, cache: Cache) -> Digest:
    """Write the image into the layout and return its digest.

    Raises:
        ImageError: when an input is missing or not what was pinned, or the disk is full; the layout then holds what it held before.
    """
    missing = [sentence for layer in plan.layers if not _kept(layer, layout, cache) for sentence in layer.missing()]
    if missing:
        raise Missing("\n".join(missing))
    with layout.prepared():
        layers = [_layer(layer, layout, cache) for layer in plan.layers]
        settings = Settings(entrypoint=plan.entrypoint, directory=plan.directory, environment=plan.environment, labels=plan.labels)
        return layout.commit(append(plan.base, layers, settings), layers)


def _layer(layer: LayerPlan, layout: Layout, cache: Cache) -> NewLayer:
    kept = _kept(layer, layout, cache)
    if kept:
        print(f"kept   {kept.size:>13,} {layer.title}", file=sys.stderr)
        return kept
    with layer.entries() as entries, layout.blob() as blob:
        write_tar(entries, blob.write, layer.title)
    cache.remember_layer(layer.key, blob.digest, blob.size)
    print(f"wrote  {blob.size:>13,} {layer.title}", file=sys.stderr)
    return NewLayer(digest=blob.digest, size=blob.size, title=layer.title)


def _kept(layer: LayerPlan, layout: Layout, cache: Cache) -> NewLayer | None:
    """Return the layer if the layout has it from an earlier build."""
    known = cache.known_layer(layer.key)
    return NewLayer(digest=known[0], size=known[1], title=layer.title) if known and layout.holds(*known) else None


def run(values: Mapping[str, str]) -> int:
    """Build the image that the arguments mean, and print its digest as the last line."""
    plan = plan_from(values)
    out = default_folder(values)
    digest = build_image(plan, Layout(out), cache_from(values))
    print(out)
    print(digest)
    return 0


def show(values: Mapping[str, str]) -> int:
    """Print what the image would be made of."""
    plan = plan_from(values)
    base = plan.base
    print(f"{sum(layer.size for layer in base.layers):>15,} bytes  base {base.reference} ({len(base.layers)} layers, referenced)")
    for layer in plan.layers:
        print(f"{layer.size:>15,} bytes  {layer.title}")
    print(*(f"{name}={value}" for name, value in sorted(plan.environment.items())), sep="\n")
    print(*plan.entrypoint)
    return 0


COMMAND = Command(name="build", help="Build an image as an OCI layout, and print its digest as the last line.", keys=BUILD_KEYS, run=run)
PLAN = Command(name="plan", help="Show what an image would be made of; sizes are those of the inputs.", keys=PLAN_KEYS, run=show)
