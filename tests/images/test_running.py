"""What a container of each image is, seen from inside it by a real Docker Engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ci.hosts.shared import Hosts
from tests.images.containers import Container
from tests.images.made import ARCHITECTURES, Made, succeed
from tests.twins.vendor.builds import SITE
from tests.twins.vendor.vendor import MODEL, RELEASE

pytestmark = pytest.mark.timeout(600)

QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, "temperature": 0}
GPUS = {"sm80": "8.0", "sm86": "8.6", "sm89": "8.9", "sm90": "9.0"}
BUILDS = {"sm80": "80_90", "sm90": "80_90", "sm86": "86_89", "sm89": "86_89"}
_LEFT_BY_PIP = {"fastdeploy/__pycache__/old.cpython-311.pyc", f"fastdeploy_gpu-{RELEASE}.dist-info/INSTALLER"}
_HELD = """
import importlib.metadata, json, os, fastdeploy
distributions = [d for d in importlib.metadata.distributions() if "fastdeploy" in d.metadata["Name"]]
files = [os.path.relpath(os.path.join(top, name), SITE) for top, _, names in os.walk(SITE) for name in names]
print(json.dumps({
    "build": fastdeploy.BUILD,
    "versions": [d.version for d in distributions],
    "recorded": sorted(str(file) for d in distributions for file in d.files),
    "missing": [str(file) for d in distributions for file in d.files if not os.path.exists(d.locate_file(file))],
    "files": sorted(file for file in files if file.startswith("fastdeploy")),
}))
"""

_SEEN = """
import importlib.util, json
names = ("aiohttp", "fastdeploy", "handler", "paddle", "psutil", "runpod")
found = {name: importlib.util.find_spec(name) for name in names}
print(json.dumps({name: spec.origin for name, spec in found.items() if spec}))
"""


@pytest.mark.parametrize("architecture", BUILDS)
def test_a_container_has_the_build_for_its_gpu_and_no_file_of_the_other(architecture: str, made: Made, hosts: Hosts) -> None:
    build = BUILDS[architecture]
    other = {"80_90": "86_89", "86_89": "80_90"}[build]
    reference = made.image(architecture, baked=False).reference
    idle = ("--network", "none", "--entrypoint", "sleep")
    with Container(hosts.docker, reference, *idle, command=("600",)) as container:
        held = json.loads(container.python(f"SITE = '/{SITE}'\n{_HELD}"))
        everywhere = container.run("find", "/", "-xdev", "-name", f"*{other}*", "-not", "-path", "/proc/*").split()
        script = container.run("cat", "/usr/local/bin/fastdeploy")
    assert held["build"] == build
    assert held["versions"] == [RELEASE]
    assert held["missing"] == []
    assert everywhere == []
    assert f"fastdeploy/only_{build}.py" in held["files"]
    # What no record names is what pip leaves beside its own; nothing of the old build's stays beside the new one.
    assert set(held["files"]) - set(held["recorded"]) == (_LEFT_BY_PIP if build == "80_90" else set())
    assert "fastdeploy.entrypoints" in script


@pytest.mark.parametrize("architecture", GPUS)
def test_a_baked_image_answers_with_its_own_build_and_the_network_off(architecture: str, made: Made, hosts: Hosts) -> None:
    reference = made.image(architecture, baked=True).reference
    options = ("--network", "none", "--env", "PORT=8000", "--env", f"MINIATURE_GPU={GPUS[architecture]}")
    with Container(hosts.docker, reference, *options) as container:
        container.wait_ready()
        answer = container.ask("/v1/chat/completions", QUESTION)
    assert answer["choices"][0]["message"]["content"] == BUILDS[architecture]


def test_an_image_refuses_a_gpu_that_it_has_no_kernels_for(made: Made, hosts: Hosts) -> None:
    reference = made.image("sm86", baked=True).reference
    options = ("--network", "none", "--env", "PORT=8000", "--env", "MINIATURE_GPU=9.0")
    with Container(hosts.docker, reference, *options) as container:
        assert "SM86" in container.wait_line("SM90")
        assert hosts.docker("wait", container.name).strip() == "1"


def test_the_baked_cpu_image_answers_from_the_checkpoint_with_the_network_off(made: Made, hosts: Hosts) -> None:
    with Container(hosts.docker, made.image("cpu", baked=True).reference, "--network", "none", "--env", "PORT=8000") as container:
        container.wait_ready()
        answer = container.ask("/v1/chat/completions", QUESTION)
        hosts.docker("stop", "--time", "30", container.name)
        state = json.loads(hosts.docker("inspect", "--format", "{{json .State}}", container.name))
    assert answer["choices"][0]["message"]["content"].startswith("Hello")
    assert answer["usage"]["completion_tokens"] == 5
    assert state["ExitCode"] == 0


HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")  # noqa: S108  # the container's own


@pytest.mark.parametrize("user", ["", "1000:1000"], ids=["root", "a user of its own"])
@pytest.mark.parametrize("architecture", ["cpu", "sm86"])
def test_a_container_needs_no_capability_and_no_writable_root(architecture: str, user: str, made: Made, hosts: Hosts) -> None:
    """With the model in the image; the kernel's list of the worker's capabilities is empty, and nothing but /tmp can be written."""
    options = ("--network", "none", "--env", "PORT=8000", "--env", "MINIATURE_GPU=8.6", *HARDENED, *(("--user", user) if user else ()))
    with Container(hosts.docker, made.image(architecture, baked=True).reference, *options) as container:
        container.wait_ready()
        answer = container.ask("/v1/chat/completions", QUESTION)
        status = container.run("cat", "/proc/1/status")
        owner = container.run("sh", "-c", "id -u; touch /worker/x 2>&1 || true").split("\n")
        hosts.docker("stop", "--time", "30", container.name)
        state = json.loads(hosts.docker("inspect", "--format", "{{json .State}}", container.name))
    assert answer["choices"][0]["message"]["content"]
    assert "CapEff:\t0000000000000000" in status
    assert owner[0] == (user.partition(":")[0] or "0")
    assert "Read-only file system" in owner[1]
    assert state["ExitCode"] == 0


def test_an_image_that_was_built_with_a_user_runs_as_that_user(made: Made, hosts: Hosts, tmp_path: Path) -> None:
    words = (f"releases={made.releases}", f"lock={made.lock}", "arch=cpu", f"model={MODEL}", f"out={tmp_path / 'out'}", "user=1000:1000")
    to = f"{hosts.registry}/me/worker:with-a-user"
    built, pushed = succeed("fetch,build,push", *words, "locked=yes", f"to={to}")[-2:]
    assert built == pushed != made.image("cpu", baked=True).digest
    with Container(hosts.docker, to, "--network", "none", "--env", "PORT=8000", *HARDENED) as container:
        container.wait_ready()
        assert container.run("id", "-u").strip() == "1000"


def test_the_packages_of_worker_and_engine_do_not_see_each_other(made: Made, hosts: Hosts) -> None:
    options = ("--network", "none", "--env", "PORT=8000", "--env", "MINIATURE_GPU=8.6")
    with Container(hosts.docker, made.image("sm86", baked=True).reference, *options) as container:
        container.wait_ready()  # with the engine's aiohttp, the worker would have ended at its import
        seen_by_engine = json.loads(container.python(_SEEN))
        worker = f"import sys; sys.path.append('/worker/lib')\n{_SEEN}"  # as the entrypoint's interpreter does with the folder that it runs
        seen_by_worker = json.loads(container.run("python3", "-I", "-S", "-B", "-c", worker))
        engine_environment = container.run(
            "sh", "-c", "for p in /proc/[0-9]*; do grep -qa serve_on_loopback $p/cmdline && tr '\\0' '\\n' < $p/environ; done; true"
        )
    assert set(seen_by_engine) == {"aiohttp", "paddle", "fastdeploy"}
    assert set(seen_by_worker) == {"aiohttp", "handler", "runpod", "psutil"}
    assert all(origin.startswith("/worker/lib/") for origin in seen_by_worker.values())
    assert "ENGINE" in engine_environment
    assert "PYTHONPATH" not in engine_environment


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_baked_is_whole_and_stands_outside_the_mounted_volume(architecture: str, made: Made, hosts: Hosts) -> None:
    idle = ("--network", "none", "--entrypoint", "sleep")
    with Container(hosts.docker, made.image(architecture, baked=True).reference, *idle, command=("600",)) as container:
        told = json.loads(container.run("cat", "/local_model_args.json"))
        commit = container.run("cat", "/models/models--demo--sharded/refs/main").strip()
        there = container.run("ls", f"/models/models--demo--sharded/snapshots/{commit}").split()
        environment = container.run("env").splitlines()
    assert told["MODEL"] == MODEL
    assert told["MODEL_REVISION"] == commit
    assert {"config.json", "model.safetensors.index.json", "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"} <= {
        *there
    }
    assert "HF_HUB_OFFLINE=1" in environment
    assert not any("TOKEN" in line for line in environment)
