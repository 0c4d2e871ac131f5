"""Put an image into a local Docker: its base comes from the registry, the rest from the layout."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from images.arguments import Command, Key
from images.build import BUILD_KEYS, default_folder
from images.build_errors import Unreachable
from images.push import Pushable, mirrors_of, read_pushable
from images.registry import Reference
from images.skopeo import copy

__all__ = ["COMMAND", "load"]

Tell = Callable[[str], None]


def load(image: Pushable, name: str, mirrors: Iterable[str] = (), tell: Tell = print) -> None:
    """Let the Docker that DOCKER_HOST names, or else the usual one, have the image as `name`.

    A name without a tag gets Docker's own default, latest. The whole image lies on this disk meanwhile, in a folder beside the layout.

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
        for name_ in ("index.json", "oci-layout"):
            Path(folder, name_).write_bytes((image.layout / name_).read_bytes())
        tell(f"loading {name} into Docker")
        copy("oci:.", f"docker-daemon:{name}", folder=Path(folder), options=[f"--dest-daemon-host={host}"] if host else [])


def _receive_base(image: Pushable, blobs: Path, mirrors: Iterable[str], tell: Tell) -> None:
    said = []
    for place in (image.base, *(Reference.parse(mirror).at(image.base.digest) for mirror in mirrors if image.base.digest)):
        with tempfile.TemporaryDirectory(dir=blobs.parent) as folder:
            tell(f"receiving the base {place}")
            try:
                copy(f"docker://{place}", "dir:.", folder=Path(folder))
            except Unreachable as error:
                said.append(str(error))
                continue
            for blob in Path(folder).iterdir():
                blob.replace(blobs / blob.name)
            return
    raise Unreachable("\n  ".join([f"{image.base}: the base cannot be had:", *said]))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run(values: Mapping[str, str]) -> int:
    image = read_pushable(default_folder(values))
    load(image, values["as"], mirrors_of(image, values), _say)
    print(values["as"])
    return 0


COMMAND = Command(
    name="load",
    help="Put a built image into a local Docker.",
    keys=(*BUILD_KEYS, Key("as", "The name that Docker gives it.", default="worker-fastdeploy:latest")),
    run=_run,
)
