"""Which checkpoints a release reads, told by config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.fastdeploy.flags import RELEASES
from handler.fastdeploy.formats import ARCHITECTURES, format_problems, is_misread, own_quantization, stands_in
from handler.fastdeploy.values import order
from tests.handler.fastdeploy.starts import ERNIE, engine, problems
from tests.strategies import SETTINGS

SERVED: dict[str, Any] = {"architectures": ["Qwen3ForCausalLM"]}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("config", "misread"), [
    ({"torch_dtype": "bfloat16", "transformers_version": "4.55.0"}, False),
    ({"torch_dtype": "bfloat16", "transformers_version": "5.0.0"}, False),
    ({"dtype": "bfloat16"}, False),
    ({"dtype": "bfloat16", "transformers_version": "4.55.4"}, False),
    ({"dtype": "bfloat16", "transformers_version": "4.56.0"}, True),
    ({"dtype": "bfloat16", "transformers_version": "5.0.0.dev0"}, True),
    ({"dtype": "bfloat16", "transformers_version": None}, False),
])  # fmt: skip
def test_weights_whose_layout_would_be_misread_are_declared(release: str, config: Mapping[str, Any], misread: bool) -> None:
    prepared = engine({}, {**SERVED, **config}, release)
    assert prepared.variables().get("FD_FOR_TORCH_MODEL_FORMAT") == ("1" if misread else None)


@pytest.mark.parametrize(("config", "got"), [({"torch_dtype": "x", "dtype": "x"}, "both"), ({"model_type": "ernie4_5"}, "neither")])
def test_a_config_that_fastdeploy_stops_over_is_refused(config: Mapping[str, Any], got: str) -> None:
    (problem,) = problems({}, {**SERVED, **config})
    assert problem.startswith(f"config.json: got {got} of torch_dtype and dtype, expected one")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("config", "declared"), [
    ({"text_config": {"dtype": "bfloat16"}, "vision_config": {}, "transformers_version": "4.57.0.dev0"}, "1"),
    ({"text_config": {"dtype": "bfloat16"}, "vision_config": {}}, None),
    ({"text_config": {"torch_dtype": "bfloat16"}, "vision_config": {}}, None),
    ({"quantization_config": {"quant_method": "mxfp4"}, "transformers_version": "4.55.0.dev0"}, None),
])  # fmt: skip
def test_from_2_5_on_the_layout_is_told_by_the_language_part_or_by_mxfp4(
    release: str, config: Mapping[str, Any], declared: str | None
) -> None:
    """Qwen3-VL has its dtype in text_config, and gpt-oss has none (ModelConfig.read_model_config)."""
    if release in ("2.3", "2.4"):
        assert problems({}, {**SERVED, **config}, release)[0].startswith("config.json: got neither of torch_dtype and dtype")
    else:
        assert engine({}, {**SERVED, **config}, release).variables().get("FD_FOR_TORCH_MODEL_FORMAT") == declared


@pytest.mark.parametrize("release", RELEASES)
def test_a_type_in_both_parts_is_one_only_where_the_parts_are_read_together(release: str) -> None:
    config = SERVED | {"torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}}
    if release in ("2.3", "2.4"):
        engine({}, config, release)
    else:
        assert "got both" in problems({}, config, release)[0]
    assert "got neither" in problems({}, SERVED | {"quantization_config": {"quant_method": "fp8"}}, release)[0]


# --- architectures


def refused(config: Mapping[str, Any], release: str, **further: Any) -> str:
    return "\n".join(format_problems({"torch_dtype": "bfloat16", **config}, release, **further))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_served_from_the_release_on_that_registers_it(release: str, name: str) -> None:
    """Rule: the table is what `ModelRegistry.register_model_class` was found to register; before 2.5 nothing stands in for the rest."""
    served = order(ARCHITECTURES[name]) <= order(release)
    said = refused({"architectures": [name]}, release, model_impl="fastdeploy")
    assert bool(said) != served
    if not served:
        assert said.startswith(f"MODEL: its architecture is {name}, which FastDeploy {release} does not serve: ")
        assert f"use an image of FastDeploy {ARCHITECTURES[name]}" in said or "leave MODEL_IMPL unset" in said


@pytest.mark.parametrize(("names", "served"), [
    (["LlamaForCausalLM"], "2.5 2.6"),
    (["MistralForCausalLM", "Qwen2ForCausalLM"], "2.3 2.4 2.5 2.6"),
    (["GPT2LMHeadModel"], "2.5 2.6"),
    (["BaichuanChatModel"], "2.5 2.6"),
    (["Qwen3Model"], "2.3 2.4 2.5 2.6"),
    (["Qwen2EmbeddingModel"], "2.3 2.4 2.5 2.6"),
    (["LlamaModel"], ""),
    (["Qwen2ForSequenceClassification"], ""),
    (["BertForSequenceClassification"], ""),
    (["Qwen2RewardModel"], ""),
    (["Whisper"], "2.5 2.6"),
    ([], ""),
    (None, ""),
    ("Qwen3ForCausalLM", ""),
])  # fmt: skip
def test_other_architectures_are_served_as_fastdeploy_s_registry_resolves_them(names: Any, served: str) -> None:
    """Rules: an embedding model is looked up by its family's name, and from 2.5 on PaddleFormers stands in for what generates text."""
    assert [release for release in RELEASES if not refused({"architectures": names}, release)] == served.split()


