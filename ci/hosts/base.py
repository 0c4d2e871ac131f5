"""The base of CI's images: Debian with Python by mmdebstrap, as an image in an OCI layout, made once and kept under dist/.

It stands where the vendor's image, or Debian's slim Python image, stands outside. Making it takes half a minute on a quiet machine and
reads Debian's archive; a stamp of the recipe says whether the one under dist/ still fits. Its layer is compressed and its manifest of
Docker's own kind, as is usual for images in the wild.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.hosts.servers import HostFailed

__all__ = ["PYTHON", "BaseLayer", "debian_layer", "push_layout", "write_layout"]

PYTHON = "3.11"
"""The Python of Debian bookworm."""

_DIST = Path(__file__).resolve().parents[2] / "dist"
_EPOCH = "1700000000"
_RECIPE = (
    *("mmdebstrap", "--variant=minbase", "--include=python3,ca-certificates"),
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info", "zoneinfo")),
    "bookworm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLayer:
    """A compressed layer: the file, the sha256 of it in hex, and the sha256 of the tar inside."""

    path: Path
    digest: str
    diff_id: str

    @classmethod
    def compress(cls, tar: Path, path: Path) -> BaseLayer:
        """Write a tar file's layer to `path`."""
        plain = hashlib.sha256()
        with tar.open("rb") as source, path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
            while block := source.read(1 << 20):
                plain.update(block)
                packed.write(block)
        return cls(path=path, digest=hashlib.sha256(path.read_bytes()).hexdigest(), diff_id=plain.hexdigest())


def debian_layer(dist: Path = _DIST) -> BaseLayer:
    """Return the layer with Debian and Python, made now if dist/ has none of this recipe."""
    stamp = hashlib.sha256(repr((_RECIPE, _EPOCH)).encode()).hexdigest()[:12]
    folder = dist / f"ci-base-{stamp}"
    dist.mkdir(exist_ok=True)
    with (dist / "ci-base.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _make(folder)
    made = json.loads((folder / "layer.json").read_text(encoding="utf-8"))
    return BaseLayer(path=folder / "layer.tar.gz", **made)


def _make(folder: Path) -> None:
    half = Path(tempfile.mkdtemp(prefix="ci-base-", dir=folder.parent))
    try:
        tar = half / "base.tar"
        environment = os.environ | {"SOURCE_DATE_EPOCH": _EPOCH}
        done = subprocess.run([*_RECIPE, str(tar)], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise HostFailed(f"{' '.join(_RECIPE)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
        layer = BaseLayer.compress(tar, half / "layer.tar.gz")
        tar.unlink()
        (half / "layer.json").write_text(json.dumps({"digest": layer.digest, "diff_id": layer.diff_id}), encoding="utf-8")
        half.chmod(0o755)
        half.rename(folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def write_layout(folder: Path, layers: Sequence[BaseLayer], config: Mapping[str, Any]) -> None:
    """Write an OCI layout of one image; `config` is the part of it that says how to run a container."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for layer in layers:
        os.link(layer.path, blobs / layer.digest)

    def blob(value: Mapping[str, Any], kind: str) -> dict[str, Any]:
        data = json.dumps(value).encode()
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}.v1+json", "digest": f"sha256:{digest}", "size": len(data)}

    whole = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2023-11-14T22:13:20Z",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in layers]},
        "history": [{"created": "2023-11-14T22:13:20Z", "created_by": "ci"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(whole, "config"),
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": f"sha256:{layer.digest}",
                "size": layer.path.stat().st_size,
            }
            for layer in layers
        ],
    }
    index = {"schemaVersion": 2, "manifests": [blob(manifest, "manifest")]}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', encoding="utf-8")


def push_layout(folder: Path, reference: str) -> None:
    """Push it to a loopback registry as `reference`, with a manifest of Docker's own kind."""
    command = ["skopeo", "copy", "--quiet", "--format", "v2s2", "--dest-tls-verify=false", f"oci:{folder}", f"docker://{reference}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostFailed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
