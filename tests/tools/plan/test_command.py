"""`just plan` as a person meets it: real processes, directories, and a hub on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from images.arguments import parse
from images.gpu_types import read_gpu_types
from images.push import COMMAND as PUSH
from tests import ROOT
from tests.tools.plan.known import config_of, stored
from tests.twins.model_hub import ModelHub
from tests.twins.rest_api import Twin
from tools.deploy.__main__ import COMMAND as DEPLOY
from tools.plan.fit import read_pools


def plan(*words: str, **environment: str) -> tuple[int, str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "RUNPOD_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tools.plan", *words],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def checkpoint(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(name)), encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(stored(name))  # as long as the real one; no block of it is on the disk, and none is read
    return folder


def rows(text: str) -> dict[str, str]:
    """The lines before the first empty one."""
    return {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in text.partition("\n\n")[0].splitlines()}


def test_a_model_that_fits_is_told_with_all_that_a_deployment_needs(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", "ernie-4.5-21b-a3b")
    words = ("model=model", "gpu=ADA_24", "quantization=wint4", "max-model-len=32768", "concurrency=4")
    code, said, errors = plan(*words, CALLED_FROM=str(tmp_path))
    assert (code, errors) == (0, "")
    found = rows(said)
    assert found["GPUs"] == "1 x ADA_24: 24 GiB, sm89"
    assert found["image"] == "arch=sm89 release=2.3.0 cuda=12.6"
    assert found["tensor parallel"] == "1"
    assert found["weights"] == "43.7 GB in files, 11.9 GB on each GPU (wint4)"
    assert found["cache"] == "57 kB a token, 1.9 GB for a request of 32768 tokens, 7.5 GB for 4 of them"
    assert found["left"].endswith("4 requests of full length at the same time")
    assert found["container disk"].startswith("60 GB")
    assert found["download"].startswith("2 to 4 min")
    assert found["load"] == "2 to 4 min"
    assert found["verdict"] == "fits"


def test_a_model_that_does_not_fit_ends_with_1_and_the_named_change_makes_it_fit(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "ernie-4.5-21b-a3b")
    words = [f"model={folder}", "gpu=ADA_24", "max-model-len=32768"]
    code, said, _ = plan(*words)
    assert code == 1
    verdict = rows(said)["verdict"]
    assert verdict.startswith("does not fit: 25.5 GB are missing on each GPU; the smallest change that fits: ")
    code, said, _ = plan(*words, *verdict.rpartition(": ")[2].split())
    assert code == 0, said


def test_more_gpus_are_shared_as_the_models_heads_allow(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "qwen3-30b-a3b")
    code, said, _ = plan(f"model={folder}", "gpu=AMPERE_48", "count=3", "max-model-len=32768")
    assert code == 0
    assert rows(said)["tensor parallel"] == "2, 1 of 3 GPUs idle: the model's heads cannot be dealt to more"
    assert "30.5 GB on each GPU (16 bits / 2 GPUs)" in rows(said)["weights"]


def test_an_architecture_that_the_release_lacks_is_no_fit_and_a_later_release_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "qwen3-8b")
    config = config_of("qwen3-8b") | {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code, said, _ = plan(f"model={folder}", "gpu=AMPERE_80")
    assert code == 1
    verdict = rows(said)["verdict"]
    assert verdict.startswith("cannot be served: its architecture is LlamaForCausalLM, which FastDeploy 2.3 does not serve")
    assert verdict.endswith("; the smallest change that fits: release=2.5.0")
    assert plan(f"model={folder}", "gpu=AMPERE_80", "release=2.5.0")[0] == 0


def test_all_changes_stand_in_one_verdict(tmp_path: Path) -> None:
    """A 70B Llama on one A100: another release, and more GPUs."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16",
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    words = [f"model={file}", "gpu=AMPERE_80"]
    code, said, _ = plan(*words)
    assert code == 1
    verdict = rows(said)["verdict"]
    assert verdict.startswith("cannot be served: its architecture is LlamaForCausalLM, which FastDeploy 2.3 does not serve")
    assert "; does not fit: " in verdict
    change = verdict.rpartition("the smallest change that fits: ")[2].split()
    assert change == ["release=2.5.0", "count=2"]
    assert plan(*words, *change)[0] == 0


