"""Laws of the plan, over made-up models and every pool there is."""

from __future__ import annotations

import json
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint.size import Load, estimate, loaded_size, shape_of, weights_size
from checkpoint.unavailable import ModelUnavailable
from images.gpu_types import read_gpu_types
from images.releases import read_releases
from tests.strategies import SETTINGS
from tests.tools.plan.known import parameters
from tools.plan.advise import change_text, smallest_change
from tools.plan.fit import Fit, PlanRequest, evaluate, image_for, read_pools
from tools.plan.listing import ModelSummary
from tools.plan.parameters import weights_of
from tools.plan.pool_table import plan_pools

RELEASES = read_releases()
POOLS = read_pools(read_gpu_types())
SERVED = [pool for pool in POOLS.values() if set(pool.architectures) <= {"sm80", "sm86", "sm89", "sm90"}]
QUANTIZATIONS = ("", "wint8", "wint4")
"""Each with no more bits than the one before it."""


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["Ernie4_5_ForCausalLM", "Ernie4_5_MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"]))
    heads = draw(st.sampled_from([4, 8, 16, 20, 32, 64]))
    config = {
        "architectures": [kind],
        "torch_dtype": "bfloat16",
        "hidden_size": 64 * draw(st.integers(8, 128)),
        "intermediate_size": 256 * draw(st.integers(4, 112)),
        "num_hidden_layers": draw(st.integers(2, 96)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([divisor for divisor in (1, 2, 4, 8) if heads % divisor == 0])),
        "head_dim": draw(st.sampled_from([64, 128])),
        "vocab_size": 1024 * draw(st.integers(8, 160)),
        "max_position_embeddings": 131072,
        "tie_word_embeddings": draw(st.booleans()),
    }
    if "Moe" in kind:
        count = {"Ernie4_5_MoeForCausalLM": "moe_num_experts"}.get(kind, "num_experts")
        config |= {count: draw(st.sampled_from([8, 64, 128])), "moe_intermediate_size": 64 * draw(st.integers(4, 56))}
        if kind.startswith("Ernie"):
            config |= {"moe_layer_start_index": draw(st.integers(0, 1)), "moe_num_shared_experts": draw(st.sampled_from([0, 2]))}
    return config


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelSummary, PlanRequest]:
    config = draw(configs())
    size = 2 * parameters(config)
    asked = PlanRequest(
        pool=draw(st.sampled_from(SERVED)),
        count=draw(st.sampled_from([1, 2, 3, 4, 8])),
        quantization=draw(st.sampled_from(QUANTIZATIONS)),
        length=draw(st.sampled_from([0, 1024, 8192, 32768, 131072])),
        requests=draw(st.sampled_from([1, 8, 64, 256])),
    )
    model = ModelSummary(name="org/name", config=config, stored=size, download=size)
    squeeze = draw(st.none() | st.floats(0.2, 1.1))
    if squeeze:  # a GPU of about the size that is needed, where changes are small
        asked = replace(asked, pool=replace(asked.pool, name="SQUEEZED", memory=int(squeeze * planned(model, asked).estimate.total / 0.9)))
    return model, asked


def planned(model: ModelSummary, asked: PlanRequest) -> Fit:
    return evaluate(model, asked, image_for(asked.pool, RELEASES))


@SETTINGS
@given(cases(), st.integers(1, 4))
def test_longer_requests_never_take_less(case: tuple[ModelSummary, PlanRequest], times: int) -> None:
    """Rule: "monotone in length"."""
    model, asked = case
    lengths = [length for length in (1024, 1024 * times, 32768, 131072) if length >= 1024]
    totals = [planned(model, replace(asked, length=length)).estimate.total for length in sorted(lengths)]
    assert totals == sorted(totals)


@SETTINGS
@given(cases())
def test_more_gpus_never_take_more_of_each(case: tuple[ModelSummary, PlanRequest]) -> None:
    """Rule: "monotone in count"."""
    model, asked = case
    totals = [planned(model, replace(asked, count=count)).estimate.total for count in (1, 2, 4, 8)]
    assert totals == sorted(totals, reverse=True)


@SETTINGS
@given(cases())
def test_fewer_bits_never_take_more(case: tuple[ModelSummary, PlanRequest]) -> None:
    """Rule: "monotone in bits", of weights and of cache."""
    model, asked = case
    weights = [planned(model, replace(asked, quantization=name)).estimate.weights for name in QUANTIZATIONS]
    assert weights == sorted(weights, reverse=True)
    shape = shape_of(model.config)
    assert shape is not None
    load = Load(length=4096, batched=4096, requests=8)
    assert estimate(0, shape, replace(load, cache_bits=8)).sequence <= estimate(0, shape, load).sequence


@SETTINGS
@given(cases())
def test_what_is_left_holds_what_is_promised(case: tuple[ModelSummary, PlanRequest]) -> None:
    """A plan fits exactly when there is cache for one request of full length, and never hands out more than there is."""
    fit = planned(*case)
    assert fit.fits == (fit.left >= fit.estimate.sequence)
    assert fit.tokens * fit.estimate.per_token <= max(fit.left, 0)
    if fit.fits:
        assert fit.tokens >= fit.length


