"""Append layers to a base: the bytes of an image's manifest and config, a function of values alone.

The base's layers keep their digests, and its history and environment are taken over into a new config, under a new manifest. The manifest
is OCI's, whatever the base's was: an OCI layout holds no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from images.build_errors import BadSource
from images.digest import Digest, canonical_json
from images.lock_entries import Base
from images.tar import EPOCH

__all__ = ["CONFIG_TYPE", "MANIFEST_TYPE", "ContainerConfig", "NewLayer", "OciImage", "append"]

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_MEDIA_TYPES = {
    "application/vnd.docker.image.rootfs.diff.tar": _LAYER_TYPE,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": f"{_LAYER_TYPE}+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": f"{_LAYER_TYPE}+zstd",
}
"""Docker's media types of layers, and OCI's for the same bytes."""

_CREATED = datetime.fromtimestamp(EPOCH, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLayer:
    """A layer of ours, uncompressed: its digest is its diff_id."""

    digest: Digest
    size: int
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig:
    """How a container of the image starts."""

    entrypoint: Sequence[str]
    directory: str
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    user: str = ""
    """User name or number, with :group where one is given; empty keeps the base's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OciImage:
    """An image's own documents, as bytes."""

    manifest: bytes
    config: bytes

    @property
    def digest(self) -> Digest:
        """Return the digest by which registries know the image."""
        return Digest.of(self.manifest)


def append(base: Base, layers: Sequence[NewLayer], container: ContainerConfig) -> OciImage:
    """Return the image that has `layers`, bottom first, above those of `base`.

    Raises:
        BadSource: when the base is not for linux/amd64, or has layers of an unknown type.
    """
    config = canonical_json(_config(base, layers, container))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": str(Digest.of(config)), "size": len(config)},
        "layers": [
            *(_of_base(base, layer) for layer in base.manifest.json["layers"]),
            *({"mediaType": _LAYER_TYPE, "digest": str(layer.digest), "size": layer.size} for layer in layers),
        ],
    }
    return OciImage(manifest=canonical_json(manifest), config=config)


def _of_base(base: Base, layer: dict[str, Any]) -> dict[str, Any]:
    kind = layer.get("mediaType", "")
    kind = _MEDIA_TYPES.get(kind, kind)
    if not kind.startswith(_LAYER_TYPE):
        raise BadSource(f"{base.reference}: got a layer of the type {kind!r}, expected {_LAYER_TYPE} or Docker's")
    return {"mediaType": kind, "digest": layer["digest"], "size": layer["size"]}


def _config(base: Base, layers: Sequence[NewLayer], ours: ContainerConfig) -> dict[str, Any]:
    config = base.config.json
    platform = (config.get("os"), config.get("architecture"))
    if platform != ("linux", "amd64"):
        raise BadSource(f"{base.reference}: got an image for {platform[0]}/{platform[1]}, expected linux/amd64")
    container = {name: value for name, value in (config.get("config") or {}).items() if name not in _DROPPED}
    container |= {
        "Entrypoint": list(ours.entrypoint),
        "WorkingDir": ours.directory,
        "Env": _merged(container.get("Env") or [], ours.environment),
        "Labels": (container.get("Labels") or {}) | dict(ours.labels),
        "StopSignal": "SIGTERM",
        **({"User": ours.user} if ours.user else {}),
    }
    history = [{"created": _CREATED, "created_by": f"python -m images build: {layer.title}"} for layer in layers]
    return {name: value for name, value in config.items() if name in _KEPT} | {
        "created": _CREATED,
        "config": container,
        "rootfs": {"type": "layers", "diff_ids": [*config["rootfs"]["diff_ids"], *(str(layer.digest) for layer in layers)]},
        "history": [*(config.get("history") or []), *history],
    }


_DROPPED = ("Cmd", "Healthcheck", "OnBuild", "OciImage", "Hostname", "Domainname")
"""What a base's config says of its own program, and what Docker's builder leaves of its own machine."""

_KEPT = ("architecture", "os", "os.version", "os.features", "variant")
"""What a config says of the platform; the rest (container, docker_version, author) says how the base was built."""


def _merged(base: Sequence[str], ours: Mapping[str, str]) -> list[str]:
    """Return the base's environment in its order, without the names that are ours, then ours by name."""
    kept = [text for text in base if text.partition("=")[0] not in ours]
    return [*kept, *(f"{name}={ours[name]}" for name in sorted(ours))]
