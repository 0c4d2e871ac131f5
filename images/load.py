"""Load an image into a local Docker: its base comes from the registry, the rest from the layout."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from checkpoint.progress import size_text
from images.arguments import Command, Key
from images.build_errors import Unreachable
from images.context import BUILD_KEYS, Context, Tell, say
from images.push import Pushable, mirrors_of, read_pushable, size_of
from images.registry import ImageReference
from images.skopeo import copy

__all__ = ["COMMAND", "load"]


def load(image: Pushable, name: str, mirrors: Iterable[str] = (), tell: Tell = say) -> None:
    """Load the image as `name` into the Docker that DOCKER_HOST names, or else the usual one.

    A name without a tag gets Docker's default tag, latest. Meanwhile the whole image is on this disk, in a folder beside the layout.

    Raises:
        Unreachable: when no registry has the base, or Docker does not answer.
    """
    name = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    host = os.environ.get("DOCKER_HOST", "")
    with tempfile.TemporaryDirectory(prefix="load-", dir=image.layout.parent) as folder:
        blobs = Path(folder) / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        _receive_base(image, blobs, mirrors, tell)
        for blob in (image.layout / "blobs" / "sha256").iterdir():
            (blobs / blob.name).hardlink_to(blob)
        for document in ("index.json", "oci-layout"):
            Path(folder, document).write_bytes((image.layout / document).read_bytes())
        tell(f"loading {name} into Docker, {size_text(sum(blob.stat().st_size for blob in blobs.iterdir()))}")
        options = [f"--dest-daemon-host={host}"] if host else []
        copy("oci:.", f"docker-daemon:{name}", folder=Path(folder), options=options, tell=tell)


def _receive_base(image: Pushable, blobs: Path, mirrors: Iterable[str], tell: Tell) -> None:
    errors = []
    for place in (image.base, *(ImageReference.parse(mirror).at(image.base.digest) for mirror in mirrors if image.base.digest)):
        with tempfile.TemporaryDirectory(dir=blobs.parent) as folder:
            try:
                size = size_of(place)
                tell(f"receiving the base {place}, {size_text(size)}")
                copy(f"docker://{place}", "dir:.", size=size, folder=Path(folder), tell=tell)
            except Unreachable as error:
                errors.append(str(error))
                continue
            for blob in Path(folder).iterdir():
                blob.replace(blobs / blob.name)
            return
    raise Unreachable("\n  ".join([f"{image.base}: the base cannot be received:", *errors]))


def _run(values: Mapping[str, str]) -> int:
    context = Context.of(values)
    image = read_pushable(context.out)
    load(image, values["as"], mirrors_of(image, context))
    print(values["as"])
    return 0


COMMAND = Command(
    name="load",
    help="Load a built image into a local Docker.",
    keys=(*BUILD_KEYS, Key("as", "The name that Docker gives it.", default="worker-fastdeploy:latest")),
    run=_run,
)
