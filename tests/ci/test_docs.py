"""What the pages say is what the code does.

Blocks of commands are fenced as `sh`, and are run here in a copy of the tree, or as `sh requires-network`, `sh requires-gpu` or
`sh requires-runpod`, and then only their recipes, keys and variables are checked. A `text` block behind one that is run is what it prints,
`...` standing for anything. Port 8000 of a page is a free one here; `ci/just serve` runs until its page has been read.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ci.bench.__main__ import command as bench_command
from handler import web
from handler.engine import free_ports
from handler.fastdeploy.flags import variable_names
from handler.lifecycle import Lifecycle
from handler.metrics import Metrics
from handler.settings import TABLE
from images.__main__ import COMMANDS
from images.arguments import Command, parse
from tests import ROOT
from tests.defects import DEFECTS

PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")),
    ROOT / ".runpod" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
JUSTFILE = (ROOT / "justfile").read_text(encoding="utf-8")
RECIPES = set(re.findall(r"^([a-z][\w-]*)(?: [^:]*)?:(?!=)", JUSTFILE, re.MULTILINE)) - {"default"}
FENCES = {"", "sh", "sh requires-network", "sh requires-gpu", "sh requires-runpod", "text", "python", "json"}
ELSEWHERE = {
    "ci/just test": ".ci/run",
    "ci/just lint": ".github/workflows/ci.yml",
    "ci/just types": ".github/workflows/ci.yml",
    "ci/just generate --check": ".github/workflows/ci.yml",
    "ci/just test-digest": ".github/workflows/ci.yml",
    "ci/just bench cpu": "tests/ci/test_cpu_bench.py::test_the_bench_prints_every_figure_for_the_demo_checkpoint",
    "ci/just bench stream": "tests/ci/test_benches.py::test_the_stream_bench_prints_its_figures",
    "ci/just bench soak": "tests/ci/test_benches.py::test_the_soak_prints_samples_of_both_parts_and_a_verdict",
    "ci/just bench trials": "tests/handler/faults/test_random_trials.py"
    "::test_every_job_ends_once_and_whole_or_with_an_error_whatever_happens",
    "ci/just bench api-trials": "tests/tools/deploy/test_hostile_api.py::test_deploy_survives_whatever_the_api_answers",
    "ci/just fuzz-table": "tests/ci/test_fuzz_table.py::test_of_the_odd_requests_none_waits_for_ever_and_none_gets_a_500",
}
"""Commands that would take too long here, and the test that runs the same, or the file with which continuous integration does."""

TOOLS = {
    "run": "tools.run",
    "serve": "tools.serve.__main__",
    "plan": "tools.plan.__main__",
    "deploy": "tools.deploy.__main__",
    "sbom": "tools.sbom",
    "generate": "tools.generate.__main__",
    "fuzz-table": "ci.fuzz_table",
}
"""Recipes, and the modules that hold their commands."""
IMAGES = {
    "build-image": "build",
    "verify-image": "verify",
    "push-image": "push",
    "load-image": "load",
    "lock": "lock",
    "mirror": "mirror",
}
ARGUMENTS = set(re.findall(r"^ARG (\w+)", (ROOT / ".runpod" / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
KNOWN = {"SMOKE_IMAGE", "SMOKE_MODEL"} | ARGUMENTS | set(variable_names()) | {name for row in TABLE for name in (row.name, *row.aliases)}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    fence: str
    text: str

    @property
    def runs(self) -> bool:
        return self.fence == "sh"

    def commands(self) -> list[str]:
        """The commands of one that holds some, a line each, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [" ".join(re.sub(r"(^|\s)#.*", "", line).split()) for line in lines if line.strip()] if self.fence[:2] == "sh" else []


def blocks(page: str) -> list[Block]:
    found = re.finditer(r"^( *)```([^\n]*)\n(.*?)^\1```$", TEXTS[page], re.MULTILINE | re.DOTALL)
    return [Block(page, match[2].strip(), re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)) for match in found]


BLOCKS = [block for page in TEXTS for block in blocks(page)]
COMMAND_LINES = sorted({(block.page, line) for block in BLOCKS for line in block.commands()})


# --- running


