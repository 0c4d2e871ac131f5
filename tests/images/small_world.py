"""A small world for the builder: a base of one layer, wheels of a few bytes, a model of a few files, all pinned in a lock of its own."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import stat
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from images.build import build_image
from images.cache import Cache
from images.contents import ImagePlan, ImageSpec, plan_image
from images.digest import Digest, canonical_json
from images.layout import OciLayout
from images.lock import Lock, requirements_digest, write_lock
from images.lock_entries import Base, Blob, EngineWheel, File, LockedModel, ModelFile, Packages, Replaced, layers_of
from images.releases import Releases, Target, read_releases

SITE = "usr/local/lib/python3.10/dist-packages"
OLD = ("/usr/local/bin/fastdeploy", f"/{SITE}/fastdeploy", f"/{SITE}/fastdeploy_gpu-2.3.0.dist-info", f"/{SITE}/old_helper.py")
MODEL = {"config.json": b"{}", "model-00001-of-00002.safetensors": b"one" * 999, "model-00002-of-00002.safetensors": b"two" * 500}


def record_hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def wheel(
    files: Mapping[str, bytes],
    *,
    name: str = "thing",
    version: str = "1.0",
    scripts: str = "",
    record: Mapping[str, bytes] | None = None,
    twice: Sequence[str] = (),
    links: Sequence[str] = (),
) -> bytes:
    """A wheel's bytes; `record` is what RECORD says of the files where that is not the truth."""
    info = f"{name}-{version}.dist-info"
    every = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: small\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if scripts:
        every[f"{info}/entry_points.txt"] = f"[console_scripts]\n{scripts}\n".encode()
    told = {path: data for path, data in every.items() if path not in files} | dict(files if record is None else record)
    rows = "".join(f'"{path}",{record_hash(data)},{len(data)}\n' for path, data in told.items()) + f"{info}/RECORD,,\n"
    every[f"{info}/RECORD"] = rows.encode()
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # a name that comes twice is what some wheels are for
        for path, data in [*every.items(), *((path, every[path]) for path in twice)]:
            member = zipfile.ZipInfo(path)
            kind = stat.S_IFLNK | 0o777 if path in links else stat.S_IFREG | (0o755 if path.endswith(".so") else 0o644)
            member.external_attr = kind << 16
            archive.writestr(member, data)
    return out.getvalue()


def base(reference: str, replaced: Sequence[Replaced] = (), *, layers: int = 1, size: int = 10, architecture: str = "amd64") -> Base:
    """A base whose layers exist nowhere: a build reads none of them."""
    digests = [str(Digest.of(b"layer %d" % number)) for number in range(layers)]
    config = canonical_json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/bin:/bin", "GPG_KEY=of-the-base"],
                "Cmd": ["bash"],
                "Entrypoint": ["/vendor"],
                "Labels": {"a": "b"},
            },
            "rootfs": {"type": "layers", "diff_ids": digests},
            "history": [{"created_by": "vendor"}] * layers,
        }
    )
    kind = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": str(Digest.of(config)),
                "size": len(config),
            },
            "layers": [{"mediaType": kind, "digest": digest, "size": size} for digest in digests],
        }
    )
    documents = [Blob(digest=Digest.of(data), text=data.decode()) for data in (manifest, config)]
    told = layers_of(documents[0].json, documents[1].json)
    return Base(reference=reference, manifest=documents[0], config=documents[1], layers=told, replaced=tuple(replaced))


@dataclass
class World:
    """A folder with a cache, a lock and a worker."""

    root: Path
    releases: Releases
    lock: Lock
    cache: Cache
    handler: Path

    @property
    def lock_file(self) -> Path:
        return self.root / "lock.json"

    def keep(self, data: bytes) -> Digest:
        """Put bytes into the cache as a fetch does."""
        path = self.cache.path(Digest.of(data))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return Digest.of(data)

    def file(self, name: str, data: bytes) -> File:
        return File(name=name, size=len(data), digest=self.keep(data))

    def having(self, *entries: Base | EngineWheel | Packages | LockedModel) -> None:
        self.lock = self.lock.having(*entries)
        write_lock(self.lock_file, self.lock)

    def target(self, architecture: str) -> Target:
        return self.releases.target(architecture)

    def plan(self, architecture: str = "cpu", model: str = "", quantization: str = "") -> ImagePlan:
        order = ImageSpec(target=self.target(architecture), model=model, quantization=quantization, commit="c0ffee")
        return plan_image(order, self.releases, self.lock, self.cache, tree=self.handler.parent)

    def build(self, out: str = "out", architecture: str = "cpu", model: str = "", quantization: str = "") -> tuple[Path, Digest]:
        folder = self.root / out
        return folder, build_image(self.plan(architecture, model, quantization), OciLayout(folder), self.cache)


def make_world(root: Path) -> World:
    """Everything pinned and fetched for cpu and sm89, with a model."""
    releases = read_releases()
    handler = root / "tree" / "handler"
    (handler / "parts").mkdir(parents=True)
    for number in range(11):
        (handler / f"part{number}.py").write_text(f"number = {number}\n")
    (handler / "__main__.py").write_text("print('worker')\n")
    (handler / "parts" / "table.json").write_text("{}")
    (handler / "notes.txt").write_text("not taken")
    world = World(root=root, releases=releases, lock=Lock(), cache=Cache(root / "cache"), handler=handler)
    cpu, gpu = world.target("cpu"), world.target("sm89")
    old = Replaced(name="fastdeploy-gpu", version="2.3.0", paths=OLD)
    engine = wheel(
        {"fastdeploy/__init__.py": b"build = '86_89'\n", "fastdeploy/ops.so": b"\x7fELF new", "old_helper.py": b"new = True\n"},
        name="fastdeploy_gpu",
        version="2.3.0",
        scripts="fastdeploy-new = fastdeploy:main",
    )
    wheels = [
        world.file(
            "thing-1.0-py3-none-any.whl", wheel({"thing/__init__.py": b"", "thing/data.bin": bytes(2000)}, scripts="thing = thing:main")
        ),
        world.file("other-2.0-py3-none-any.whl", wheel({"other.py": b"x = 1\n"}, name="other", version="2.0")),
    ]
    assert gpu.wheels is not None
    world.having(
        base(cpu.base),
        base(gpu.base, [old], layers=3),
        EngineWheel(
            release=gpu.release,
            cuda=gpu.cuda,
            architectures=gpu.wheels.architectures,
            file=world.file("fastdeploy_gpu-2.3.0-py3-none-any.whl", engine),
        ),
        *(
            Packages(engine=target.engine, python=target.python, requirements=requirements_digest(target), wheels=tuple(wheels))
            for target in (cpu, gpu)
        ),
        LockedModel(
            repository="org/name",
            revision="main",
            commit="0123456789abcdef0123456789abcdef01234567",
            files=tuple(ModelFile(path=path, size=len(data), digest=world.keep(data)) for path, data in MODEL.items()),
        ),
    )
    return world


def manifest_of(layout: Path) -> dict[str, object]:
    index = json.loads((layout / "index.json").read_text())
    return dict(json.loads(blob(layout, index["manifests"][0]["digest"])))


def blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / "sha256" / digest.partition(":")[2]).read_bytes()


def without(world: World, **changes: tuple[object, ...]) -> World:
    """The world with other tables in its lock."""
    return replace(world, lock=replace(world.lock, **changes))  # type: ignore[arg-type]
