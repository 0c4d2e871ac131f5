"""The recipes as a person calls them: by ci/just or by just, from any folder, and with no last word of just's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import DEMO, ROOT

JUST = ROOT / ".venv" / "bin" / "just"
RECIPES: dict[str, Any] = json.loads(
    subprocess.run([JUST, "--dump", "--dump-format", "json"], cwd=ROOT, capture_output=True, check=True).stdout
)["recipes"]
USERS = [name for name, recipe in RECIPES.items() if recipe["parameters"] and name != "smoke"]
"""Those that take words: all but the smoke tests hand them to a command of ours."""
ELSEWHERE = {"parity"}
"""Those that run in .venv-torch."""


def call(*command: str | Path, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("CALLED_")}
    return subprocess.run(
        command, cwd=cwd, env=inherited | variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_installs_what_it_runs(name: str) -> None:
    recipe = RECIPES[name]
    if "{{python}}" not in _body(recipe) and ".venv/" not in _body(recipe):
        return
    assert {dependency["recipe"] for dependency in recipe["dependencies"]} & {"_run", "_images", "_tools"}


@pytest.mark.parametrize("name", USERS)
def test_a_recipe_that_takes_words_is_quiet_before_and_after_its_command(name: str) -> None:
    assert "no-exit-message" in RECIPES[name]["attributes"]
    assert all(line.startswith("@") for line in _body(RECIPES[name]).splitlines())


def _body(recipe: dict[str, Any]) -> str:
    lines = ("".join(part if isinstance(part, str) else f"{{{{{part[0][1]}}}}}" for part in line) for line in recipe["body"])
    return "\n".join(lines)


@pytest.mark.timeout(150)
def test_just_in_a_clean_clone_installs_before_it_runs(tmp_path: Path) -> None:
    for name in ("ci/just.lock", "cpu_engine/requirements.lock"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("# no package\n")
    for name in ("justfile", "ci/install"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = call(JUST, "run", cwd=tmp_path, PYTHON=sys.executable)
    assert done.stderr.startswith("ci/install: installing the locked packages for 'run'"), done
    assert "Error while finding module specification for 'tools.run'" in done.stderr, "the new Python ran; the tree has no tools"
    assert "recipe" not in done.stderr


def test_a_link_to_ci_just_works(tmp_path: Path) -> None:
    (tmp_path / "worker").symlink_to(ROOT / "ci" / "just")
    done = call(tmp_path / "worker", "plan", "help", cwd=tmp_path)
    assert done.returncode == 0, done
    assert done.stdout.startswith("usage: ci/just plan ")


@pytest.mark.parametrize("program", [ROOT / "ci" / "just", JUST], ids=["ci/just", "just"])
def test_files_are_meant_from_the_folder_in_which_a_person_stands(program: Path) -> None:
    done = call(program, "plan", f"model={os.path.relpath(DEMO, ROOT / 'docs')}", "gpu=ADA_24", cwd=ROOT / "docs")
    assert done.returncode == 0, done
    assert "fits" in done.stdout


@pytest.mark.parametrize("name", [name for name in USERS if name not in ELSEWHERE])
def test_a_wrong_word_ends_with_2_and_with_a_sentence_of_ours(name: str) -> None:
    words = ["stream"] if name == "bench" else []
    done = call(ROOT / "ci" / "just", name, *words, "no-such-key=1")
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert "no-such-key: unknown key; expected " in done.stderr
    assert not re.search(r"recipe|Traceback", done.stderr)


@pytest.mark.parametrize("word", ["help", "-h", "--help"])
@pytest.mark.parametrize("name", [name for name in USERS if name not in {"bench", *ELSEWHERE}])
def test_every_recipe_that_takes_words_lists_them(name: str, word: str) -> None:
    done = call(ROOT / "ci" / "just", name, word)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith(f"usage: ci/just {name}")


@pytest.mark.parametrize("name", ["run", "serve"])
def test_without_a_loopback_interface_it_ends_at_once_with_one_true_sentence(name: str) -> None:
    done = call("unshare", "--map-root-user", "--net", sys.executable, "-m", f"tools.{name}")
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr == (
        f"{name}: 127.0.0.1 cannot be reached (Network is unreachable), and the worker speaks with its engine there: "
        "bring the loopback interface up (ip link set lo up)\n"
    )