@pytest.mark.parametrize("name", ["ernie-4.5-0.3b", "qwen3-30b-a3b"])
def test_a_config_alone_gives_the_plan_of_its_checkpoint(name: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", name)
    with_files, alone = (rows(plan(str(path), "gpu=L40S")[1]) for path in (folder, folder / "config.json"))
    assert alone["weights"] == with_files["weights"].replace("in files", "by config.json")
    different = {row for row in with_files if with_files[row] != alone[row]}
    assert different == {"model", "weights"}


def test_without_a_gpu_every_pool_has_a_row_and_the_first_one_holds_the_model(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "ernie-4.5-21b-a3b")
    code, said, errors = plan(str(folder), "concurrency=4", "max-model-len=32768")
    assert (code, errors) == (0, "")
    head, _, rest = said.partition("\n\n")
    assert head == f"{folder}: 4 requests at the same time, of 32768 tokens"
    lines = rest.partition("\n\n")[0].splitlines()
    assert lines[0].split()[:2] == ["pool", "GPUs"]
    cells = {line.split()[0]: re.split(r"  +", line) for line in lines[1:]}
    assert set(cells) == set(read_pools(read_gpu_types()))
    assert [name for name, row in cells.items() if row[-1] == "fits"] == ["AMPERE_80", "ADA_80_PRO", "HOPPER_141"]
    assert cells["ADA_24"] == ["ADA_24", "1 x 24 GiB", "arch=sm89 release=2.3.0 cuda=12.6", "131072", "fits with quantization=wint4"]
    assert cells["BLACKWELL_180"][-1] == "no image covers sm100"
    assert "set RUNPOD_API_KEY to see prices" in said
    # What is named as a change does make it fit.
    for name, row in cells.items():
        if row[-1].startswith("fits with "):
            words = row[-1].removeprefix("fits with ").split()
            assert plan(str(folder), "concurrency=4", "max-model-len=32768", f"gpu={name}", *words)[0] == 0


def test_a_model_that_no_pool_holds_is_told(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_of("ernie-4.5-300b-a47b") | {"num_hidden_layers": 900}), encoding="utf-8")
    code, said, _ = plan(str(file))
    assert code == 1
    assert said.endswith("no pool holds it, whatever is changed: choose a smaller model\n")
    assert "fits" not in said.replace("does not fit", "")


def test_the_lines_to_paste_are_commands_that_are_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of("ernie-4.5-0.3b")), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with ModelHub() as hub:
        hub.add("org/name", tmp_path)
        hub.claim("org/name", "model.safetensors", stored("ernie-4.5-0.3b"))
        _, said, _ = plan("org/name", "gpu=rtx4090", "max-model-len=4096", "quantization=wint8", "count=2", **hub.environment())
    push, deploy = (shlex.split(line) for line in said.rpartition("\n\n")[2].splitlines())
    assert push[:2] == ["ci/just", "push-image"]
    parse(PUSH, push[2:])
    values = parse(DEPLOY, deploy[2:])
    assert {name: text for name, text in values.items() if name.startswith("env.")} == {
        "env.MODEL": "org/name",
        "env.QUANTIZATION": "wint8",
        "env.MAX_MODEL_LEN": "4096",
        "env.MAX_NUM_SEQS": "8",
    }
    assert (values["gpu"], values["count"], values["disk"]) == ("rtx4090", "2", "12")


