"""The command line: key=value words in any order, clear refusals, the digest as the last line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from images.__main__ import COMMANDS
from tests.images.small_world import World, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def run(world: World, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **changes}
    return subprocess.run(
        [sys.executable, "-m", "images", *words], capture_output=True, text=True, timeout=50, check=False, env=environment
    )


def test_the_digest_is_the_last_line_of_building_and_of_verifying(world: World) -> None:
    words = [f"lock={world.lock_file}", f"cache={world.cache.root}", "arch=sm89", "model=org/name"]
    built = run(world, "build", *words, "out=out", CALLED_FROM=str(world.root))
    assert built.returncode == 0, built.stderr
    verified = run(world, "verify", "out", f"lock={world.lock_file}", CALLED_FROM=str(world.root))
    assert verified.returncode == 0, verified.stderr
    assert built.stdout.splitlines()[-1] == verified.stdout.strip()
    planned = run(world, "plan", *words)
    assert "engine fastdeploy_gpu-2.3.0-py3-none-any.whl" in planned.stdout
    assert "/usr/bin/python3.10 -I -S -B /worker/lib" in planned.stdout


def test_commands_run_one_after_the_other_with_the_words_of_the_last(world: World, tmp_path: Path) -> None:
    words = [f"lock={world.lock_file}", f"cache={world.cache.root}", "arch=sm89", f"out={tmp_path / 'out'}"]
    both = run(world, "fetch,build", *words)
    assert both.returncode == 0, both.stderr
    assert both.stdout == run(world, "build", *words).stdout
    assert "only: unknown key" in run(world, "fetch,build", *words, "only=sha256:0").stderr
    assert "to: missing" in run(world, "fetch,build,push", *words).stderr


def test_the_first_command_that_fails_is_the_last(world: World, tmp_path: Path) -> None:
    words = [f"lock={world.lock_file}", f"cache={tmp_path / 'cache'}", "arch=sm89", f"out={tmp_path / 'out'}"]
    done = run(world, "build,push", *words, "to=127.0.0.1:1/a/b:c")
    assert done.returncode == 1
    assert "fetch it with" in done.stderr
    assert "127.0.0.1" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        ([], 2, ""),
        (["build,psuh"], 2, "error: psuh: unknown command; did you mean push?"),
        (["fetch,build,push", "arch=cpu", "to=ghcr.io/Me/x:1"], 2, "error: to: got 'ghcr.io/Me/x:1', expected the name of an image"),
        (["fetch,build,push", "arch=cpu", "to=ghcr.io/me/x"], 2, "error: to: got 'ghcr.io/me/x', expected registry/repository:tag"),
        (["mirror", "arch=cpu", "to=ghcr.io/me/x:1"], 2, "error: to: got 'ghcr.io/me/x:1', expected registry/repository"),
        (["biuld"], 2, "error: biuld: unknown command; did you mean build?"),
        (["build", "arch=sm91"], 2, "error: arch: got 'sm91', expected one of cpu, sm80, sm86, sm89, sm90; did you mean sm90?"),
        (["build", "arch=sm89", "relase=2.3.0"], 2, "error: relase: unknown key; did you mean release?"),
        (["build", "arch=sm89", "release=2.3.1"], 2, "error: release: got '2.3.1', expected one of 2.3.0, 2.4.0, 2.5.0"),
        (["build", "arch=sm89", "cuda=12.9"], 2, "release=2.5.0 cuda=12.9 arch=sm80|sm86|sm89|sm90"),
        (
            ["build", "arch=sm89", "model=org/none", "lock={lock}"],
            1,
            "pin with `ci/just lock arch=sm89 lock={lock} model=org/none`",
        ),
        (["build", "arch=sm80"], 1, "pin with `ci/just lock arch=sm80`"),
        (["build", "arch=cpu", "lock=/nonexistent"], 1, "pin with `ci/just lock arch=cpu lock=/nonexistent`"),
        (
            ["build", "arch=cpu", "lock={lock}", "cache=/nonexistent"],
            1,
            "fetch it with `python -m images fetch arch=cpu lock={lock} cache=/nonexistent`",
        ),
        (["verify", "/nonexistent"], 1, "/nonexistent: no such folder; expected an OCI layout, which `ci/just build-image` writes"),
    ],
)
def test_what_cannot_be_done_ends_with_a_sentence_and_a_code(
    world: World, tmp_path: Path, words: list[str], code: int, complaint: str
) -> None:
    out = [f"out={tmp_path / 'out'}"] if words[:1] == ["build"] else []
    done = run(world, *(word.format(lock=world.lock_file) for word in words), *out)
    assert (done.returncode, done.stdout if code == 1 else "") == (code, "")
    assert complaint.format(lock=world.lock_file) in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path).rglob("index.json")), "nothing half-done is left behind"


@pytest.mark.parametrize("name", [*COMMANDS, ""])
def test_every_command_says_what_it_takes(world: World, name: str) -> None:
    done = run(world, *([name] if name else []), "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: python -m images" in done.stdout


def test_the_usage_names_the_command_that_was_typed(world: World) -> None:
    assert run(world, "fetch,build", "help", CALLED_AS="ci/just build-image").stdout.startswith(
        "usage: ci/just build-image arch=... [key=value ...]"
    )