class Copy:
    """A copy of the tree as a person has it, with what is installed here."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, str(free_ports(1)[0])
        unwanted = shutil.ignore_patterns(".git", ".venv*", "dist", ".hypothesis", ".*_cache", "__pycache__", ".coverage*")
        shutil.copytree(ROOT, root, ignore=unwanted, symlinks=True)
        (root / ".venv").mkdir()
        for path in Path(sys.prefix).iterdir():
            if not path.name.startswith("installed-"):
                (root / ".venv" / path.name).symlink_to(path)
        for kind, locks in re.findall(r'^ +(\w+)\) locks="([^"]*)"', (root / "ci" / "install").read_text(), re.MULTILINE):
            stamp = subprocess.run(f"cat {locks} | cksum", shell=True, cwd=root, capture_output=True, text=True, check=True)  # noqa: S602
            (root / ".venv" / f"installed-{kind}").write_text(stamp.stdout)

    @contextlib.contextmanager
    def started(self, script: str) -> Iterator[subprocess.Popen[str]]:
        """Run a script in bash; whatever it left is ended with it."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.root.parent), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
        process = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-euo", "pipefail", "-c", script.replace("8000", self.port)],
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def run(self, script: str) -> str:
        with self.started(script) as process:
            said, _ = process.communicate(timeout=150)
        assert process.returncode == 0, f"{script}\nended with {process.returncode}:\n{said}"
        return said


def shown(said: str, expected: str) -> None:
    """What a page shows is in what was said, in that order."""
    rest = said
    for line in expected.strip().splitlines():
        found = re.search(".*".join(re.escape(part) for part in line.split("...")), rest)
        assert found, f"expected {line!r} in\n{said}"
        rest = rest[found.end() :]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.runs and set(block.commands()) - set(ELSEWHERE)}))
def test_what_a_page_tells_to_type_works_and_prints_what_it_shows(page: str, tmp_path: Path) -> None:
    copy, said = Copy(tmp_path / "copy"), ""
    with contextlib.ExitStack() as served:
        for block in blocks(page):
            wanted = [line for line in block.commands() if line and line not in ELSEWHERE]
            if block.runs and any(line.startswith("ci/just serve") for line in wanted):
                serving = served.enter_context(copy.started(f"exec {wanted[0]}"))
                assert serving.stdout
                assert any(line.startswith("ready after") for line in serving.stdout), f"{block} ended"
            elif block.runs and wanted:
                said = copy.run("\n".join(wanted))
                assert said.strip(), f"{block} printed nothing"
            elif block.fence == "text":
                shown(said, block.text)


@pytest.mark.parametrize(("command", "proof"), ELSEWHERE.items())
def test_a_command_that_is_not_run_here_is_run_elsewhere(command: str, proof: str) -> None:
    file, _, name = proof.partition("::")
    assert (f"def {name}(" if name else command) in (ROOT / file).read_text(encoding="utf-8")
    assert command in {line for _, line in COMMAND_LINES}, "no page shows it"


# --- what is not run


def takes(recipe: str, words: list[str]) -> object:
    """Read the words of a recipe as it does; raises for those that it would refuse."""
    if recipe in IMAGES:
        return image_command(IMAGES[recipe], words)
    if recipe in TOOLS:
        return parse(importlib.import_module(TOOLS[recipe]).COMMAND, words)
    if recipe == "bench":
        return parse(bench_command(words[0]), words[1:])
    if words:
        raise ValueError(f"{recipe} takes no words")
    return None


def image_command(name: str, words: list[str]) -> dict[str, str]:
    module, attribute = COMMANDS[name]
    command: Command = getattr(importlib.import_module(module), attribute)
    return parse(command, words)


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES)
def test_a_command_names_what_there_is_with_words_that_it_takes(page: str, line: str) -> None:
    if "||" in line:
        return  # shown because it is refused: its text block is the proof
    words = shlex.split(line)
    for assignment in words[: next(number for number, word in enumerate([*words, ""]) if "=" not in word)]:
        assert assignment.partition("=")[0] in KNOWN, f"{assignment}: no variable"
    for number, word in enumerate(words):
        name = re.match(r"(?:env\.|secret\.)?([A-Z][A-Z_]+)=", word)
        assert not name or name[1] in KNOWN or words[0] == "export", f"{word}: no variable"
        if word == "ci/just":
            recipe, *given = words[number + 1 :]
            assert recipe in RECIPES, recipe
            takes(recipe, given)
        elif word == "images" and words[number - 1] == "-m" and words[-1] not in {"images", "--help"}:
            image_command(words[number + 1], words[number + 2 :])


@pytest.mark.parametrize("page", TEXTS)
def test_every_recipe_that_the_readme_names_is_there(page: str) -> None:
    assert set(re.findall(r"ci/just\s+([a-z][\w-]*)", TEXTS[page])) <= RECIPES


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_is_on_a_page(recipe: str) -> None:
    assert any(re.search(rf"ci/just\s+{recipe}\b(?!-)", text) for text in TEXTS.values())