@pytest.mark.anyio
async def test_the_cheapest_pool_that_fits_comes_first_where_the_catalog_can_be_asked(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "qwen3-8b")
    async with Twin() as twin:
        twin.prices = {"ADA_24": 1.1, "AMPERE_48": 0.9, "ADA_80_PRO": 4.18}
        _, said, _ = await asyncio.to_thread(plan, str(folder), **twin.environment)
        wrong = await asyncio.to_thread(plan, str(folder), **{**twin.environment, "RUNPOD_API_KEY": "rpa_sesame_sesame"})
    lines = [re.split(r"  +", line) for line in said.partition("\n\n")[2].partition("\n\n")[0].splitlines()]
    assert lines[0] == ["pool", "GPUs", "image", "longest request", "USD an hour", "verdict"]
    priced = [(line[0], line[4]) for line in lines[1:] if line[0] in twin.prices]
    assert priced == [("AMPERE_48", "0.90"), ("ADA_24", "1.10"), ("ADA_80_PRO", "4.18")]
    assert wrong[0] == 0
    assert "no prices: could not list the GPU types: 401" in wrong[1]
    assert "sesame" not in wrong[1] + wrong[2]


def test_the_context_that_is_planned_for_is_told_beside_the_models_own(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "qwen3-8b")
    said = rows(plan(str(folder), "gpu=ADA_24")[1])["context"]
    assert said.startswith("2048 tokens a request, which is the engine's default; the model's own is 40960; max-model-len=")
    longest = re.search(r"max-model-len=(\d+) is the longest that fits", said)
    assert longest
    assert plan(str(folder), "gpu=ADA_24", f"max-model-len={longest[1]}")[0] == 0
    assert plan(str(folder), "gpu=ADA_24", f"max-model-len={int(longest[1]) + 64}")[0] == 1


def test_what_images_take_is_said_not_to_be_counted(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "qwen3-8b")
    (folder / "config.json").write_text(json.dumps(config_of("qwen3-8b") | {"vision_config": {"depth": 32}}), encoding="utf-8")
    assert "not counted" in rows(plan(str(folder), "gpu=ADA_24")[1])["vision"]
    code, _, said = plan(str(folder / "config.json"), "gpu=ADA_24")
    assert (code, "it has vision_config, whose weights cannot be counted from it" in said) == (2, True)


def test_weights_that_the_release_cannot_read_are_no_fit_and_the_way_out_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "qwen3-8b")
    config = config_of("qwen3-8b") | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code, said, _ = plan(f"model={folder}", "gpu=AMPERE_80")
    assert code == 1
    verdict = rows(said)["verdict"]
    assert verdict.startswith("cannot be served: its weights are quantized (awq), which FastDeploy 2.3 does not read")
    assert "use the repository of the unquantized model, with QUANTIZATION=wint4 or wint8" in verdict


def test_quantized_files_stay_as_they_are_and_wide_ones_are_halved(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "qwen3-8b")
    config = config_of("qwen3-8b")
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}), encoding="utf-8")
    assert "16.4 GB on each GPU (as stored)" in plan(f"model={folder}", "gpu=AMPERE_80", "quantization=wint4")[1]
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}), encoding="utf-8")
    assert "16.4 GB in files, 8.2 GB on each GPU" in plan(f"model={folder}", "gpu=AMPERE_80")[1]


def test_of_a_repository_only_config_and_list_of_files_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of("ernie-4.5-0.3b")), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(20000))
    with ModelHub() as hub:
        hub.add("org/name", folder)
        hub.claim("org/name", "model.safetensors", stored("ernie-4.5-0.3b"))
        code, said, errors = plan("model=org/name", "gpu=ADA_24", **hub.environment())
        assert (code, errors) == (0, "")
        assert rows(said)["weights"] == "721 MB in files, 721 MB on each GPU (16 bits)"
        read = {request.path.rpartition("/")[2] for request in hub.requests if "/resolve/" in request.path or "/content/" in request.path}
        assert read == {"config.json"}


def test_an_unknown_repository_and_a_closed_one_are_told_and_a_like_name_is_offered() -> None:
    with ModelHub() as hub:
        code, _, said = plan("model=baidu/ERNIE-4.5-0.3B-Padle", "gpu=ADA_24", **hub.environment())
        assert code == 2
        assert "no such repository, or it is private" in said
        assert "did you mean baidu/ERNIE-4.5-0.3B-Paddle?" in said


