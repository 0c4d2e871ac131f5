"""The flake, offline and in Nix's sandbox: it writes the very images that Python writes, fetches by digest, and says what is not pinned."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ci.hosts.servers import free_port
from ci.hosts.shared import Hosts
from ci.nix.offline import Nix, NixFailed
from images.cache import CACHE
from images.releases import read_releases
from tests.images.made import ARCHITECTURES, ROOT, Made, command
from tests.twins.vendor.index import WheelIndex
from tests.twins.vendor.vendor import MODEL, Vendor

pytestmark = pytest.mark.timeout(600)

BAKED = f"baked-{MODEL.replace('/', '--')}"
OFFLINE = {"PIP_INDEX_URL": "", "PIP_EXTRA_INDEX_URL": "", "HF_ENDPOINT": "", "HF_TOKEN": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flake:
    """A copy of this tree with a lock of its own, and Nix with a store of its own."""

    folder: Path

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def nix(self) -> Nix:
        return Nix(folder=self.folder / "nix", tree=self.tree)

    def build(self, name: str, *words: str, **variables: str) -> Path:
        """Build an output of the flake and return where it is."""
        [built] = json.loads(self.nix("build", f"path:.#{name}", "--no-link", "--json", *words, **OFFLINE | variables))
        return Path(built["outputs"]["out"])

    def python(self, out: Path, *words: str) -> Path:
        """Build an image of the same tree without Nix."""
        command = [sys.executable, "-m", "images", "build", *words, f"out={out}", f"cache={CACHE}"]
        done = subprocess.run(command, cwd=self.tree, env=os.environ | {"CALLED_FROM": ""}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return out


@pytest.fixture(scope="session")
def flake(made: Made, hosts: Hosts) -> Flake:
    """The tree with the miniature vendor's lock, what that pins being in the store already; shared by all processes of this run."""
    found = Flake(folder=Path(hosts.folder) / "flake")
    with Path(hosts.folder, "flake.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.folder.exists():
            half = Flake(folder=found.folder.with_name("flake.half"))
            copy_tree(half.tree)
            shutil.copy(made.releases, half.tree / "images" / "releases.toml")
            shutil.copy(made.lock, half.tree / "images" / "images.lock.json")
            half.folder.rename(found.folder)
            pinned = found.folder / "pinned"
            pinned.mkdir()
            for digest in digests(json.loads(made.lock.read_text(encoding="utf-8"))):
                shutil.copy(CACHE / "sha256" / digest, pinned / f"pinned-{digest}")
            found.nix.add(sorted(pinned.iterdir()))
    return found


def copy_tree(folder: Path) -> None:
    """Copy the tree, without what a repository leaves out."""
    ignored = shutil.ignore_patterns(".git", ".venv*", "dist", "htmlcov", ".*_cache", ".hypothesis", ".coverage*", "result*", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=ignored)


def digests(lock: dict[str, Any]) -> Iterator[str]:
    """Yield the hex digests of all files that a lock pins and a build reads."""
    files = [file for entry in (*lock["packages"], *lock["models"]) for file in entry.get("wheels", entry.get("files"))]
    yield from sorted({file["digest"].removeprefix("sha256:") for file in (*files, *(wheel["file"] for wheel in lock["wheels"]))})


def tree_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def digest_of(layout: Path) -> str:
    [entry] = json.loads((layout / "index.json").read_bytes())["manifests"]
    return str(entry["digest"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("image-cpu", ["arch=cpu"]),
        ("image-sm86", ["arch=sm86"]),
        (f"image-sm86-{BAKED}", ["arch=sm86", f"model={MODEL}"]),
    ],
)
def test_nix_and_python_write_the_same_image(name: str, words: list[str], flake: Flake, tmp_path: Path) -> None:
    by_nix, by_python = flake.build(name), flake.python(tmp_path / "out", *words)
    assert digest_of(by_nix) == digest_of(by_python)
    assert tree_of(by_nix) == tree_of(by_python)


def test_building_again_and_under_other_circumstances_agrees(flake: Flake) -> None:
    first = flake.build("image-cpu")
    assert flake.build("image-cpu", "--rebuild") == first
    flake.build("checks.x86_64-linux.digest")


SYSTEMS = {"x86_64-linux", "aarch64-linux", "x86_64-darwin", "aarch64-darwin"}
TOOLS = {"default", "run", "serve", "plan", "deploy"}
PUSHES = {f"push-{architecture}" for architecture in ARCHITECTURES}


def test_every_output_of_a_locked_tree_can_be_evaluated_on_every_system(flake: Flake) -> None:
    outputs = json.loads(flake.nix("flake", "show", "--json", "path:."))
    images = {f"image-{architecture}{suffix}" for architecture in ARCHITECTURES for suffix in ("", f"-{BAKED}")}
    for system in SYSTEMS:
        assert set(outputs["packages"][system]) == {"default", *images}
        assert set(outputs["apps"][system]) == TOOLS | PUSHES
        assert set(outputs["checks"][system]) == {"digest", "laws", "lint", "types"}
        assert set(outputs["devShells"][system]) == {"default"}
        assert outputs["formatter"][system]["type"] == "derivation"


def test_the_tree_as_it_is_shipped_passes_its_checks(shipped: Flake) -> None:
    """Its lock pins no base: images are offered and cannot be built yet, and a check of their digest needs one."""
    shipped.nix("flake", "check", "path:.")
    outputs = json.loads(shipped.nix("flake", "show", "--json", "path:."))
    assert set(outputs["checks"]["x86_64-linux"]) == {"laws", "lint", "types"}
    assert set(outputs["packages"]["x86_64-linux"]) == {"default", *(f"image-{architecture}" for architecture in ARCHITECTURES)}


def test_nix_run_answers_a_prompt_and_the_other_tools_are_programs_too(shipped: Flake) -> None:
    answered = shipped.nix("run", "path:.", "--", "prompt=Who are you?")
    assert "demo model" in answered
    planned = shipped.nix("run", "path:.#plan", "--", "model=checkpoint", "gpu=ADA_24", CALLED_FROM=str(shipped.tree / "ci" / "demo_model"))
    assert "ADA_24" in planned
    with pytest.raises(NixFailed, match="image: missing"):
        shipped.nix("run", "path:.#deploy", "--", "gpu=ADA_24", "endpoint=x")


def test_nix_run_serve_is_a_server(shipped: Flake) -> None:
    port = free_port()
    command = shipped.nix.command("run", "path:.#serve", "--", f"port={port}")
    with subprocess.Popen(
        command, cwd=shipped.tree, env=shipped.nix.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while True:
                assert process.poll() is None, process.stdout and process.stdout.read().decode()
                assert time.monotonic() < deadline
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                        assert b"<html" in answer.read().lower()
                        break
                except OSError:
                    time.sleep(0.2)
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=60)


def test_nix_fmt_formats(shipped: Flake) -> None:
    path = shipped.tree / "tools" / "odd.py"
    path.write_text("x   =  'y'\n")
    shipped.nix("fmt", "tools/odd.py")
    assert path.read_text() == 'x = "y"\n'


def test_the_push_app_pushes_what_nix_built(flake: Flake, made: Made, hosts: Hosts) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    pushed = flake.nix("run", "path:.#push-cpu", "--", f"to={hosts.registry}/nix/worker:cpu", **OFFLINE, PATH=path)
    assert pushed.splitlines()[-1] == digest_of(flake.build("image-cpu"))


@pytest.fixture
def shipped(tmp_path: Path) -> Iterator[Flake]:
    """The tree as it is, whose lock has no base, no engine and no model, and a store that is empty."""
    found = Flake(folder=tmp_path)
    copy_tree(found.tree)
    yield found
    shutil.rmtree(found.nix.folder, ignore_errors=True)


@pytest.fixture
def small(made: Made, shipped: Flake) -> Flake:
    """A tree whose lock has one package and a model."""
    found = shipped
    shutil.copy(made.releases, found.tree / "images" / "releases.toml")
    lock = json.loads(made.lock.read_text(encoding="utf-8"))
    for entry in lock["packages"]:
        entry["wheels"] = [wheel for wheel in entry["wheels"] if wheel["name"].startswith("h11-")]
    (found.tree / "images" / "images.lock.json").write_text(json.dumps(lock), encoding="utf-8")
    return found


def offer(folder: Path, lock: Path, *, ending: bytes = b"") -> Path:
    """Make the folder of an index that has the lock's one package, with other bytes if an `ending` is given."""
    [wheel] = next(entry["wheels"] for entry in json.loads(lock.read_text(encoding="utf-8"))["packages"] if entry["engine"] == "cpu")
    (folder / "h11").mkdir(parents=True)
    data = (CACHE / "sha256" / wheel["digest"].removeprefix("sha256:")).read_bytes()
    (folder / "h11" / wheel["name"]).write_bytes(data + ending)
    return folder


def test_each_pinned_file_is_fetched_by_itself_in_the_sandbox(small: Flake, vendor: Vendor, tmp_path: Path) -> None:
    with WheelIndex(offer(tmp_path / "simple", small.tree / "images" / "images.lock.json")) as index:
        by_nix = small.build(f"image-cpu-{BAKED}", **vendor.hub.environment() | {"PIP_INDEX_URL": index.url})
    assert digest_of(by_nix) == digest_of(small.python(tmp_path / "out", "arch=cpu", f"model={MODEL}"))


def test_other_bytes_than_the_pinned_ones_are_refused_by_name(small: Flake, tmp_path: Path) -> None:
    folder = offer(tmp_path / "simple", small.tree / "images" / "images.lock.json", ending=b"more")
    with WheelIndex(folder) as index, pytest.raises(NixFailed, match=r"DO NOT MATCH THE HASHES(.|\n)*h11==") as refused:
        small.build("image-cpu", PIP_INDEX_URL=index.url)
    assert "Expected sha256" in str(refused.value)


ASKING = """
{
  inputs.nixpkgs.url = "nixpkgs";
  outputs = { self, nixpkgs }:
    let
      pkgs = nixpkgs.legacyPackages.x86_64-linux;
      tools.nativeBuildInputs = [ (pkgs.python3.withPackages (ps: [ ])) ];
      ask = attributes: pkgs.runCommand "ask" (tools // attributes) "ASK; touch $out";
    in {
      packages.x86_64-linux = {
        open = ask { };
        pinned = ask { outputHashAlgo = "sha256"; outputHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"; };
      };
    };
}
"""


def test_a_build_has_no_network_unless_its_result_is_pinned(shipped: Flake, tmp_path: Path) -> None:
    with WheelIndex(tmp_path) as index:
        ask = f"python3 -c 'import socket; socket.create_connection((\\\"127.0.0.1\\\", {urlsplit(index.url).port}))'"
        (shipped.tree / "flake.nix").write_text(ASKING.replace("ASK", ask), encoding="utf-8")
        with pytest.raises(NixFailed, match=r"Connection refused|Network is unreachable"):
            shipped.build("open")
        shipped.build("pinned")


@pytest.mark.parametrize("architecture", ["sm80", "sm89", "cpu"])
def test_what_is_not_pinned_stops_the_build_with_the_command_that_pins_it(architecture: str, shipped: Flake) -> None:
    wanted = read_releases().target(architecture).arguments
    with pytest.raises(NixFailed, match=f"error: the base .*: not in the lock.*; pin with `ci/just lock {re.escape(wanted)}`"):
        shipped.build(f"image-{architecture}")
    with pytest.raises(NixFailed, match=r"error: the base .*: not in the lock"):
        shipped.nix("run", f"path:.#push-{architecture}", "--", "to=127.0.0.1:9/a/b:c")


def test_a_model_and_an_engine_that_are_not_pinned_are_named_too(flake: Flake, shipped: Flake) -> None:
    said = flake.nix("eval", "--raw", "path:.#lib", "--apply", 'lib: (lib.image { arch = "cpu"; model = "org/name"; }).said', **OFFLINE)
    assert said == "error: the model org/name: not in the lock; pin with `ci/just lock arch=cpu model=org/name`"
    lock = json.loads((flake.tree / "images" / "images.lock.json").read_text(encoding="utf-8"))
    shutil.copy(flake.tree / "images" / "releases.toml", shipped.tree / "images" / "releases.toml")
    (shipped.tree / "images" / "images.lock.json").write_text(json.dumps(lock | {"wheels": []}), encoding="utf-8")
    with pytest.raises(NixFailed, match=r"error: FastDeploy 2.3.0 for sm86 and sm89: not in the lock; pin with `ci/just lock arch=sm89"):
        shipped.build("image-sm89")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ('arch = "sm70";', "arch: got 'sm70', expected one of cpu, sm80, sm86, sm89, sm90"),
        ('arch = "sm80"; release = "9.9.9";', "release: got '9.9.9', expected one of 2.3.0, 2.4.0, 2.5.0"),
        ('arch = "sm80"; cuda = "11.8";', "cuda: got '11.8', expected one of 12.6"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(asked: str, said: str, shipped: Flake) -> None:
    with pytest.raises(NixFailed, match=re.escape(said)):
        evaluate(shipped, f"image {{ {asked} }}")


def test_a_machine_without_nix_is_told_which_package_has_it(shipped: Flake) -> None:
    with pytest.raises(NixFailed, match=r"nix: not found on this machine; install it \(Debian: apt-get install nix-bin\)"):
        shipped.build("image-cpu", PATH="/nowhere")


def test_fetching_only_a_file_that_no_image_reads_is_refused(made: Made, tmp_path: Path) -> None:
    digest = f"sha256:{'0' * 64}"
    done = command("fetch", "arch=cpu", f"only={digest}", f"releases={made.releases}", f"lock={made.lock}", f"cache={tmp_path}")
    assert (done.returncode, done.stderr.strip()) == (2, f"error: only: got {digest}, expected a file that the image of arch=cpu reads")


def evaluate(flake: Flake, expression: str) -> str:
    """Evaluate an expression over what the flake's lib has."""
    return flake.nix("eval", "--raw", "path:.#lib", "--apply", f"lib: (lib.{expression}).drvPath", **OFFLINE)


def test_the_flakes_lock_pins_the_real_nixpkgs_and_builds_leave_it_alone(shipped: Flake) -> None:
    before = (shipped.tree / "flake.lock").read_bytes()
    lock = json.loads(before)
    assert lock["nodes"]["root"]["inputs"] == {"nixpkgs": "nixpkgs"}
    locked, original = lock["nodes"]["nixpkgs"]["locked"], lock["nodes"]["nixpkgs"]["original"]
    flake = (shipped.tree / "flake.nix").read_text(encoding="utf-8")
    assert f'inputs.nixpkgs.url = "github:{original["owner"]}/{original["repo"]}/{original["ref"]}"' in flake
    assert re.fullmatch(r"[0-9a-f]{40}", locked["rev"])
    assert re.fullmatch(r"sha256-[A-Za-z0-9+/]{43}=", locked["narHash"])
    shipped.nix("eval", "--json", "path:.#packages.x86_64-linux", "--apply", "builtins.attrNames")
    assert (shipped.tree / "flake.lock").read_bytes() == before
