"""Which checkpoints a release of FastDeploy reads, told by config.json alone, so before any weight is downloaded.

Three things decide: the model's architecture, the layout of its weights (torch's or Paddle's transposed one), and how they are quantized.
FastDeploy finds each mistake after the download, in a worker's log, with a sentence about something else.

The tables are what its source registers, at the commits that this project's other figures are from: `ModelRegistry.register_model_class`
below fastdeploy/model_executor/models; `parse_quant_config` in fastdeploy/model_executor/layers/quantization; `ModelConfig._post_init`
and `read_model_config` in fastdeploy/config.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from handler.fastdeploy.table import RELEASES, listed
from handler.fastdeploy.values import order, values_known_to

__all__ = ["ARCHITECTURES", "format_problems", "is_misread", "own_quantization", "stands_in"]

ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        "DeepseekV3ForCausalLM": "2.3",
        "Ernie4_5ForCausalLM": "2.3",
        "Ernie4_5_ForCausalLM": "2.3",
        "Ernie4_5_MTPForCausalLM": "2.3",
        "Ernie4_5_MoeForCausalLM": "2.3",
        "Ernie4_5_VLMoeForConditionalGeneration": "2.3",
        "Ernie4_5_VLMoeForProcessRewardModel": "2.3",
        "Glm4MoeForCausalLM": "2.3",
        "GptOssForCausalLM": "2.3",
        "PaddleOCRVLForConditionalGeneration": "2.3",
        "Qwen2ForCausalLM": "2.3",
        "Qwen2ForProcessRewardModel": "2.3",
        "Qwen2_5_VLForConditionalGeneration": "2.3",
        "Qwen3ForCausalLM": "2.3",
        "Qwen3MoeForCausalLM": "2.3",
        "Glm4MTPForCausalLM": "2.4",
        "PaddleFormersForCausalLM": "2.5",
        "Qwen3VLForConditionalGeneration": "2.5",
        "Qwen3VLMoeForConditionalGeneration": "2.5",
        "DeepseekV32ForCausalLM": "2.6",
        "GlmMoeDsaForCausalLM": "2.6",
    }
)
"""Architectures that FastDeploy has a model of its own for, each with the first release that registers it."""

_STAND_IN = "PaddleFormersForCausalLM"
"""What runs a text generator that FastDeploy has no model for, where a release registers it and MODEL_IMPL leaves the choice."""

_ENDINGS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("ForCausalLM", "ForConditionalGeneration", "ChatModel", "LMHeadModel"), "generates")
    | dict.fromkeys(("ForTextEncoding", "EmbeddingModel"), "embeds")
    | dict.fromkeys(("ForSequenceClassification", "ForAudioClassification", "ForImageClassification"), "judges")
    | dict.fromkeys(("ForVideoClassification", "ClassificationModel", "ForRewardModeling", "RewardModel"), "judges")
    | {"Model": "embeds"}
)
"""What a model does, by the ending of its architecture's name (`_SUFFIX_TO_DEFAULTS`); the first that fits counts, and none generates."""

_TORCH_QUANTIZATIONS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"fp8": ("2.3", "weight_block_size"), "modelopt": ("2.5", "quant_algo"), "mxfp4": ("2.5", "")}
)
"""quant_method of checkpoints in torch's layout: the first release that reads it, and the key that tells whether it is the kind meant."""

_TORCH_WORDS = {"fp8": "fp8 with weight_block_size", "modelopt": "modelopt with quant_algo NVFP4", "mxfp4": "mxfp4"}

_PARTS = ("dense_quant_type", "moe_quant_type", "image_moe_quant_type")
"""Keys of Paddle's mix_quant that name a quantization each."""

_TOP_LEVEL_ONLY = ("2.3", "2.4")
"""Releases that read the top level of config.json alone, and take every `dtype` for Paddle's layout."""


def format_problems(config: Mapping[str, Any], release: str, *, model_impl: str = "auto", plugins: bool = False) -> list[str]:
    """Return one sentence for each reason why a release cannot read a checkpoint; an empty config is not judged.

    `model_impl` is FastDeploy's flag of that name. `plugins` means that FD_PLUGINS is set: plugins may register any architecture.
    """
    if not config:
        return []
    problems = [] if plugins else _architecture_problems(_as_read(config, release), release, model_impl)
    return [*problems, *_layout_problems(config, release), *_quantization_problems(config, release)]


def stands_in(config: Mapping[str, Any], release: str) -> str:
    """Return the architecture that only PaddleFormers' models can run in this release; "" when FastDeploy has its own, or none can."""
    names = _names(_as_read(config, release))
    return names[0] if names and not _registered(names, release) and _may_stand_in(names, release) else ""


def own_quantization(config: Mapping[str, Any]) -> str:
    """Return what config.json calls the quantization that the weights are stored in; "" for plain ones. It wins over --quantization."""
    stored = _stored(config)
    return str(stored.get("quant_method") or stored.get("quantization") or "unnamed") if stored is not None else ""


# --- architecture


def _names(config: Mapping[str, Any]) -> list[str]:
    found = config.get("architectures")
    return [str(name) for name in found] if isinstance(found, list) else []