def test_a_name_is_doubted_only_where_the_hub_says_that_it_has_none_such() -> None:
    with ModelHub() as hub:
        known = plan("model=baidu/ERNIE-4.5-21B-A3B-Paddle", "gpu=ADA_24", **hub.environment())
        environment = hub.environment()
    gone = plan("model=baidu/ERNIE-4.5-0.3B-Padle", "gpu=ADA_24", **environment)
    for code, _, said in (known, gone):
        assert (code, "did you mean" in said) == (2, False), said
    assert "cannot be reached" in gone[2]


def test_an_account_in_the_hubs_address_is_in_no_message() -> None:
    for endpoint in ("http://me:sesame@127.0.0.1:9", "ftp://me:sesame@127.0.0.1", "http://me:sesame@127.0.0.1:port"):
        code, printed, said = plan("model=org/name", "gpu=ADA_24", HF_ENDPOINT=endpoint)
        assert (code, "sesame" in printed + said) == (2, False), said


BAD: dict[str, tuple[list[str], str]] = {
    "unknown pool": (["gpu=ADA_42"], "gpu: got 'ADA_42', expected a GPU, or one of RunPod's pools: AMPERE_16, "),
    "its nearest name": (["gpu=ada_24_pro"], "did you mean ADA_"),
    "a GPU of no pool": (
        ["gpu=3080"],
        "gpu: got '3080', and NVIDIA GeForce RTX 3080 is in no pool of serverless endpoints; ",
    ),
    "a GPU that no image covers": (["gpu=V100"], "Tesla V100-PCIE-16GB is in no pool"),
    "a pool without an image": (
        ["gpu=BLACKWELL_180"],
        "no image of FastDeploy 2.3.0 covers them; expected a pool of sm80, sm86, sm89, sm90",
    ),
    "a typo in a key": (["gpu=ADA_24", "quantisation=wint4"], "quantisation: unknown key; did you mean quantization?"),
    "no key": (["gpu=ADA_24", "wint4"], "got 'wint4', expected key=value"),
    "a quantization that is none": (["gpu=ADA_24", "quantization=wint5"], "QUANTIZATION: got 'wint5', expected one of wint2, wint4, wint8"),
    "a length past the model's": (["gpu=ADA_24", "max-model-len=200000"], "expected at most 40960"),
    "a count that is none": (["gpu=ADA_24", "count=two"], "count: got 'two', expected a whole number from 1 to 8"),
    "too many GPUs": (["gpu=ADA_24", "count=9"], "count: got '9', expected a whole number from 1 to 8"),
    "a release that is none": (["gpu=ADA_24", "release=2.5"], "release: got '2.5', expected one of 2.3.0, 2.4.0, 2.5.0"),
    "requests past the engine's": (["gpu=ADA_24", "concurrency=300"], "concurrency: got '300', expected a whole number from 1 to 256"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_question_that_makes_no_sense_ends_with_2_and_says_why(case: str, tmp_path: Path) -> None:
    words, expected = BAD[case]
    code, printed, said = plan(f"model={checkpoint(tmp_path / 'model', 'qwen3-8b')}", *words)
    assert (code, printed) == (2, "")
    assert expected in said
    assert said.startswith("plan: ")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "config.json: cannot be read"),
        ({"config.json": "{"}, "config.json: cannot be read"),
        ({"config.json": "{}"}, "no weights: expected files *.safetensors"),
        ({"config.json": "{}", "model.safetensors": "x"}, "its config.json does not tell layers, heads and widths"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_named(files: dict[str, str], expected: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    code, _, said = plan(f"model={tmp_path}", "gpu=ADA_24")
    assert code == 2
    assert expected in said
    assert "no directory and no config.json here, and no repository name" in plan("model=/nowhere/at/all", "gpu=ADA_24")[2]
