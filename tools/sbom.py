"""Write an image's bill of materials (CycloneDX) from the lock: `ci/just sbom arch=sm89 [release=R] [cuda=V] [model=NAME] [out=FILE]`.

Every component is what the lock pins, with its SHA-256: the base image, FastDeploy's wheel, the worker's packages, a baked model's files.
What the base itself holds is its vendor's to tell; here it is one component, by its digest. The same lock gives the same bytes: there is no
clock in it, and its serial number is made from its content.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from images.arguments import TARGET_KEYS, Command, Key, call, file_named
from images.build_errors import UnknownChoice
from images.digest import Digest
from images.lock import LOCK, Lock, read_lock, requirements_digest
from images.lock_entries import Base, EngineWheel, File, LockedModel, Packages
from images.registry import ImageReference
from images.releases import RELEASES, Target, read_releases

__all__ = ["COMMAND", "bill", "materials"]

_NAME = "worker-fastdeploy"
_NAMESPACE = uuid.UUID("6f2a3f0e-0e0c-5f0a-9a53-0c6b7d1c2a11")
_EPOCH = datetime(1980, 1, 1, tzinfo=timezone.utc)
"""CycloneDX needs a time; this one stands for none, so that the same lock gives the same bytes."""


def materials(lock: Lock, target: Target, model: str = "") -> Iterator[Component]:
    """Yield what an image is made of.

    Raises:
        Unlocked: naming the command that pins what is missing.
    """
    pinned = lock.pinned(target, requirements_digest(target), model)
    yield _base(pinned.base)
    if pinned.wheel:
        yield _engine(pinned.wheel)
    yield from _packages(pinned.packages)
    if pinned.model:
        yield _model(pinned.model)


def bill(lock: Lock, target: Target, *, model: str = "", digest: Digest | None = None) -> str:
    """Return the bill as JSON text; `digest` is the image's own, where it is known.

    Raises:
        Unlocked: naming the command that pins what is missing.
    """
    version = str(digest) if digest else "-".join(part for part in (target.release, target.architecture) if part)
    hashes = [_sha256(digest)] if digest else []
    bom = Bom(components=materials(lock, target, model))
    bom.metadata.timestamp = _EPOCH
    bom.metadata.component = Component(name=_NAME, type=ComponentType.CONTAINER, version=version, bom_ref=_NAME, hashes=hashes)
    bom.register_dependency(bom.metadata.component, bom.components)
    references = "\n".join(sorted(str(component.bom_ref.value) for component in bom.components))
    bom.serial_number = uuid.uuid5(_NAMESPACE, f"{version}\n{references}")
    return str(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)) + "\n"


def _base(base: Base) -> Component:
    reference, digest = ImageReference.parse(base.reference), Digest.of(base.manifest.data)
    name = reference.repository.rpartition("/")[2]
    purl = PackageURL("oci", name=name, version=str(digest), qualifiers={"repository_url": reference.name, "tag": reference.tag})
    return Component(
        name=reference.name,
        type=ComponentType.CONTAINER,
        version=reference.tag,
        purl=purl,
        bom_ref=f"base@{digest}",
        hashes=[_sha256(digest)],
    )


def _engine(wheel: EngineWheel) -> Component:
    component = _wheel(wheel.file)
    component.properties.add(Property(name=f"{_NAME}:architectures", value=",".join(wheel.architectures)))
    return component


def _packages(packages: Packages) -> Iterator[Component]:
    yield from map(_wheel, packages.wheels)


def _wheel(file: File) -> Component:
    name, version = file.name.split("-")[:2]
    name = name.replace("_", "-").lower()
    purl = PackageURL("pypi", name=name, version=version, qualifiers={"file_name": file.name})
    return Component(
        name=name,
        type=ComponentType.LIBRARY,
        version=version,
        purl=purl,
        bom_ref=f"{file.name}@{file.digest}",
        hashes=[_sha256(file.digest)],
    )


def _model(model: LockedModel) -> Component:
    owner, _, name = model.repository.partition("/")
    return Component(
        name=model.repository,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=model.commit,
        purl=PackageURL("huggingface", owner, name, model.commit),
        bom_ref=f"{model.repository}@{model.commit}",
        components=[
            Component(
                name=file.path,
                type=ComponentType.FILE,
                bom_ref=f"{model.repository}/{file.path}@{file.digest}",
                hashes=[_sha256(file.digest)],
            )
            for file in model.files
        ],
    )


def _sha256(digest: Digest) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest.hex)


def run(values: Mapping[str, str]) -> int:
    """Write the bill of the image that the arguments mean, to a file or to standard output."""
    releases = read_releases(file_named(values["releases"]) if values["releases"] else RELEASES)
    lock = read_lock(file_named(values["lock"]) if values["lock"] else LOCK)
    try:
        digest = Digest.parse(values["digest"]) if values["digest"] else None
    except ValueError as error:
        raise UnknownChoice(f"digest: {error}") from None
    text = bill(lock, releases.target(values["arch"], values["release"], values["cuda"]), model=values["model"], digest=digest)
    if values["out"]:
        out = file_named(values["out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        print(out)
    else:
        sys.stdout.write(text)
    return 0


COMMAND = Command(
    name="sbom",
    help="Write an image's bill of materials from the lock.",
    keys=(
        *TARGET_KEYS,
        Key("model", "The repository of the baked model, if there is one."),
        Key("digest", "The image's own digest, where it is known."),
        Key("out", "A file; empty means standard output."),
    ),
    run=run,
)


if __name__ == "__main__":
    sys.exit(call(COMMAND, sys.argv[1:]))
