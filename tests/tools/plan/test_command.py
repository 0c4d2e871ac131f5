"""`just plan` as a person meets it: real processes, directories, and a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.tools.plan.known import config_of, stored
from tests.twins.model_hub import ModelHub


def plan(*words: str, **environment: str) -> tuple[int, str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
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
    return {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in text.splitlines()}


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
    assert rows(said)["verdict"].startswith("cannot be served: its architecture is LlamaForCausalLM, which FastDeploy 2.3 does not serve")
    assert plan(f"model={folder}", "gpu=AMPERE_80", "release=2.5.0")[0] == 0


def test_weights_that_the_release_cannot_read_are_no_fit_and_the_way_out_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "qwen3-8b")
    config = config_of("qwen3-8b") | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code, said, _ = plan(f"model={folder}", "gpu=AMPERE_80")
    assert code == 1
    verdict = rows(said)["verdict"]
    assert verdict.startswith("cannot be served: its weights are quantized (awq), which FastDeploy 2.3 does not read")
    assert verdict.endswith("use the repository of the unquantized model, with QUANTIZATION=wint4 or wint8")


def test_a_length_that_nobody_asked_for_is_noted_with_what_the_model_allows(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "qwen3-8b")
    said = plan(f"model={folder}", "gpu=AMPERE_80")[1]
    longest = config_of("qwen3-8b")["max_position_embeddings"]
    assert "may have 2048 tokens, FastDeploy's default" in rows(said)["note"]
    assert rows(said)["note"].endswith(f"the model allows {longest}")
    assert "note" not in rows(plan(f"model={folder}", "gpu=AMPERE_80", "max-model-len=4096")[1])


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
    "no pool": ([], "gpu: missing"),
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
    assert "no directory here and no repository name" in plan("model=/nowhere/at/all", "gpu=ADA_24")[2]