@pytest.mark.parametrize("page", TEXTS)
def test_every_block_says_what_it_is(page: str) -> None:
    assert {block.fence for block in blocks(page)} <= FENCES
    assert TEXTS[page].count("```") == 2 * len(blocks(page)), "a fence has no end"


# --- links and names


def links(page: str) -> Iterator[tuple[str, str]]:
    """The page or file that each link within the repository leads to, and the heading on it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" not in target:
            file, _, heading = target.partition("#")
            yield os.path.normpath(Path(page).parent / file) if file else page, heading


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page: str) -> None:
    for file, heading in links(page):
        assert (ROOT / file).exists(), file
        assert not heading or heading in anchors(TEXTS[file]), f"{file}#{heading}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, new = set[str](), {"README.md"}
    while new:
        seen |= new
        new = {file for page in new for file, _ in links(page) if file in TEXTS} - seen
    assert seen == set(TEXTS)


@pytest.mark.parametrize("page", TEXTS)
def test_every_file_and_proof_that_a_page_names_is_there(page: str) -> None:
    for name, _, proof in (
        word.partition("::") for word in re.findall(r"`((?:handler|images|ci|tests|docs|\.github|\.runpod)/[^`\s]+)`", TEXTS[page])
    ):
        if name == "ci/just":
            continue
        assert (ROOT / name).exists(), name
        assert f"def {proof}(" in (ROOT / name).read_text(encoding="utf-8") if proof else True, proof


def codes() -> set[str]:
    """Every code of an error object that the worker, its CPU engine or the local gateway makes."""
    found = {entry[0] for entry in (*web._NOT_READY.values(), web._LEAVING)} | {"job_failed", "job_cancelled", "job_timed_out"}
    for path in (path for package in ("handler", "checkpoint", "cpu_engine", "tools") for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            values: list[Any] = []
            if isinstance(node, ast.keyword) and node.arg == "code":
                values = [node.value]
            elif isinstance(node, ast.Dict):
                values = [
                    value
                    for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant) and key.value == "code"
                ]
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                values = [node.value] if any(isinstance(target, ast.Name) and target.id == "code" for target in targets) else []
            elif isinstance(node, ast.arguments):
                named = zip(node.kwonlyargs, node.kw_defaults, strict=True)
                values = [default for argument, default in named if argument.arg == "code"]
            for value in values:
                inner = ast.walk(value) if isinstance(value, (ast.Constant, ast.IfExp)) else ()
                found |= {leaf.value for leaf in inner if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)}
    return {code for code in found if re.fullmatch(r"[a-z]+(_[a-z]+)*", code)}


def test_every_code_of_an_error_is_explained_and_no_other() -> None:
    table = TEXTS["docs/operations.md"].partition("\n## Errors\n")[2].partition("\n## ")[0]
    first = {code for row in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE) for code in re.findall(r"`(\w+)`", row)}
    assert codes() - set(re.findall(r"`(\w+)`", table)) == set()
    assert first - codes() == set()


def test_every_figure_of_the_metrics_is_explained_and_no_other() -> None:
    text, _ = Metrics(Lifecycle(), 8, restarts=lambda: 0).shown()
    offered = set(re.findall(r"^# TYPE (worker_\w+)", text.decode(), re.MULTILINE))
    assert set(re.findall(r"`(worker_\w+)`", TEXTS["docs/operations.md"])) == offered


@pytest.mark.parametrize(("page", "folders"), [("docs/images.md", ("images", "checkpoint")), ("docs/operations.md", ("handler",))])
def test_every_message_that_a_page_quotes_is_in_the_code(page: str, folders: tuple[str, ...]) -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    rows = re.findall(r"^\| ([^|]*\"[^|]*) \|", TEXTS[page], re.MULTILINE)
    assert rows
    parts = [part.strip(" ,;") for row in rows for quoted in re.findall(r'"([^"]+)"', row) for part in quoted.split("...")]
    assert [part for part in parts if part not in code] == []


# --- defects of an earlier worker


@pytest.mark.parametrize("number", DEFECTS)
def test_every_known_defect_of_an_earlier_worker_has_its_proof(number: int) -> None:
    """A proof is a test that is there under its name, or a reason why the defect cannot be made here."""
    proofs = DEFECTS[number]
    assert proofs
    for proof in proofs:
        file, _, name = proof.partition("::")
        if not name:
            assert len(proof.split()) > 5, "a reason is a sentence"
        else:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), proof


def test_all_forty_defects_are_listed() -> None:
    assert list(DEFECTS) == list(range(1, 41))
