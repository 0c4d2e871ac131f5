"""The workflows: pinned, least privileged, calling only recipes that exist, and their few lines of shell really run."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from images.__main__ import COMMANDS
from images.arguments import Command, parse
from tests import ROOT
from tools.deploy.__main__ import COMMAND as DEPLOY

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS: dict[str, Any] = {path.stem: yaml.load(path.read_text(), yaml.BaseLoader) for path in FILES}  # noqa: S506  # builds only texts
JOBS = [(name, job, text) for name, workflow in WORKFLOWS.items() for job, text in workflow["jobs"].items()]
SCRIPTS = [
    (f"{name}.{job}.{number}", step["run"]) for name, job, text in JOBS for number, step in enumerate(text["steps"]) if "run" in step
]
RECIPES = set(re.findall(r"^([a-z][\w-]*)(?: [^:]*)?:(?!=)", (ROOT / "justfile").read_text(), re.MULTILINE))
ARCHITECTURES = ["sm80", "sm86", "sm89", "sm90", "cpu"]
DIGEST = "sha256:" + "a" * 64
EXAMPLES = {
    "$ARCH": "sm89",
    "$arch": "sm89",
    "$digest": DIGEST,
    "$IMAGE": "r.io/a/b:1",
    "$POOL": "ADA_24",
    "$ENDPOINT": "smoke",
    "$MODEL": "a/b",
}
"""Values of the shell's variables that must be of some form."""

each_job = pytest.mark.parametrize(("name", "job", "text"), JOBS, ids=lambda value: value if isinstance(value, str) else "")
each_script = pytest.mark.parametrize("script", [script for _, script in SCRIPTS], ids=[name for name, _ in SCRIPTS])


def calls(script: str) -> Iterator[list[str]]:
    """The words after each `ci/just` of a script."""
    for call in re.findall(r"ci/just ([^\n|;)]*)", script):
        yield shlex.split(call.partition(" > ")[0])


def script_of(workflow: str, job: str, step: str) -> str:
    return next(str(one["run"]) for one in WORKFLOWS[workflow]["jobs"][job]["steps"] if one.get("name") == step)