@SETTINGS
@given(cases())
def test_the_suggested_change_really_fits_and_is_one(case: tuple[ModelSummary, PlanRequest]) -> None:
    """Rule: "verdict's suggested change really fits"; where there is none, not even the most that is rented holds the model."""
    model, asked = case
    fit = planned(model, asked)
    if fit.fits:
        return
    change = smallest_change(model, fit, POOLS, RELEASES)
    if change is None:
        largest = max((pool for pool in SERVED if pool.architectures == ("sm90",)), key=lambda pool: pool.memory)
        assert not planned(model, replace(asked, pool=largest, count=8)).fits
        return
    assert planned(model, change.asked).fits
    assert change_text(asked, change.asked)
    assert change.asked.requests == asked.requests, "nobody asked to serve fewer"
    assert change.asked.count >= asked.count
    assert change.asked.pool.memory >= asked.pool.memory
    assert not change.asked.length or change.asked.length <= fit.length


@SETTINGS
@given(cases())
def test_a_row_of_the_table_is_what_a_plan_for_its_pool_says(case: tuple[ModelSummary, PlanRequest]) -> None:
    """Rows stand by what they need: as asked for, with a change, not at all; what is named as a change does make it fit."""
    model, asked = case
    rows = plan_pools(model, asked, SERVED, RELEASES, "", {})
    assert {row.pool.name for row in rows} == {pool.name for pool in SERVED}
    orders = [row.order()[0] for row in rows]
    assert orders == sorted(orders)
    for row in rows:
        assert row.advice
        fit = planned(model, replace(asked, pool=row.pool))
        assert (row.works is not None and row.works is row.advice.fit) == fit.fits
        if row.works:
            assert row.works.fits
            assert row.works.asked.pool == row.pool


def tensors(config: dict[str, Any]) -> dict[str, list[int]]:
    """The shapes of a decoder's tensors, named as checkpoints name them."""
    hidden, width = config["hidden_size"], config["head_dim"]
    found = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = [config["vocab_size"], hidden]
    experts = config.get("moe_num_experts", config.get("num_experts", 0))
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        found[name + "input_layernorm.weight"] = [hidden]
        for part, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads"), ("v", "num_key_value_heads")):
            found[f"{name}self_attn.{part}_proj.weight"] = [config[heads] * width, hidden]
        found[name + "self_attn.o_proj.weight"] = [hidden, config["num_attention_heads"] * width]
        if not experts or layer < config.get("moe_layer_start_index", 0):
            found |= _mlp(name + "mlp.", hidden, config["intermediate_size"])
            continue
        found[name + "mlp.gate.weight"] = [experts, hidden]
        # All experts of a layer as one, to keep the header short: sizes are what is counted.
        found |= _mlp(name + "mlp.experts.0.", hidden, experts * config["moe_intermediate_size"])
        if config.get("moe_num_shared_experts"):
            found |= _mlp(name + "mlp.shared_experts.", hidden, config["moe_num_shared_experts"] * config["moe_intermediate_size"])
    return found


def _mlp(name: str, hidden: int, width: int) -> dict[str, list[int]]:
    return {f"{name}{part}_proj.weight": [hidden, width] for part in ("gate", "up", "down")}


@SETTINGS
@given(configs())
def test_weights_are_counted_from_a_config_as_its_tensors_are(config: dict[str, Any]) -> None:
    """Norms, a ten-thousandth of a model of a real one's size, are left out."""
    matrices = [shape for shape in tensors(config).values() if len(shape) > 1]
    assert weights_of(config) == 2 * sum(rows * columns for rows, columns in matrices)


@pytest.mark.parametrize("name", ["vision_config", "kv_lora_rank", "n_routed_experts", "quantization_config"])
def test_what_a_config_does_not_tell_is_not_guessed(name: str) -> None:
    with pytest.raises(ModelUnavailable, match=f"it has {name}, whose weights cannot be counted"):
        weights_of({"hidden_size": 8, name: {"x": 1}})
    with pytest.raises(ModelUnavailable, match="its weights cannot be counted"):
        weights_of({"hidden_size": 8, "num_hidden_layers": "many"})


@settings(SETTINGS, max_examples=60)
@given(configs(), st.sampled_from(["", "wint8", "wint4", "wint2"]))
def test_counting_files_gives_what_counting_tensors_gives(config: dict[str, Any], quantization: str) -> None:
    """One formula, not two: a plan, which knows sizes of files, and a worker's look at the tensors agree to one part in fifty."""
    with tempfile.TemporaryDirectory() as folder:
        header, offset = {}, 0
        for name, shape in tensors(config).items():
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        Path(folder, "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        counted = weights_size(Path(folder), quantization)
    shape_known = shape_of(config)
    assert shape_known is not None
    assert loaded_size(offset, shape_known, quantization) == pytest.approx(counted, rel=0.02)
