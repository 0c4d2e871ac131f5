"""The bill of materials: what the lock pins, no more and no less, in CycloneDX's own schema."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cyclonedx.schema
import pytest
from jsonschema import Draft7Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from images.digest import Digest
from images.lock import Lock, requirements_digest
from images.lock_entries import Base, Blob, EngineWheel, File, LockedModel, ModelFile, Packages, layers_of
from images.releases import read_releases
from tests import ROOT
from tools.sbom import bill

SCHEMAS = Path(cyclonedx.schema.__file__).with_name("_res")
TARGET = read_releases().target("sm89", "2.3.0")
LAYER = Digest.of(b"layer")


def blob(value: Any) -> Blob:
    text = json.dumps(value)
    return Blob(digest=Digest.of(text.encode()), text=text)


def lock() -> Lock:
    """A lock that has an image of the target, and a model beside."""
    config = blob({"rootfs": {"diff_ids": [str(LAYER)]}})
    manifest = blob({"config": {"digest": str(config.digest)}, "layers": [{"digest": str(LAYER), "size": 5}]})
    layers = layers_of(manifest.json, config.json)
    engine = File(name="fastdeploy_gpu-2.3.0-py3-none-any.whl", size=3, digest=Digest.of(b"engine"))
    wheels = (
        File(name="aiohttp-3.14.5-cp310-cp310-manylinux_2_28_x86_64.whl", size=1, digest=Digest.of(b"aiohttp")),
        File(name="runpod-1.12.0-py3-none-any.whl", size=1, digest=Digest.of(b"runpod")),
    )
    files = (ModelFile(path="a/model.safetensors", size=9, digest=Digest.of(b"weights")),)
    return Lock().having(
        Base(reference=TARGET.base, manifest=manifest, config=config, layers=layers),
        EngineWheel(release="2.3.0", cuda="12.6", architectures=("sm86", "sm89"), file=engine),
        Packages(engine="fastdeploy", python="3.10", requirements=requirements_digest(TARGET), wheels=wheels),
        LockedModel(repository="org/name", revision="main", commit="0" * 40, files=files),
    )


def digests(value: Any) -> set[str]:
    """Every SHA-256 in a bill."""
    if isinstance(value, dict):
        own = {value["content"]} if value.get("alg") == "SHA-256" else set()
        return own.union(*map(digests, value.values()))
    return set().union(*map(digests, value)) if isinstance(value, list) else set()


def test_a_bill_fits_cyclonedx_own_schema() -> None:
    schemas = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.schema.json")}
    resources = [(f"http://cyclonedx.org/schema/{name.replace('.SNAPSHOT', '')}", text) for name, text in schemas.items()]
    resources += [(text["$id"], text) for text in schemas.values() if "$id" in text]
    registry = Registry().with_resources([(name, Resource.from_contents(text, default_specification=DRAFT7)) for name, text in resources])
    validator = Draft7Validator(schemas["bom-1.6.SNAPSHOT.schema.json"], registry=registry)
    said = json.loads(bill(lock(), TARGET, model="org/name", digest=Digest.of(b"image")))
    assert [error.message for error in validator.iter_errors(said)] == []
    assert list(validator.iter_errors({**said, "components": [{"type": "library"}]}))


def test_a_bill_lists_each_pinned_input_by_its_sha256_and_nothing_else() -> None:
    said = json.loads(bill(lock(), TARGET, model="org/name", digest=Digest.of(b"image")))
    base = lock().base(TARGET).manifest.digest
    assert digests(said) == {base.hex, *(Digest.of(part).hex for part in (b"engine", b"aiohttp", b"runpod", b"weights", b"image"))}
    assert "weights" not in json.dumps(json.loads(bill(lock(), TARGET))["components"])
    purls = {component["purl"].partition("?")[0] for component in said["components"]}
    assert {
        "pkg:pypi/aiohttp@3.14.5",
        "pkg:pypi/runpod@1.12.0",
        "pkg:pypi/fastdeploy-gpu@2.3.0",
        f"pkg:huggingface/org/name@{'0' * 40}",
    } <= purls


def test_the_same_lock_gives_the_same_bill_and_another_lock_another_number() -> None:
    first, again = bill(lock(), TARGET), bill(lock(), TARGET)
    assert first == again
    packages = lock().packages[0]
    fewer = dataclasses.replace(lock(), packages=(dataclasses.replace(packages, wheels=packages.wheels[:1]),))
    assert json.loads(bill(fewer, TARGET))["serialNumber"] != json.loads(first)["serialNumber"]


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["arch=sm89"], 1, "just lock arch=sm89 release=2.3.0 cuda=12.6"),
        (["arch=sm88"], 2, "did you mean sm8"),
        (["arch=sm89", "digest=abc"], 2, "digest: got 'abc', expected sha256:"),
        (["arh=sm89"], 2, "arh: unknown key; did you mean arch?"),
    ],
)
def test_what_has_no_bill_is_said_with_the_way_out(tmp_path: Path, words: list[str], code: int, reason: str) -> None:
    empty = tmp_path / "images.lock.json"
    empty.write_text(Lock().text())
    command = [sys.executable, "-m", "tools.sbom", *words, f"lock={empty}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == code, run
    assert reason in run.stderr


def test_a_bill_goes_to_a_file_where_it_was_asked_for(tmp_path: Path) -> None:
    whole = tmp_path / "whole.json"
    whole.write_text(lock().text())
    command = [sys.executable, "-m", "tools.sbom", "arch=sm89", f"lock={whole}", f"out={tmp_path}/new/sbom.json"]
    subprocess.run(command, cwd=ROOT, timeout=60, check=True)
    assert (tmp_path / "new" / "sbom.json").read_text() == bill(lock(), TARGET)
