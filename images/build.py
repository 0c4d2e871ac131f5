"""Build an image: plan it, write the layers that are not there yet, append them to the base, and print the digest.

Nothing is fetched here: a pinned input that is not in the cache stops the build with the command that fetches it, before anything is
written.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from checkpoint.progress import Progress
from images.arguments import Command
from images.build_errors import Missing
from images.cache import Cache
from images.contents import ImagePlan, LayerPlan
from images.context import BUILD_KEYS, PLAN_KEYS, Context, Tell, say
from images.digest import Digest
from images.image import NewLayer, append
from images.layout import OciLayout
from images.tar import tar_size, write_tar

__all__ = ["COMMAND", "PLAN", "build_image"]


def build_image(plan: ImagePlan, layout: OciLayout, cache: Cache, tell: Tell = say) -> Digest:
    """Write the image into the layout and return its digest.

    Raises:
        ImageError: when an input is missing or is not the pinned one, or the disk is full; the layout holds what it held before then.
    """
    missing = [problem for layer in plan.layers if not _kept(layer, layout, cache) for problem in layer.missing()]
    if missing:
        raise Missing("\n".join(missing))
    with layout.prepared():
        layers = [_layer(layer, layout, cache, tell) for layer in plan.layers]
        return layout.commit(append(plan.base, layers, plan.container), layers)


def _layer(layer: LayerPlan, layout: OciLayout, cache: Cache, tell: Tell) -> NewLayer:
    kept = _kept(layer, layout, cache)
    if kept:
        tell(f"kept   {kept.size:>13,} {layer.title}")
        return kept
    with ExitStack() as stack:
        with Progress(layer.size, f"checking the inputs of {layer.title}", tell=tell) as progress:
            entries = stack.enter_context(layer.entries(progress.add))
        blob = stack.enter_context(layout.blob())
        with Progress(tar_size(entries), f"writing {layer.title}", tell=tell, measure=lambda: blob.size):
            write_tar(entries, blob.write, layer.title)
    cache.remember_layer(layer.key, blob.digest, blob.size)
    tell(f"wrote  {blob.size:>13,} {layer.title}")
    return NewLayer(digest=blob.digest, size=blob.size, title=layer.title)


def _kept(layer: LayerPlan, layout: OciLayout, cache: Cache) -> NewLayer | None:
    """Return the layer if the layout has it from an earlier build."""
    known = cache.known_layer(layer.key)
    return NewLayer(digest=known[0], size=known[1], title=layer.title) if known and layout.holds(*known) else None


def run(values: Mapping[str, str]) -> int:
    """Build the image, and print its digest as the last line."""
    context = Context.of(values)
    digest = build_image(context.plan(), OciLayout(context.out), context.cache)
    print(context.out)
    print(digest)
    return 0


def show(values: Mapping[str, str]) -> int:
    """Print the plan of the image."""
    plan = Context.of(values).plan()
    base = plan.base
    print(f"{sum(layer.size for layer in base.layers):>15,} bytes  base {base.reference} ({len(base.layers)} layers, referenced)")
    for layer in plan.layers:
        print(f"{layer.size:>15,} bytes  {layer.title}")
    print(*(f"{name}={value}" for name, value in sorted(plan.container.environment.items())), sep="\n")
    print(*plan.container.entrypoint)
    return 0


COMMAND = Command(name="build", help="Build an image as an OCI layout, and print its digest as the last line.", keys=BUILD_KEYS, run=run)
PLAN = Command(name="plan", help="Print the layers of an image and the sizes of their inputs.", keys=PLAN_KEYS, run=show)