def _architecture_problems(config: Mapping[str, Any], release: str, model_impl: str) -> list[str]:
    names = _names(config)
    if not names:
        return ["MODEL: its config.json has no architectures, by which FastDeploy chooses the model's code: choose another repository"]
    own, stood_in = _registered(names, release), model_impl != "fastdeploy" and _may_stand_in(names, release)
    if own or stood_in:
        return []
    newer = [other for other in RELEASES if order(release) < order(other)]
    registering = [other for other in newer if _registered(names, other)]
    later = registering or [other for other in newer if _may_stand_in(names, other)]
    if _may_stand_in(names, release):
        way_out = "leave MODEL_IMPL unset, so that PaddleFormers may run it"
    elif later:
        how = "" if registering else ", through PaddleFormers"
        way_out = f"use an image of FastDeploy {' or '.join(later)}, which {'serves' if len(later) == 1 else 'serve'} it{how}"
    else:
        served = sorted(name for name, first in ARCHITECTURES.items() if order(first) <= order(release) and name != _STAND_IN)
        way_out = f"choose a model of {', '.join(served)}"
    return [f"MODEL: its architecture is {listed(names)}, which FastDeploy {release} does not serve: {way_out}"]


def _registered(names: Sequence[str], release: str) -> bool:
    return any(order(ARCHITECTURES[name]) <= order(release) for written in names for name in _spellings(written) if name in ARCHITECTURES)


def _spellings(name: str) -> list[str]:
    """Return the names under which FastDeploy looks for an architecture: its own, and those of its family for one that embeds."""
    ending, does = _does(name)
    return [name, *(name.removesuffix(ending) + other for other in _ENDINGS)] if does == "embeds" else [name]


def _does(name: str) -> tuple[str, str]:
    return next(((ending, does) for ending, does in _ENDINGS.items() if name.endswith(ending)), ("", "generates"))


def _may_stand_in(names: Sequence[str], release: str) -> bool:
    return order(ARCHITECTURES[_STAND_IN]) <= order(release) and _does(names[0])[1] == "generates"


# --- layout


def is_misread(config: Mapping[str, Any], release: str) -> bool:
    """Whether config.json would be misread: since 4.56 transformers writes `dtype`, which to FastDeploy means Paddle's transposed layout.

    FastDeploy 2.5 and 2.6 look at the version as well, but only past 4.56.0; 2.3 and 2.4 do not.
    """
    config = _as_read(config, release)
    return "dtype" in config and _transformers(config) >= (4, 56)


def _transformers(config: Mapping[str, Any]) -> tuple[int, ...]:
    parts = str(config.get("transformers_version", "")).split(".")[:2]
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


def _layout_problems(config: Mapping[str, Any], release: str) -> list[str]:
    """Return what FastDeploy would stop over when it reads the layout of the weights out of config.json."""
    found = [key for key in ("torch_dtype", "dtype") if key in _as_read(config, release)]
    if len(found) == 1 or (not found and _is_mxfp4(config) and release not in _TOP_LEVEL_ONLY):
        return []
    got = "neither" if not found else "both"
    return [
        f"config.json: got {got} of torch_dtype and dtype, expected one: FastDeploy tells the weights' layout by it and stops otherwise"
    ]


def _as_read(config: Mapping[str, Any], release: str) -> Mapping[str, Any]:
    """Return the keys that a release reads: those of the whole, and from 2.5 on those of the language part that the whole lacks."""
    inner = config.get("text_config")
    return {**inner, **config} if isinstance(inner, Mapping) and release not in _TOP_LEVEL_ONLY else config


def _is_mxfp4(config: Mapping[str, Any]) -> bool:
    """Whether the weights are stored as gpt-oss's are, which is the torch layout."""
    return (_stored(config) or {}).get("quant_method") == "mxfp4"


def _is_torch(config: Mapping[str, Any], release: str) -> bool:
    """Whether a release takes the layout for torch's when it reads the quantization (before FD_FOR_TORCH_MODEL_FORMAT is looked at)."""
    config = _as_read(config, release)
    if release in _TOP_LEVEL_ONLY or "dtype" not in config:
        return "dtype" not in config
    return _transformers(config) >= (4, 56) and not str(config["transformers_version"]).startswith("4.56.0")


# --- quantization


def _stored(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the quantization_config, wherever it stands; None for plain weights."""
    inner = config.get("text_config")
    found = ({**inner, **config} if isinstance(inner, Mapping) else config).get("quantization_config")
    return found if isinstance(found, Mapping) or found is None else {}


def _quantization_problems(config: Mapping[str, Any], release: str) -> list[str]:
    if _reads_weights(config, release):
        return []
    if _is_torch(config, release):
        read = [words for name, words in _TORCH_WORDS.items() if order(_TORCH_QUANTIZATIONS[name][0]) <= order(release)]
        expected = f"expected {', '.join(read)} or plain weights"
    else:
        known = ", ".join(values_known_to(release, "quantization"))
        expected = f"expected its key quantization to name one of {known}, since dtype tells Paddle's layout"
    newer = [other for other in RELEASES if order(release) < order(other) and _reads_weights(config, other)]
    way_out = "use the repository of the unquantized model, with QUANTIZATION=wint4 or wint8"
    if newer:
        way_out = f"use an image of FastDeploy {' or '.join(newer)}, which {'reads' if len(newer) == 1 else 'read'} it, or {way_out}"
    got = own_quantization(config)
    return [f"MODEL: its weights are quantized ({got}), which FastDeploy {release} does not read: {expected}: {way_out}"]


def _reads_weights(config: Mapping[str, Any], release: str) -> bool:
    stored = _stored(config)
    if stored is None:
        return True
    if _is_torch(config, release):
        first, key = _TORCH_QUANTIZATIONS.get(str(stored.get("quant_method")), ("", ""))
        meant = stored.get(key) == "NVFP4" if key == "quant_algo" else not key or key in stored
        return bool(first) and order(first) <= order(release) and meant
    known, name = values_known_to(release, "quantization"), stored.get("quantization")
    parts = [stored[part] for part in _PARTS if stored.get(part) is not None] if name == "mix_quant" else []
    return all(part in known for part in (name, *parts))