def test_what_only_paddleformers_can_run_is_refused_where_it_may_not_stand_in_and_noted_where_it_does() -> None:
    llama = {**ERNIE, "architectures": ["LlamaForCausalLM"]}
    assert problems({"MODEL_IMPL": "fastdeploy"}, llama)[0].endswith("leave MODEL_IMPL unset, so that PaddleFormers may run it")
    assert refused(llama, "2.3").endswith("use an image of FastDeploy 2.5 or 2.6, which serve it, through PaddleFormers")
    assert stands_in(llama, "2.5") == "LlamaForCausalLM"
    assert stands_in(llama, "2.3") == stands_in(ERNIE, "2.5") == stands_in({}, "2.5") == ""


def test_a_plugin_may_bring_any_architecture_along() -> None:
    config = {**ERNIE, "architectures": ["MoonForCausalLM"]}
    assert problems({}, config, "2.3")
    engine({"FD_PLUGINS": "moon"}, config, "2.3")


# --- quantization

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
TORCH = {"torch_dtype": "bfloat16"}
NEW = {"dtype": "bfloat16", "transformers_version": "4.57.1"}
EVERY, FROM_2_5 = "2.3 2.4 2.5 2.6", "2.5 2.6"


@pytest.mark.parametrize(("layout", "stored", "read"), [
    (TORCH, {"quant_method": "awq", "bits": 4, "group_size": 128}, ""),
    (TORCH, {"quant_method": "gptq", "bits": 4}, ""),
    (TORCH, {"quant_method": "compressed-tensors", "config_groups": {}}, ""),
    (TORCH, {"quant_method": "bitsandbytes", "load_in_4bit": True}, ""),
    (TORCH, {"quant_method": "fp8"}, ""),
    (TORCH, {"quant_method": "fbgemm_fp8"}, ""),
    (TORCH, {"quant_method": "torchao"}, ""),
    (TORCH, {"quantization": "wint8"}, ""),
    (TORCH, {}, ""),
    (TORCH, [], ""),
    (TORCH, None, EVERY),
    (TORCH, FP8, EVERY),
    (NEW, FP8, FROM_2_5),
    (NEW | {"transformers_version": "4.56.0"}, FP8, ""),
    (TORCH, NVFP4, FROM_2_5),
    (TORCH, NVFP4 | {"quant_algo": "FP8"}, ""),
    (TORCH, {"quant_method": "mxfp4"}, FROM_2_5),
    ({"dtype": "bfloat16"}, {"quantization": "wint8", "is_quantized": True}, EVERY),
    ({"dtype": "bfloat16"}, {"quantization": "mix_quant", "dense_quant_type": "wint8", "moe_quant_type": "w4a8"}, EVERY),
    ({"dtype": "bfloat16"}, {"quantization": "mix_quant", "dense_quant_type": "wint8", "moe_quant_type": "mxfp4"}, FROM_2_5),
    ({"dtype": "bfloat16"}, {"quantization": "wint2", "dense_quant_type": "wint8", "moe_quant_config": {}}, EVERY),
    ({"dtype": "bfloat16"}, {"quantization": "modelopt_fp4"}, FROM_2_5),
    ({"dtype": "bfloat16"}, {"quantization": "int3"}, ""),
    ({"dtype": "bfloat16"}, {"quant_method": "gptq"}, ""),
    ({"dtype": "bfloat16"}, FP8, ""),
])  # fmt: skip
def test_quantized_weights_are_read_by_the_releases_whose_source_reads_them(layout: dict[str, Any], stored: Any, read: str) -> None:
    """Rule (`parse_quant_config`): torch's layout by quant_method, Paddle's by the key quantization, the layout as config.json tells it."""
    config = {**SERVED, **layout, "quantization_config": stored}
    assert [release for release in RELEASES if not format_problems(config, release)] == read.split()
    for release in RELEASES:
        for problem in format_problems(config, release):
            assert problem.startswith("MODEL: its weights are quantized (")
            assert problem.endswith("use the repository of the unquantized model, with QUANTIZATION=wint4 or wint8")
            newer = [other for other in read.split() if order(other) > order(release)]
            assert (f"use an image of FastDeploy {' or '.join(newer)}, which read it" in problem) == bool(newer)


def test_a_quantization_in_the_language_part_is_one_of_the_model() -> None:
    config = {**SERVED, "torch_dtype": "bfloat16", "text_config": {"quantization_config": {"quant_method": "awq"}}}
    assert all(format_problems(config, release) for release in RELEASES)


CONFIGS = st.dictionaries(
    st.sampled_from(["architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config", "text_config"]),
    st.recursive(
        st.none() | st.text(max_size=3) | st.sampled_from(["fp8", "4.56.1", "mix_quant", "NVFP4", "Qwen3Model"]) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from(["quant_method", "quantization", "moe_quant_type", "dtype", "quant_algo"]), inner)
        ),
        max_leaves=4,
    ),
)


@SETTINGS
@given(CONFIGS, st.sampled_from(RELEASES), st.booleans())
def test_any_config_is_read_or_refused_in_sentences_that_say_what_to_do(config: dict[str, Any], release: str, plugins: bool) -> None:
    """Rule: what a checkpoint says is not ours; nothing in it may end the start in a traceback."""
    for problem in format_problems(config, release, plugins=plugins):
        assert problem.startswith(("MODEL: its ", "config.json: got "))
    is_misread(config, release)
    stands_in(config, release)
    own_quantization(config)
