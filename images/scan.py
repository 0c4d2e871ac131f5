"""Find the FastDeploy in a base image: read its layers from the top until the record of FastDeploy's files is found.

A wheel's RECORD is what pip itself uses when it removes a package. Layers are streamed and not kept: of the vendor's 10 GB this receives
the layers above the one with FastDeploy, and that one up to its dist-info folder: some 1 to 2 GB, once for each base.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from checkpoint.http_client import Body, Remote
from checkpoint.progress import Progress, size_text
from images.build_errors import BadSource
from images.context import Tell
from images.lock_entries import LockedLayer, Replaced
from images.registry import RegistryRepository, unreachable_on_http_errors
from images.wheels import owned_paths

__all__ = ["find_engine"]

_NAMES = ("fastdeploy_gpu", "fastdeploy")
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_LARGEST_RECORD = 64 << 20
_BUFFER = 1 << 20


def find_engine(repository: RegistryRepository, layers: Sequence[LockedLayer], site_packages: str, tell: Tell) -> tuple[Replaced, ...]:
    """Return the distribution of FastDeploy in the uppermost layer that has one; `layers` are given bottom first.

    `site_packages` is the absolute path of the folder to look in; `tell` gets a line for each layer that is read.

    Raises:
        BadSource: when there is none, or a layer cannot be read.
        Unreachable: when the registry fails four times in a row.
    """
    folder = site_packages.strip("/")
    hidden: set[str] = set()
    for number, layer in reversed(list(enumerate(layers, 1))):
        tell(f"reading layer {number} of {len(layers)} of {repository.reference.name} ({size_text(layer.size)}) for FastDeploy's record")
        with unreachable_on_http_errors():
            found = _in_layer(repository, layer, folder, hidden, tell)
        if found:
            return found
        if {folder, f"{folder}/"} & hidden:
            break
    raise BadSource(
        f"{repository.reference}: no FastDeploy in {site_packages}, expected fastdeploy_gpu-VERSION.dist-info there; "
        "correct site_packages or the base in releases.toml"
    )


def _in_layer(repository: RegistryRepository, layer: LockedLayer, folder: str, hidden: set[str], tell: Tell) -> tuple[Replaced, ...]:
    """Return the FastDeploy of the layer that no layer above hides, or note what the layer itself hides of those below."""
    hides: set[str] = set()
    try:
        for name, member, tar in _members(repository, layer, tell):
            parent, _, leaf = name.rpartition("/")
            if leaf == _OPAQUE:
                hides.add(f"{parent}/")
            elif leaf.startswith(_WHITEOUT):
                hides.add(f"{parent}/{leaf.removeprefix(_WHITEOUT)}")
            elif _is_record(name, folder) and not _is_hidden(name, hidden):
                return (_read(name, member, tar, folder),)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise BadSource(f"{repository.reference.name}: layer {layer.digest} cannot be read as a tar file ({error})") from None
    hidden |= hides
    return ()


def _members(repository: RegistryRepository, layer: LockedLayer, tell: Tell) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
    body = Body(Remote(name=f"layer {layer.digest}", size=layer.size, open=partial(repository.blob, layer.digest)))
    progress = Progress(layer.size, "reading", tell=tell, measure=lambda: body.position)
    with progress, body, io.BufferedReader(body, _BUFFER) as buffered:
        if buffered.peek(4)[:4] == b"\x28\xb5\x2f\xfd":
            raise ValueError("it is compressed with zstd, expected gzip or nothing")
        with tarfile.open(fileobj=buffered, mode="r|*") as tar:
            for member in tar:
                yield member.name.removeprefix("./").strip("/"), member, tar


def _is_engine(leaf: str) -> bool:
    return leaf.endswith(".dist-info") and leaf.partition("-")[0].lower() in _NAMES


def _is_record(name: str, folder: str) -> bool:
    parts = name.removeprefix(f"{folder}/").split("/")
    return name.startswith(f"{folder}/") and len(parts) == 2 and parts[1] == "RECORD" and _is_engine(parts[0])


def _is_hidden(path: str, hidden: set[str]) -> bool:
    """Return whether a layer above removed the path, or a folder that it is in (`folder/` stands for all that is in it)."""
    parents = path.split("/")
    above = ["/".join(parents[:count]) for count in range(1, len(parents) + 1)]
    return any(place in hidden for place in above) or any(f"{place}/" in hidden for place in above[:-1])


def _read(name: str, member: tarfile.TarInfo, tar: tarfile.TarFile, folder: str) -> Replaced:
    content: Any = tar.extractfile(member)
    if content is None or member.size > _LARGEST_RECORD:
        raise ValueError(f"{name}: expected a file of at most {_LARGEST_RECORD} bytes")
    info = name.split("/")[-2]
    project, _, version = info.removesuffix(".dist-info").partition("-")
    paths = owned_paths(content.read().decode("utf-8"), f"/{folder}")
    return Replaced(name=project.replace("_", "-"), version=version, paths=tuple(paths))
