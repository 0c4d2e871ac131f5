"""The first command after the clone gives an image, and whatever is missing on the way is one sentence with the way out."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ci.hosts.shared import Hosts
from images.lock import Lock, read_lock
from images.verify import verify
from tests.images.faulty import FaultyRegistry
from tests.images.made import command, seed_lock, succeed
from tests.twins.vendor.vendor import LATER, MODEL, Vendor, push_base

pytestmark = pytest.mark.timeout(600)

NOWHERE = "http://127.0.0.1:9"
"""Nothing listens there."""


@dataclass(frozen=True, slots=True)
class Clone:
    """A user's files: a lock as it is shipped, with the worker's packages, and nothing fetched yet."""

    folder: Path
    vendor: Vendor

    @property
    def lock(self) -> Path:
        return self.folder / "lock.json"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def words(self, *words: str, releases: Path | None = None) -> list[str]:
        return [*words, f"releases={releases or self.vendor.releases}", f"lock={self.lock}", f"cache={self.cache}", f"out={self.out}"]

    def releases(self, old: str, new: str) -> Path:
        """A table of releases with one address changed."""
        path = self.folder / "releases.toml"
        text = self.vendor.releases.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return path

    def check_untouched(self, done: subprocess.CompletedProcess[str]) -> str:
        """The command failed with one sentence and left nothing half-written; returns the sentence."""
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        problems = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(problems) == 1, done.stderr
        assert not self.out.exists()
        read_lock(self.lock)
        left = [path.name for path in self.folder.rglob("*") if path.name.startswith((".lock.json", "images-")) or path.suffix == ".part"]
        assert not left
        return problems[0]


@pytest.fixture
def clone(vendor: Vendor, tmp_path: Path) -> Clone:
    found = Clone(tmp_path, vendor)
    seed_lock(found.lock)
    if not found.lock.exists():
        found.lock.write_text(Lock().text())
    return found


def test_the_first_command_pins_fetches_and_builds_and_the_second_finds_all_pinned(clone: Clone, vendor: Vendor) -> None:
    words = clone.words("arch=sm89", f"model={MODEL}", "quantization=wint4")
    first = command("fetch,build", *words, **vendor.hub.environment())
    assert first.returncode == 0, first.stderr
    pinned = re.findall(r"^pinning (.*) as of today, in .*/lock\.json$", first.stderr, re.MULTILINE)
    assert pinned[:3] == [f"model {MODEL}", f"base {vendor.base}", "FastDeploy 2.3.0"], "the hub is asked first"
    digest = first.stdout.splitlines()[-1]
    assert str(verify(clone.out, clone.lock)) == digest
    second = command("fetch,build", *words, "locked=yes", **vendor.hub.environment())
    assert second.returncode == 0, second.stderr
    assert "pinning" not in second.stderr
    assert second.stdout.splitlines()[-1] == digest


def test_a_revision_that_is_asked_for_is_pinned_in_the_place_of_another(clone: Clone, vendor: Vendor) -> None:
    commit = vendor.hub.repositories[MODEL].revisions["main"]
    vendor.hub.repositories[MODEL].revisions["v1"] = commit
    words = clone.words("arch=cpu", f"model={MODEL}")
    succeed("fetch", *words, **vendor.hub.environment())
    succeed("fetch", *words, "revision=v1", **vendor.hub.environment())
    assert [model.revision for model in read_lock(clone.lock).models] == ["v1"]
    refused = command("fetch", *words, "revision=main", "locked=yes", **vendor.hub.environment())
    assert f"the model {MODEL}: locked at revision v1, expected main; pin with `ci/just lock" in refused.stderr
    succeed("fetch", *words, f"revision={commit}", "locked=yes", **vendor.hub.environment())


def test_with_locked_nothing_is_pinned_and_the_command_that_pins_has_the_users_own_words(clone: Clone, vendor: Vendor) -> None:
    before = clone.lock.read_bytes()
    done = command("fetch,build", *clone.words("arch=sm89", f"model={MODEL}"), "locked=yes")
    said = clone.check_untouched(done)
    words = f"arch=sm89 releases={vendor.releases} lock={clone.lock} model={MODEL} cache={clone.cache}"
    assert said.endswith(f"; pin with `ci/just lock {words}`")
    assert clone.lock.read_bytes() == before
    assert not clone.cache.exists()


def test_what_was_pinned_before_the_network_failed_is_kept_for_the_next_try(clone: Clone, vendor: Vendor) -> None:
    words = ("arch=sm89", f"model={MODEL}")
    half = clone.releases(vendor.index, f"{NOWHERE}/simple/")
    first = command("fetch,build", *clone.words(*words, releases=half), **vendor.hub.environment())
    said = clone.check_untouched(first)
    assert re.search(r"the package index does not answer \(Connection refused\); check the network, the proxy and PIP_INDEX_URL", said)
    kept = read_lock(clone.lock)
    assert ([model.repository for model in kept.models], [base.reference for base in kept.bases]) == ([MODEL], [vendor.base])
    again = command("fetch,build", *clone.words(*words), **vendor.hub.environment())
    assert again.returncode == 0, again.stderr
    assert "reading layer" not in again.stderr
    assert re.findall(r"^pinning (.*) as of today", again.stderr, re.MULTILINE)[:1] == ["FastDeploy 2.3.0"]


def test_a_release_that_the_table_lacks_is_built_from_the_base_that_the_user_names(clone: Clone, hosts: Hosts) -> None:
    base = f"{hosts.registry}/vendor/fastdeploy-cuda-12.6:{LATER}"
    push_base(base, LATER)
    unknown = command("fetch,build", *clone.words("arch=sm89", f"release={LATER}"))
    assert unknown.returncode == 2
    assert f"another one needs the base image that holds it, probably base={base}\n" in unknown.stderr
    words = clone.words("arch=sm89", f"release={LATER}", f"base={base}")
    digest = succeed("fetch,build", *words)[-1]
    assert str(verify(clone.out, clone.lock)) == digest
    [wheel] = read_lock(clone.lock).wheels
    assert (wheel.release, wheel.file.name) == (LATER, f"fastdeploy_gpu-{LATER}-py3-none-any.whl")
    manifest = json.loads((clone.out / "index.json").read_text())["manifests"][0]["digest"].partition(":")[2]
    config = json.loads((clone.out / "blobs" / "sha256" / manifest).read_text())["config"]["digest"].partition(":")[2]
    labels = json.loads((clone.out / "blobs" / "sha256" / config).read_text())["config"]["Labels"]
    assert labels["org.opencontainers.image.base.name"] == base


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("release=9.9.9", "base=registry.example/a:1"), "release: got '9.9.9', expected a version of one of 2.3"),
        (("release=latest", "base=registry.example/a:1"), "release: got 'latest', expected a version of one of 2.3"),
        (("base=registry.example/a",), "base: got 'registry.example/a', expected registry/repository:tag"),
        (("base=file:///etc/passwd:1",), "base: got 'file:///etc/passwd:1', expected registry/repository:tag"),
        (("cuda=11.8", "base=registry.example/a:1"), "there is no such image; expected one of"),
    ],
)
def test_a_release_or_a_base_that_cannot_be_is_refused(words: tuple[str, ...], complaint: str, clone: Clone) -> None:
    done = command("fetch,build", *clone.words("arch=sm89", *words))
    assert (done.returncode, complaint in done.stderr) == (2, True), done.stderr


UNREACHABLE: dict[str, tuple[Callable[[Vendor], tuple[str, str]], dict[str, str], str]] = {
    "the hub": (
        lambda _: ("", ""),
        {"HF_ENDPOINT": NOWHERE},
        r"MODEL=demo/sharded: http://127\.0\.0\.1:9 cannot be reached .*: check the network, or HF_ENDPOINT if it is set",
    ),
    "the registry": (
        lambda vendor: (vendor.base, vendor.base.replace(vendor.base.partition("/")[0], "127.0.0.1:9")),
        {},
        r"GET http://127\.0\.0\.1:9/v2/.*: no answer: .*Connection refused; check the address and the network",
    ),
    "the package index": (
        lambda vendor: (vendor.index, f"{NOWHERE}/simple/"),
        {},
        r"pip install: the package index does not answer \(Connection refused\); check the network, the proxy and PIP_INDEX_URL",
    ),
}


@pytest.mark.parametrize("name", UNREACHABLE)
def test_a_server_that_does_not_answer_is_one_sentence(name: str, clone: Clone, vendor: Vendor) -> None:
    edit, environment, expected = UNREACHABLE[name]
    done = command(
        "fetch,build",
        *clone.words("arch=sm89", f"model={MODEL}", releases=clone.releases(*edit(vendor))),
        **vendor.hub.environment() | environment,
    )
    assert re.search(expected, clone.check_untouched(done)), done.stderr


def test_an_account_that_the_registry_does_not_accept_is_one_sentence(clone: Clone, vendor: Vendor, hosts: Hosts) -> None:
    with FaultyRegistry(hosts.registry, account=("somebody", "right")) as proxy:
        accounts = clone.folder / "auth.json"
        accounts.write_text(json.dumps({"auths": {proxy.address: {"auth": "c29tZWJvZHk6d3Jvbmc="}}}))
        releases = clone.releases(hosts.registry, proxy.address)
        done = command("fetch,build", *clone.words("arch=sm80", releases=releases), REGISTRY_AUTH_FILE=str(accounts))
    said = clone.check_untouched(done)
    assert "401" in said
    assert said.endswith(f"; log in with `skopeo login {proxy.address}`")
    assert "wrong" not in said


def test_a_lock_that_cannot_be_written_is_named_before_the_work(clone: Clone, vendor: Vendor) -> None:
    words = [word for word in clone.words("arch=sm80") if not word.startswith("lock=")]
    done = command("lock", *[word for word in words if not word.startswith("out=")], "lock=/nonexistent/lock.json")
    assert (done.returncode, done.stderr) == (
        1,
        "error: lock: /nonexistent/lock.json: cannot be written; name a file in a folder that exists and can be written with lock=\n",
    )
    assert not clone.cache.exists()


def test_a_missing_program_is_named_before_the_work(clone: Clone) -> None:
    done = command("fetch,build,push", *clone.words("arch=sm89"), "to=127.0.0.1:9/me/worker:1", PATH="/nonexistent")
    assert clone.check_untouched(done) == "error: skopeo: not found on this machine; install it (Debian: apt-get install skopeo)"
    assert not clone.cache.exists()


def test_a_docker_that_does_not_answer_is_named_before_the_work(clone: Clone) -> None:
    done = command("fetch,build,load", *clone.words("arch=sm89"), DOCKER_HOST="unix:///nonexistent/docker.sock")
    said = "error: Docker does not answer at unix:///nonexistent/docker.sock (No such file or directory); start it, or set DOCKER_HOST to"
    assert clone.check_untouched(done).startswith(said)
    assert not clone.cache.exists()