def run(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a step's script as GitHub's runner does; its `bin` folder stands first on PATH."""
    environment = {**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", **variables}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def program(folder: Path, name: str, script: str) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_zizmor_finds_nothing() -> None:
    command = [str(Path(sys.executable).with_name("zizmor")), "--offline", "--pedantic", "--no-progress", ".github"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "No findings to report" in said.stdout + said.stderr


def test_the_four_workflows_are_there() -> None:
    assert sorted(WORKFLOWS) == ["ci", "gpu-smoke", "lock-update", "release"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_do_nothing_by_itself_and_runs_once_at_a_time(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {}
    assert WORKFLOWS[name]["concurrency"]["group"]


@each_job
def test_a_job_ends_and_says_what_it_may_do(name: str, job: str, text: dict[str, Any]) -> None:
    assert 1 <= int(text["timeout-minutes"]) <= 120
    assert isinstance(text["permissions"], dict)
    writing = {scope for scope, level in text["permissions"].items() if level == "write"}
    allowed = {
        "push": {"packages", "id-token", "attestations", "artifact-metadata"},
        "publish": {"contents"},
        "ask": {"contents", "pull-requests"},
    }
    assert writing == allowed.get(job, set())


@pytest.mark.parametrize("path", [*FILES], ids=lambda path: path.stem)
def test_every_action_and_container_is_pinned_and_says_its_version(path: Path) -> None:
    for line in path.read_text().splitlines():
        if "uses:" in line:
            assert re.search(r"uses: [\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line
        if re.match(r"\s+image: \w+[/:]", line):
            assert re.search(r"@sha256:[0-9a-f]{64}$", line), line


def test_an_action_has_the_same_commit_everywhere() -> None:
    pins = {match for path in FILES for match in re.findall(r"uses: (\S+)@(\S+) # (\S+)", path.read_text())}
    assert len({action for action, _, _ in pins}) == len(pins)


@each_job
def test_a_checkout_keeps_no_token(name: str, job: str, text: dict[str, Any]) -> None:
    for step in text["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"


@each_script
def test_a_script_is_shell_and_gets_its_values_from_variables(script: str) -> None:
    assert "${{" not in script
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, timeout=10, check=False)
    assert checked.returncode == 0, checked.stderr


@each_script
def test_a_script_calls_recipes_that_exist_with_keys_that_they_take(script: str) -> None:
    images = {
        "build-image": "build",
        "verify-image": "verify",
        "push-image": "push",
        "load-image": "load",
        "lock": "lock",
        "mirror": "mirror",
    }
    for recipe, *words in calls(script):
        assert recipe in RECIPES, recipe
        given = [re.sub(r"\$\w+", lambda name: EXAMPLES.get(name.group(), "value"), word) for word in words]
        if recipe == "deploy":
            parse(DEPLOY, given)
        elif recipe == "sbom":
            parse(importlib.import_module("tools.sbom").COMMAND, given)
        elif recipe in images:
            module, attribute = COMMANDS[images[recipe]]
            command: Command = getattr(importlib.import_module(module), attribute)
            parse(command, given)
        else:
            assert given in ([], ["--check"]), f"{recipe} {given}"


def test_an_endpoint_that_was_made_is_removed_whatever_happens() -> None:
    steps = WORKFLOWS["gpu-smoke"]["jobs"]["runpod"]["steps"]
    made, removed = steps[-2:]
    assert "endpoint=" in made["run"]
    assert (removed["if"], "delete=yes" in removed["run"]) == ("always()", True)
    assert WORKFLOWS["gpu-smoke"]["concurrency"]["cancel-in-progress"] == "false"


@pytest.mark.parametrize(
    ("second", "code"),
    [(DIGEST, 0), ("sha256:" + "b" * 64, 1), ("", 1), ("error: no such release", 1)],
    ids=["equal", "other", "missing", "words"],
)
def test_a_release_goes_on_only_when_both_runners_built_the_same(tmp_path: Path, second: str, code: int) -> None:
    for arch in ARCHITECTURES:
        for runner, digest in (("ubuntu-22.04", DIGEST), ("ubuntu-24.04", second if arch == "cpu" else DIGEST)):
            folder = tmp_path / "digests" / f"{arch}-{runner}"
            folder.mkdir(parents=True)
            (folder / "digest").write_text(f"{digest}\n")
    said = run(script_of("release", "agree", "Two equal digests for each architecture"), tmp_path)
    assert said.returncode == code, said
    assert ("::error::cpu: the runners do not agree" in said.stdout) == bool(code)


@pytest.mark.parametrize(("second", "code"), [(DIGEST, 0), ("sha256:" + "b" * 64, 1), ("", 1)], ids=["equal", "other", "missing"])
def test_two_machines_must_build_one_digest(tmp_path: Path, second: str, code: int) -> None:
    for runner, digest in (("ubuntu-22.04", DIGEST), ("ubuntu-24.04", second)):
        (tmp_path / "digests" / f"digest-{runner}").mkdir(parents=True)
        (tmp_path / "digests" / f"digest-{runner}" / "digest").write_text(f"{digest}\n")
    assert run(script_of("ci", "same", "Compare them"), tmp_path).returncode == code


def test_a_release_has_a_table_of_its_digests_and_the_bills(tmp_path: Path) -> None:
    for arch in ARCHITECTURES:
        for part, file, text in ((f"{arch}-ubuntu-24.04", "digest", f"{DIGEST}\n"), (f"sbom-{arch}", "sbom.cdx.json", "{}")):
            (tmp_path / "parts" / part).mkdir(parents=True)
            (tmp_path / "parts" / part / file).write_text(text)
    program(tmp_path, "gh", 'printf "%s\\n" "$@" > called')
    variables = {
        "GITHUB_REPOSITORY": "Me/Worker",
        "GITHUB_REF_NAME": "v1.2.3",
        "GITHUB_REF": "refs/tags/v1.2.3",
        "GITHUB_SERVER_URL": "https://github.com",
    }
    said = run(script_of("release", "publish", "Make the release, with the table of digests"), tmp_path, **variables)
    assert said.returncode == 0, said
    notes = (tmp_path / "notes.md").read_text()
    assert [line for line in notes.splitlines() if "sm89" in line] == [f"| `ghcr.io/me/worker:v1.2.3-sm89` | `{DIGEST}` |"]
    called = (tmp_path / "called").read_text().split("\n")
    assert called[:3] == ["release", "create", "v1.2.3"]
    assert {f"sbom-{arch}.cdx.json" for arch in ARCHITECTURES} <= set(called)


@pytest.mark.parametrize(
    ("patch", "existing", "opened"), [(True, "", True), (True, "7", False), (False, "", False)], ids=["new", "again", "nothing"]
)
def test_changed_locks_become_one_pull_request(tmp_path: Path, patch: bool, existing: str, opened: bool) -> None:
    def git(*words: str) -> str:
        named = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
        return subprocess.run(["git", *named, *words], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True).stdout

    git("init", "--quiet", ".")
    (tmp_path / "a.lock").write_text("old\n")
    git("add", "a.lock")
    git("commit", "--quiet", "--message", "first")
    git("init", "--quiet", "--bare", "origin.git")
    git("remote", "add", "origin", str(tmp_path / "origin.git"))
    (tmp_path / "a.lock").write_text("new\n")
    (tmp_path / "locks.patch").write_text(git("diff", "--binary") if patch else "")
    git("checkout", "--quiet", "a.lock")
    program(tmp_path, "gh", f'echo "$@" >> called; [ "$1 $2" != "pr list" ] || echo "{existing}"')
    said = run(
        script_of("lock-update", "ask", "Push the branch and open a pull request, unless there is one"), tmp_path, RUNNER_TEMP=str(tmp_path)
    )
    assert said.returncode == 0, said
    called = (tmp_path / "called").read_text() if (tmp_path / "called").exists() else ""
    assert ("pr create" in called) == opened
    assert ("lock-update" in git("ls-remote", "origin")) == patch
    if patch:
        assert git("show", "lock-update:a.lock") == "new\n"
