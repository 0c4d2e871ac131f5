"""Build the image without a GPU on CI's own base, twice, and print its digest as the last line: two machines compare that line.

The base is named after what it holds, not after where it is, so no registry takes part. What is fetched (the worker's wheels, through the
user's package index) is in dist/cache afterwards; without a network the second run needs none.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from ci.hosts.base import PYTHON, BaseLayer, debian_layer
from images.build import build_image
from images.build_errors import ImageError
from images.cache import Cache
from images.contents import ImageSpec, plan_image
from images.digest import Digest, canonical_json
from images.fetch import fetch
from images.layout import OciLayout
from images.lock import read_lock, requirements_digest, write_lock
from images.lock_entries import Base, Blob, layers_of
from images.releases import Cpu, read_releases
from images.verify import verify

REFERENCE = "ci.invalid/debian/python:bookworm"


def ci_base(layer: BaseLayer) -> Base:
    """Return the lock's entry for an image of that one layer."""
    config = canonical_json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["bash"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}"]},
            "history": [{"created_by": "mmdebstrap"}],
        }
    )
    kind = "application/vnd.oci.image"
    described = {"mediaType": f"{kind}.config.v1+json", "digest": str(Digest.of(config)), "size": len(config)}
    blob = {"mediaType": f"{kind}.layer.v1.tar+gzip", "digest": f"sha256:{layer.digest}", "size": layer.path.stat().st_size}
    manifest = canonical_json({"schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json", "config": described, "layers": [blob]})
    documents = [Blob(digest=Digest.of(data), text=data.decode()) for data in (manifest, config)]
    layers = layers_of(documents[0].json, documents[1].json)
    return Base(reference=REFERENCE, manifest=documents[0], config=documents[1], layers=layers)


def main() -> int:
    """Return the exit code."""
    python = f"/usr/bin/python{PYTHON}"
    cpu = Cpu(base=REFERENCE, python=PYTHON, interpreter=python, site_packages=f"/usr/local/lib/python{PYTHON}/dist-packages")
    releases = replace(read_releases(), cpu=cpu)
    target = releases.target("cpu")
    lock = read_lock().having(ci_base(debian_layer()))
    try:
        fetch(lock.pinned(target, requirements_digest(target)).entries, Cache())
        plan = plan_image(ImageSpec(target=target), releases, lock, Cache())
        with tempfile.TemporaryDirectory(prefix="digest-") as name:
            folder = Path(name)
            write_lock(folder / "lock.json", lock)
            first, second = (build_image(plan, OciLayout(folder / number), Cache()) for number in ("first", "second"))
            verified = verify(folder / "first", folder / "lock.json")
    except ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not first == second == verified:
        print(f"error: built twice and verified once, got {first}, {second} and {verified}", file=sys.stderr)
        return 1
    print(first)
    return 0


if __name__ == "__main__":
    sys.exit(main())
