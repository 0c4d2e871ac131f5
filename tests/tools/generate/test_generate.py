"""What is generated is what the tables say, and what the Hub accepts."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from handler.fastdeploy.flags import ONLY_EXTRA, OWN, variable_names
from handler.fastdeploy.table import RELEASES, every_flag, flag_table
from handler.fastdeploy.values import INTEGER_VARIABLES, NUMBER_VARIABLES
from handler.job import read_job
from handler.settings import TABLE, BatchLimits
from images.gpu_types import read_gpu_types
from images.releases import read_releases
from tests.tools.generate.injected import HUB
from tools.generate.__main__ import ROOT, difference, generated, main
from tools.generate.flag_help import GROUPS, meaning
from tools.generate.form_fields import FLAGS, fields, title
from tools.generate.hub_listing import CUDA_VERSIONS, pools
from tools.generate.presets import PRESETS

CONFIG = HUB["config"]
TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text(encoding="utf-8"))
CONSOLE = json.loads((ROOT / "worker-config.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
SCHEMA = jsonschema.Draft202012Validator(json.loads((ROOT / "ci" / "hub.schema.json").read_text(encoding="utf-8")))


def test_every_generated_file_is_what_the_tables_say() -> None:
    assert difference() == "", "run: ci/just generate"


def test_the_check_is_a_command_that_a_workflow_can_call() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "tools.generate", "--check"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in generated():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_a_file_changed_by_hand_fails_the_check_with_a_diff_and_is_mended(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / ".runpod" / "hub.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"AMPERE_80', '"NVIDIA A100 80GB PCIe'), encoding="utf-8")
    assert main(["--check"], copied) == 1
    said = capsys.readouterr()
    assert '-    "gpuIds": "NVIDIA A100 80GB PCIe,' in said.out
    assert '+    "gpuIds": "AMPERE_80,' in said.out
    assert "run `ci/just generate`" in said.err
    assert path.read_text(encoding="utf-8") != (ROOT / ".runpod" / "hub.json").read_text(encoding="utf-8"), "the check writes nothing"
    assert main([], copied) == 0
    assert main(["--check"], copied) == 0


def test_a_missing_file_fails_the_check_and_a_page_without_marks_is_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "worker-config.json").unlink()
    assert main(["--check"], copied) == 1
    readme = copied / "README.md"
    readme.write_text(readme.read_text(encoding="utf-8").replace("<!-- generated: variables -->", ""), encoding="utf-8")
    assert main([], copied) == 2
    assert "README.md: expected <!-- generated: variables --> and, below it, <!-- end -->" in capsys.readouterr().err
    assert main(["--chek"], copied) == 2
    assert "generate: got '--chek', expected key=value; did you mean check?" in capsys.readouterr().err


def test_the_listing_fits_the_hubs_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA.schema)
    assert [error.message for error in SCHEMA.iter_errors(HUB)] == []


MISTAKES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "names of GPUs for pools": lambda hub: hub["config"].update(gpuIds="NVIDIA A100 80GB PCIe, NVIDIA H100 80GB HBM3"),
    "a space after the comma": lambda hub: hub["config"].update(gpuIds="AMPERE_80, ADA_80_PRO"),
    "no pools": lambda hub: hub["config"].pop("gpuIds"),
    "a disk in words": lambda hub: hub["config"].update(containerDiskInGb="80 GB"),
    "a category that is none": lambda hub: hub.update(category="text"),
    "no title": lambda hub: hub.pop("title"),
    "a key that nobody knows": lambda hub: hub["config"].update(minCudaVersion="12.6"),
    "a switch without words": lambda hub: _entry(hub, "STRICT_REQUESTS").pop("trueValue"),
    "a number as text": lambda hub: _entry(hub, "MAX_NUM_SEQS").update(default="8"),
    "a kind that is none": lambda hub: _entry(hub, "MODEL").update(type="model"),
    "both a value and a field": lambda hub: hub["config"]["env"][0].update(value="x"),
    "a preset without a name": lambda hub: hub["config"]["presets"][0].pop("name"),
}


def _entry(hub: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry["input"] for entry in hub["config"]["env"] if entry["key"] == name)
    return found


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_schema_refuses(mistake: str) -> None:
    hub = copy.deepcopy(HUB)
    MISTAKES[mistake](hub)
    assert list(SCHEMA.iter_errors(hub))


def test_the_listing_offers_whole_pools_that_its_image_covers_and_no_older_cuda() -> None:
    releases = read_releases()
    release = releases.release(releases.default)
    offered = CONFIG["gpuIds"].split(",")
    assert {gpu.architecture for gpu in read_gpu_types() if gpu.pool in offered} <= set(release.prebuilt)
    rest = {gpu.pool for gpu in read_gpu_types() if gpu.pool} - set(offered)
    assert all({gpu.architecture for gpu in read_gpu_types() if gpu.pool == pool} - set(release.prebuilt) for pool in rest)
    assert CONFIG["allowedCudaVersions"] == list(reversed(CUDA_VERSIONS[CUDA_VERSIONS.index(release.builds[0].cuda) :]))


def test_pools_of_mixed_architectures_are_offered_only_where_all_are_covered() -> None:
    assert pools(("sm86",)) == ["AMPERE_48"]
    assert "AMPERE_16" in pools(("sm86", "sm89"))
    assert pools(()) == []


def test_the_token_of_the_hub_is_a_field_and_every_key_is_read_by_somebody() -> None:
    keys = [entry["key"] for entry in CONFIG["env"]]
    assert "HF_TOKEN" in keys
    assert len(set(keys)) == len(keys)
    workers = {variable.name for variable in TABLE}
    assert set(keys) - workers - variable_names() == {"RUNPOD_INIT_TIMEOUT"}, "the platform's own"


def test_presets_set_only_what_the_form_has_and_the_first_is_the_forms_own_model() -> None:
    keys = {entry["key"] for entry in CONFIG["env"]}
    for preset in CONFIG["presets"]:
        assert preset["defaults"].keys() <= keys, preset["name"]
        assert preset["defaults"].get("REASONING_PARSER", "") in meaning("reasoning_parser"), "a parser that every release has"
    assert CONFIG["presets"][0]["defaults"]["MODEL"] == _entry(HUB, "MODEL")["default"]
    options = {entry["key"]: [option["value"] for option in entry["input"].get("options", [])] for entry in CONFIG["env"]}
    for preset in CONFIG["presets"]:
        assert all(value in options[name] for name, value in preset["defaults"].items() if options[name]), preset["name"]


def test_the_disk_holds_the_largest_preset_with_a_tenth_to_spare() -> None:
    """The RunPod SDK ends a worker whose disk has less than a tenth free."""
    assert CONFIG["containerDiskInGb"] * 0.9 > max(preset.download for preset in PRESETS)


def test_the_hubs_tests_name_a_real_gpu_and_leave_time_for_the_load() -> None:
    wanted = TESTS["config"]
    pool = next(gpu.pool for gpu in read_gpu_types() if gpu.name == wanted["gpuTypeId"])
    assert pool in CONFIG["gpuIds"].split(",")
    assert wanted["allowedCudaVersions"] == CONFIG["allowedCudaVersions"]
    assert {entry["key"] for entry in wanted["env"]} <= {entry["key"] for entry in CONFIG["env"]}
    startup = next(variable.default for variable in TABLE if variable.name == "ENGINE_STARTUP_TIMEOUT")
    assert TESTS["tests"][0]["timeout"] >= startup * 1000, "the first test waits for the engine's start"
    assert all(test["timeout"] >= 10_000 for test in TESTS["tests"])


@pytest.mark.parametrize("test", TESTS["tests"], ids=lambda test: test["name"])
def test_each_of_the_hubs_tests_is_a_job_that_the_worker_reads(test: dict[str, Any]) -> None:
    assert read_job(test["input"], BatchLimits()).path


def test_the_console_form_has_the_fields_of_the_hubs_form() -> None:
    assert list(CONSOLE["schema"]) == [entry["key"] for entry in CONFIG["env"]]
    for version in CONSOLE["versions"].values():
        named = [name for category in version["categories"] for name in category["settings"]]
        assert sorted(named) == sorted(CONSOLE["schema"])
    images = [version["imageName"] for version in CONSOLE["versions"].values()]
    assert len(set(images)) == len(images) == len({(t.release, t.cuda, t.covers) for t in read_releases().targets() if t.release})


def test_every_variable_is_on_the_page() -> None:
    named = {variable.name for variable in TABLE} | variable_names() | INTEGER_VARIABLES | NUMBER_VARIABLES
    assert {name for name in named if f"`{name}`" not in PAGE} == {"TOKENIZER_NAME"}, "an alias, which stands without quotes"
    assert "TOKENIZER_NAME" in PAGE


@pytest.mark.parametrize("dest", every_flag())
def test_every_flag_of_every_release_is_explained_once(dest: str) -> None:
    found = [meanings[dest] for meanings in GROUPS.values() if dest in meanings]
    if dest in OWN or dest in ONLY_EXTRA:
        assert not found
        assert f"`--{dest.replace('_', '-')}`" in PAGE
        return
    (text,) = found
    assert text.endswith(".")
    assert f"| `{dest.upper()}` |" in PAGE


def test_nothing_is_explained_that_no_release_has() -> None:
    assert {dest for meanings in GROUPS.values() for dest in meanings} <= set(every_flag())


@pytest.mark.parametrize("release", RELEASES)
def test_flags_in_the_form_mean_the_same_to_every_release(release: str) -> None:
    table = flag_table(release)
    for dest in FLAGS:
        newest = every_flag()[dest][0]
        assert (table[dest].action, table[dest].type, table[dest].default) == (newest.action, newest.type, newest.default), dest


def test_fields_have_titles_of_their_own() -> None:
    titles = [field.title for field in fields()]
    assert len(set(titles)) == len(titles)
    assert title("MAX_MODEL_LEN") == "Max model length"
