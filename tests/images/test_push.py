"""Pushes through a registry that fails, lies or asks for an account; the rules are those of images/push.py."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoint import http_client
from ci.hosts.shared import Hosts
from images import skopeo
from images.build_errors import DigestMismatch, ImageError, Unreachable
from images.digest import Digest
from images.push import copy_base, push
from images.registry import ImageReference, RegistryRepository
from tests.images.faulty import FaultyRegistry, RegistryFault
from tests.images.made import ARCHITECTURES, ROOT, Made, command
from tests.images.small import base_of, small_image

pytestmark = pytest.mark.timeout(600)

LITTLE = random.Random(1).randbytes(1 << 20)
LAYER = random.Random(0).randbytes(5 << 20)
"""More than is sent without skopeo."""

UPLOAD = r"/blobs/uploads/"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once: what a registry here fails to do, it fails as often as it was told to, whatever the time."""
    monkeypatch.setattr(http_client, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(skopeo, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def target() -> str:
    """A repository of the test's own."""
    return f"test/{uuid.uuid4().hex[:12]}"


def tags(hosts: Hosts, repository: str) -> list[str]:
    """Return the tags of images that a repository of the real registry has, without those of bases."""
    try:
        with RegistryRepository(ImageReference.parse(f"{hosts.registry}/{repository}"))._ask("tags/list") as answer:
            return [tag for tag in json.load(answer)["tags"] or [] if not tag.startswith("base-")]
    except Unreachable:
        return []


@pytest.mark.parametrize("baked", [False, True], ids=["bare", "baked"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_pushed_digest_is_the_built_one_and_skopeo_sees_it(architecture: str, baked: bool, made: Made) -> None:
    image = made.image(architecture, baked=baked)
    assert image.pushed == image.digest
    seen = json.loads(subprocess.check_output(["skopeo", "inspect", "--tls-verify=false", f"docker://{image.reference}"]))
    assert seen["Digest"] == image.digest
    assert seen["Labels"]["org.opencontainers.image.base.digest"].startswith("sha256:")


def test_skopeo_copies_an_image_elsewhere_unchanged(made: Made, hosts: Hosts, target: str, tmp_path: Path) -> None:
    image = made.image("sm86", baked=True)
    subprocess.run(
        [
            "skopeo",
            "copy",
            "--quiet",
            "--preserve-digests",
            "--src-tls-verify=false",
            f"docker://{image.reference}",
            f"oci:{tmp_path}/copied:x",
        ],
        check=True,
    )
    [entry] = json.loads((tmp_path / "copied" / "index.json").read_text())["manifests"]
    assert entry["digest"] == image.digest


def test_an_edit_uploads_its_own_layer_and_never_the_base(hosts: Hosts, target: str, tmp_path: Path) -> None:
    base = base_of(hosts)
    copy_base(ImageReference.parse(base.reference).at(base.manifest.digest), ImageReference.parse(f"{hosts.registry}/{target}"))
    with FaultyRegistry(hosts.registry) as proxy:
        to = ImageReference.parse(f"{proxy.address}/{target}:latest")
        push(small_image(base, tmp_path / "first", LAYER, b"one"), to)
        before = proxy.sent
        push(small_image(base, tmp_path / "second", LAYER, b"two"), to)
        edit = proxy.sent - before
    assert before < len(LAYER) + 100_000 < sum(layer.size for layer in base.layers)
    assert edit < 40_000


def test_a_registry_that_fails_now_and_then_is_asked_again(hosts: Hosts, target: str, tmp_path: Path) -> None:
    image = small_image(base_of(hosts), tmp_path / "image", LAYER)
    copy_base(image.base, ImageReference.parse(f"{hosts.registry}/{target}"))
    faults = (
        RegistryFault(method="POST", path=UPLOAD, status=500),
        RegistryFault(method="PATCH", path=UPLOAD, drop_after=1 << 20),
        RegistryFault(method="PUT", path="/manifests/", status=503),
        RegistryFault(method="GET", path="/manifests/", status=502),
    )
    with FaultyRegistry(hosts.registry, *faults) as proxy:
        assert push(image, ImageReference.parse(f"{proxy.address}/{target}:latest")) == image.digest
        assert not any(fault.times for fault in faults)
    assert tags(hosts, target) == ["latest"]


@pytest.mark.parametrize(("path", "times"), [(UPLOAD, 8), ("/manifests/sha256:", 4)], ids=["two blobs", "manifest"])
def test_what_a_registry_does_not_take_from_here_goes_through_skopeo(
    path: str, times: int, hosts: Hosts, target: str, tmp_path: Path
) -> None:
    """Rule 3: four tries of each from here, and then another program's."""
    image = small_image(base_of(hosts), tmp_path / "image", LITTLE)
    copy_base(image.base, ImageReference.parse(f"{hosts.registry}/{target}"))
    with FaultyRegistry(hosts.registry, RegistryFault(method="PUT", path=path, status=500, times=times)) as proxy:
        assert push(image, ImageReference.parse(f"{proxy.address}/{target}:latest")) == image.digest
        assert not proxy.faults[0].times
    assert tags(hosts, target) == ["latest"]


def test_an_edit_is_pushed_without_another_program(hosts: Hosts, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 3."""
    base, to = base_of(hosts), ImageReference.parse(f"{hosts.registry}/{target}:latest")
    copy_base(ImageReference.parse(base.reference).at(base.manifest.digest), to)
    monkeypatch.setenv("PATH", "/nonexistent")
    for number, content in enumerate((LITTLE, LITTLE + b"edited")):
        image = small_image(base, tmp_path / str(number), b"the same", content)
        assert push(image, to) == image.digest
    with pytest.raises(Unreachable, match="skopeo: not found on this machine; install it"):
        push(small_image(base, tmp_path / "large", LAYER), to)


@pytest.mark.parametrize("content", [LITTLE, LAYER], ids=["sent from here", "sent by skopeo"])
@pytest.mark.parametrize(
    "fault",
    [
        RegistryFault(method="P(ATCH|UT)", path=UPLOAD, times=1000, drop_after=1 << 20),
        RegistryFault(method="POST", path=UPLOAD, times=1000, status=500),
        RegistryFault(method="PUT", path="/manifests/", times=1000, status=500),
    ],
    ids=["drops mid-upload", "500 for uploads", "500 for manifests"],
)
def test_a_registry_that_fails_for_good_is_named_and_the_next_push_finishes(
    fault: RegistryFault, content: bytes, hosts: Hosts, target: str, tmp_path: Path
) -> None:
    image = small_image(base_of(hosts), tmp_path / "image", b"small", content)
    # Each case begins with the base in place: the faults are for the image.
    copy_base(image.base, ImageReference.parse(f"{hosts.registry}/{target}"))
    with FaultyRegistry(hosts.registry, replace(fault)) as proxy:
        to = ImageReference.parse(f"{proxy.address}/{target}:latest")
        with pytest.raises(Unreachable, match=target):
            push(image, to)
        assert tags(hosts, target) == []
        proxy.faults.clear()
        assert push(image, to) == image.digest
    assert tags(hosts, target) == ["latest"]


def test_a_registry_that_gives_back_something_else_never_gets_the_tag(hosts: Hosts, target: str, tmp_path: Path) -> None:
    """Rule 1: the tag moves only when the registry has given the manifest back byte for byte."""
    image = small_image(base_of(hosts), tmp_path / "image", LAYER)
    copy_base(image.base, ImageReference.parse(f"{hosts.registry}/{target}"))
    lie = RegistryFault(method="GET", path=f"/manifests/{image.digest}", times=1000, lie=b'{"schemaVersion": 2}')
    with FaultyRegistry(hosts.registry, lie) as proxy, pytest.raises(DigestMismatch, match="use another"):
        push(image, ImageReference.parse(f"{proxy.address}/{target}:latest"))
    assert tags(hosts, target) == []


@pytest.mark.parametrize("content", [LITTLE, LAYER], ids=["sent from here", "sent by skopeo"])
def test_a_layer_that_was_tampered_with_never_gets_the_tag(content: bytes, hosts: Hosts, target: str, tmp_path: Path) -> None:
    image = small_image(base_of(hosts), tmp_path / "image", content)
    largest = max((tmp_path / "image" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[5000] ^= 1
    largest.write_bytes(data)
    with pytest.raises(ImageError, match=largest.name):
        push(image, ImageReference.parse(f"{hosts.registry}/{target}:latest"))
    assert tags(hosts, target) == []


def test_a_push_killed_in_the_middle_moves_no_tag_and_the_next_one_finishes(hosts: Hosts, target: str, tmp_path: Path) -> None:
    """Rule 2: a blob that the target has is not sent again."""
    image = small_image(base_of(hosts), tmp_path / "image", LAYER, LAYER[::-1])
    copy_base(image.base, ImageReference.parse(f"{hosts.registry}/{target}"))
    stalled = RegistryFault(method="PUT", path=r"/manifests/", stall=threading.Event())
    with FaultyRegistry(hosts.registry, stalled) as proxy:
        to = f"{proxy.address}/{target}:latest"
        words = ["push", "arch=cpu", f"out={image.layout}", f"to={to}"]
        with subprocess.Popen(
            [sys.executable, "-m", "images", *words], cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE
        ) as process:
            assert stalled.stall
            assert stalled.stall.wait(60)
            os.killpg(process.pid, signal.SIGKILL)
        assert tags(hosts, target) == []
        before = proxy.sent
        assert push(image, ImageReference.parse(to)) == image.digest
        assert proxy.sent - before < 20_000
    assert tags(hosts, target) == ["latest"]


def test_the_users_account_is_read_from_the_usual_file(hosts: Hosts, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = small_image(base_of(hosts), tmp_path / "image", b"private")
    with FaultyRegistry(hosts.registry, account=("somebody", "pass:word")) as proxy:
        auth = tmp_path / "auth.json"
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth))
        to = ImageReference.parse(f"{proxy.address}/{target}:latest")
        auth.write_text(json.dumps({"auths": {proxy.address: {"auth": base64.b64encode(b"somebody:wrong").decode()}}}))
        with pytest.raises(ImageError, match="invalid username/password"):
            push(image, to)
        auth.write_text(json.dumps({"auths": {proxy.address: {"auth": base64.b64encode(b"somebody:pass:word").decode()}}}))
        assert push(image, to) == image.digest
        assert proxy.tokens


def test_only_what_the_image_names_is_sent(hosts: Hosts, target: str, tmp_path: Path) -> None:
    """A killed builder leaves blobs of an image that is not there yet, and part of one."""
    image = small_image(base_of(hosts), tmp_path / "image", LITTLE)
    copy_base(image.base, ImageReference.parse(f"{hosts.registry}/{target}"))
    blobs = image.layout / "blobs" / "sha256"
    (blobs / ".part-4242").write_bytes(b"half")
    (blobs / Digest.of(LAYER).hex).write_bytes(LAYER)
    to = ImageReference.parse(f"{hosts.registry}/{target}:latest")
    assert push(image, to) == image.digest
    assert not RegistryRepository(to).has(Digest.of(LAYER))


def test_a_registry_that_takes_the_base_and_shows_it_to_nobody_is_told_by_its_own_words(hosts: Hosts, target: str, tmp_path: Path) -> None:
    image = small_image(base_of(hosts), tmp_path / "image", LITTLE)
    hidden = RegistryFault(method="GET", path="/manifests/base-", status=403, times=1000)
    with FaultyRegistry(hosts.registry, hidden) as proxy, pytest.raises(Unreachable, match="the server answered 403"):
        push(image, ImageReference.parse(f"{proxy.address}/{target}:latest"))


def test_a_folder_that_holds_no_image_is_refused(tmp_path: Path) -> None:
    done = command("push", "arch=cpu", f"out={tmp_path}", "to=127.0.0.1:1/a/b:c")
    assert done.returncode == 1
    assert "just build-image" in done.stderr
    assert str(tmp_path) in done.stderr


def test_a_target_without_a_tag_is_refused(hosts: Hosts, tmp_path: Path) -> None:
    image = small_image(base_of(hosts), tmp_path / "image", b"x")
    with pytest.raises(ImageError, match="registry/repository:tag"):
        push(image, ImageReference.parse(f"{hosts.registry}/a/b"))
