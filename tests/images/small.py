"""Small images on CI's base, made in milliseconds by the builder's own parts."""

from __future__ import annotations

from pathlib import Path

from ci.hosts.shared import Hosts
from images.digest import Digest
from images.image import ContainerConfig, NewLayer, append
from images.layout import OciLayout
from images.lock_entries import Base, Blob, layers_of
from images.push import Pushable, read_pushable
from images.registry import ImageReference, RegistryRepository
from tests.twins.vendor.builds import tar_of

__all__ = ["base_of", "small_image"]


def base_of(hosts: Hosts) -> Base:
    """Return the lock's entry of CI's base as the registry has it."""
    repository = RegistryRepository(ImageReference.parse(hosts.base))
    manifest = repository.manifest(repository.reference.tag)
    config = repository.small_blob(Digest.parse(manifest.parsed()["config"]["digest"]))
    blobs = Blob(digest=manifest.digest, text=manifest.data.decode()), Blob(digest=Digest.of(config), text=config.decode())
    return Base(reference=hosts.base, manifest=blobs[0], config=blobs[1], layers=layers_of(blobs[0].json, blobs[1].json))


def small_image(base: Base, folder: Path, *contents: bytes) -> Pushable:
    """Build an image with one layer for each content, which is that of a file /layer-NUMBER."""
    layout, layers = OciLayout(folder), []
    labels = {"org.opencontainers.image.base.name": base.reference, "org.opencontainers.image.base.digest": str(base.manifest.digest)}
    settings = ContainerConfig(entrypoint=["/usr/bin/python3"], directory="/", environment={}, labels=labels)
    with layout.prepared():
        for number, content in enumerate(contents):
            tar = tar_of(folder.with_name(f"{folder.name}.tar"), {f"layer-{number}": content})
            data = tar.read_bytes()
            tar.unlink()
            layers.append(NewLayer(digest=layout.put(data), size=len(data), title=f"layer {number}"))
        layout.commit(append(base, layers, settings), layers)
    return read_pushable(folder)
