"""Put the miniature vendor's base into a registry, its wheel onto an index, its model onto a hub, and write the table that leads there."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pip

from ci.hosts.base import BaseLayer, debian_layer, push_layout, write_layout
from ci.hosts.shared import Hosts
from tests import DEMO
from tests.twins.model_hub import ModelHub
from tests.twins.vendor.builds import SITE, engine_files, installed_tree, tar_of, wheel
from tests.twins.vendor.index import WheelIndex

__all__ = ["DEMO", "LATER", "MODEL", "RELEASE", "Vendor", "miniature", "push_base", "split_checkpoint", "vendor_tree"]

RELEASE = "2.3.0"
LATER = "2.3.3"
"""A release that the table of releases lacks, whose wheel is on the index; `push_base` makes its base."""
MODEL = "demo/sharded"

_PIP = Path(pip.__file__).parent
_SCRIPTS = {"fastdeploy": "fastdeploy.entrypoints.openai.api_server:main"}
_ENVIRONMENT = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LD_LIBRARY_PATH=/usr/local/nvidia/lib64",
    "http_proxy=",
    "https_proxy=",
]
_NVIDIA_SMI = b"""#!/bin/sh
# Stands where the driver's own program stands: one GPU of the compute capability that MINIATURE_GPU names.
echo "0, NVIDIA Miniature, ${MINIATURE_GPU:-9.0}, 81559, 81079, 550.90.07, GPU-00000000-0000-0000-0000-000000000000"
"""
_FOREIGN = (
    b'"""The engine\'s own aiohttp, which would break the worker if it saw it."""\n\nraise ImportError("this is the engine\'s aiohttp")\n'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """Where its things are: the base's reference, the index's and the hub's addresses, the model's commit, the table of releases."""

    base: str
    index: str
    hub: ModelHub
    commit: str
    releases: Path


@contextmanager
def miniature(hosts: Hosts, folder: Path) -> Iterator[Vendor]:
    """Run the vendor with its files in `folder`; what it put into the registry stays there."""
    base = f"{hosts.registry}/vendor/fastdeploy-cuda-12.6:{RELEASE}"
    push_base(base)
    wheels = folder / "simple" / "fastdeploy-gpu"
    wheels.mkdir(parents=True)
    wheel(wheels, "fastdeploy_gpu", RELEASE, engine_files("86_89"), scripts=_SCRIPTS)
    wheel(wheels, "fastdeploy_gpu", "2.2.0", engine_files("86_89"))
    wheel(wheels, "fastdeploy_gpu", LATER, engine_files("86_89", LATER), scripts=_SCRIPTS)
    checkpoint = folder / "checkpoint"
    split_checkpoint(DEMO, checkpoint, shards=3)
    with WheelIndex(folder / "simple") as index, ModelHub() as hub:
        commit = hub.add(MODEL, checkpoint)
        releases = folder / "releases.toml"
        releases.write_text(_table(base, index.url, hosts.base), encoding="utf-8")
        yield Vendor(base=base, index=index.url, hub=hub, commit=commit, releases=releases)


def vendor_tree(release: str = RELEASE) -> dict[str, bytes]:
    """Return what the vendor's own layer holds above Debian's."""
    tree = installed_tree("fastdeploy_gpu", release, engine_files("80_90", release), _SCRIPTS)
    # pip is there as well, since the vendor's image was made with it.
    tree |= {f"{SITE}/pip/{path.relative_to(_PIP)}": path.read_bytes() for path in _PIP.rglob("*") if path.suffix not in ("", ".pyc")}
    tree |= {
        f"{SITE}/aiohttp/__init__.py": _FOREIGN,
        f"{SITE}/paddle/__init__.py": b'"""In the place of paddlepaddle-gpu."""\n',
        "usr/bin/nvidia-smi": _NVIDIA_SMI,
        "workspace/README": b"what the vendor leaves lying about\n",
    }
    return tree


def push_base(reference: str, release: str = RELEASE) -> None:
    """Put the vendor's base with a release of FastDeploy into a registry."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        tar = tar_of(folder / "vendor.tar", vendor_tree(release))
        above = tar_of(folder / "above.tar", {"etc/vendor-release": b"miniature\n"})
        layers = [
            debian_layer(),
            BaseLayer.compress(tar, folder / "vendor.tar.gz"),
            BaseLayer.compress(above, folder / "above.tar.gz"),
        ]
        config = {"Env": _ENVIRONMENT, "WorkingDir": "/workspace", "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo the vendor's own"]}
        write_layout(folder / "layout", layers, config)
        push_layout(folder / "layout", reference)


def _table(base: str, index: str, cpu_base: str) -> str:
    return f"""
default = "{RELEASE}"
licenses = "Apache-2.0"
source = "https://example.org/worker-fastdeploy"
[[releases]]
name = "{RELEASE}"
paddle = "3.2.1"
python = "3.11"
interpreter = "/usr/bin/python3.11"
site_packages = "/{SITE}"
prebuilt = ["sm80", "sm90"]
quantizations = ["wint4", "wint8"]
[[releases.builds]]
cuda = "12.6"
base = "{base}"
[releases.wheels]
architectures = ["sm86", "sm89"]
index = "{index}"
[cpu]
base = "{cpu_base}"
python = "3.11"
interpreter = "/usr/bin/python3.11"
site_packages = "/{SITE}"
"""


def split_checkpoint(source: Path, folder: Path, *, shards: int) -> None:
    """Write a checkpoint of one safetensors file again as one of several, with their index."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name != "model.safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    data = (source / "model.safetensors").read_bytes()
    [length] = struct.unpack_from("<Q", data)
    header = {name: about for name, about in json.loads(data[8 : 8 + length]).items() if name != "__metadata__"}
    body = data[8 + length :]
    weight_map: dict[str, str] = {}
    names = list(header)
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        chosen = names[number::shards]
        weight_map |= dict.fromkeys(chosen, name)
        (folder / name).write_bytes(_safetensors({tensor: header[tensor] for tensor in chosen}, body))
    index = {"metadata": {"total_size": len(body)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _safetensors(tensors: dict[str, Any], body: bytes) -> bytes:
    header, pieces, offset = {}, [], 0
    for name, about in tensors.items():
        first, last = about["data_offsets"]
        header[name] = about | {"data_offsets": [offset, offset + last - first]}
        pieces.append(body[first:last])
        offset += last - first
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return b"".join([struct.pack("<Q", len(text)), text, *pieces])
