"""config.json and generation_config.json -> frozen values; what the engine cannot compute is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cpu_engine.refusals import StartupError

JsonObject: TypeAlias = Mapping[str, object]

# FastDeploy writes the Paddle spelling, transformers the other one.
_FAMILY_OF_ARCHITECTURE = {
    "Ernie4_5_ForCausalLM": "ernie4_5",
    "Ernie4_5ForCausalLM": "ernie4_5",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
}
_FAMILIES = ", ".join(sorted(set(_FAMILY_OF_ARCHITECTURE.values())))
_SUPPORTED = f"a dense model of one of the families {_FAMILIES}"
_USE_GPU = "serve this model with FastDeploy on a GPU, or choose a dense checkpoint"
# A repetition penalty divides logits: below this they would leave what float32 holds.
LOWEST_PENALTY = 1e-6
_MOE_KEYS = ("moe_num_experts", "num_experts", "num_local_experts", "n_routed_experts")
_VISION_KEYS = ("vision_config", "visual", "rope_3d", "im_patch_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The numbers that fix the forward pass. Sizes count elements, biases say which matrices carry one."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    norm_epsilon: float
    rope_theta: float
    interleaved_rope: bool
    """Pairs (0,1), (2,3).. of ERNIE; False: the two halves of Qwen and Llama."""
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_head: bool | None
    """None where config.json does not say: then a head is tied when the files hold none."""
    says_torch_layout: bool
    """FastDeploy's rule for the layout of matrices; the shapes in the files decide where they can."""
    eos_token_ids: frozenset[int]

    @property
    def parameters(self) -> int:
        """Return the number of weights of the matrices, a tied head counted once."""
        attention = self.hidden_size * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        heads = 2 if self.tied_head is False else 1
        return self.layers * (attention + mlp) + heads * self.vocab_size * self.hidden_size


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What a request gets for the fields it leaves out; the values are FastDeploy's where the file says nothing."""

    temperature: float = 1.0
    top_p: float = 0.7
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    eos_token_ids: frozenset[int] = frozenset()


def read_config(directory: Path) -> ModelConfig:
    """Read `directory`/config.json; raise StartupError naming the key that does not fit."""
    if not directory.is_dir():
        raise StartupError(
            f"--model {directory}",
            got="a file" if directory.exists() else "no such directory",
            expected="a checkpoint directory",
            remedy="pass the directory that holds config.json",
        )
    path = directory / "config.json"
    return parse_config(read_json(path), str(path))


def read_sampling_defaults(directory: Path, vocab_size: int) -> SamplingDefaults:
    """Read `directory`/generation_config.json if it is there; raise StartupError on wrong types and ids outside the vocabulary."""
    path = directory / "generation_config.json"
    if not path.is_file():
        return SamplingDefaults()
    fields = _Fields(read_json(path), str(path))
    standard = SamplingDefaults()
    return SamplingDefaults(
        temperature=fields.number("temperature", standard.temperature, low=0.0),
        top_p=fields.number("top_p", standard.top_p, low=0.0, high=1.0),
        repetition_penalty=fields.number("repetition_penalty", standard.repetition_penalty, low=LOWEST_PENALTY),
        frequency_penalty=fields.number("frequency_penalty", standard.frequency_penalty, low=-2.0, high=2.0),
        presence_penalty=fields.number("presence_penalty", standard.presence_penalty, low=-2.0, high=2.0),
        eos_token_ids=fields.ids("eos_token_id", vocab_size),
    )


def read_json(path: Path) -> JsonObject:
    """Return the JSON object in `path`; raise StartupError when it is missing, damaged or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartupError(
            str(path),
            got=error.strerror or "an unreadable file",
            expected="a JSON file",
            remedy="download the checkpoint again",
        ) from error
    except (ValueError, RecursionError) as error:
        raise StartupError(
            str(path), got=f"bad JSON ({error})", expected="a JSON object", remedy="download the checkpoint again"
        ) from error
    if not isinstance(value, dict):
        raise StartupError(str(path), got=type(value).__name__, expected="a JSON object", remedy="download the checkpoint again")
    return value


def parse_config(raw: JsonObject, source: str) -> ModelConfig:
    """Turn the object of config.json into a ModelConfig; `source` is the name used in refusals."""
    fields = _Fields(raw, source)
    family = _family(fields)
    _refuse_unsupported(fields)
    vocab_size = fields.integer("vocab_size")
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    head_dim = fields.integer("head_dim", default=hidden // heads)
    if head_dim % 2:
        raise fields.wrong("head_dim", "an even number")
    return ModelConfig(
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=fields.integer("max_position_embeddings", default=4096),
        norm_epsilon=fields.number("rms_norm_eps", 1e-6, low=0.0),
        rope_theta=_rope_theta(fields),
        interleaved_rope=family == "ernie4_5",
        **_biases(family, fields),
        qk_norm=family == "qwen3",
        tied_head=fields.boolean("tie_word_embeddings", default=None),
        says_torch_layout=_says_torch_layout(raw),
        eos_token_ids=fields.ids("eos_token_id", vocab_size),
    )


def _family(fields: _Fields) -> str:
    architectures = fields.raw.get("architectures")
    if not architectures and fields.raw.get("model_type") in _FAMILY_OF_ARCHITECTURE.values():
        return str(fields.raw["model_type"])
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if name in _FAMILY_OF_ARCHITECTURE:
        return _FAMILY_OF_ARCHITECTURE[name]
    got = repr(name or architectures)
    if "moe" in name.lower() or "deepseekv" in name.lower():
        got += " (mixture of experts)"
    elif "vl" in name.lower() or "ConditionalGeneration" in name:
        got += " (vision)"
    raise StartupError(f"{fields.source}: architectures", got=got, expected=_SUPPORTED, remedy=_USE_GPU)


def _refuse_unsupported(fields: _Fields) -> None:
    """Refuse by name what would otherwise be computed wrongly in silence."""
    raw = fields.raw
    for key in _MOE_KEYS:
        if raw.get(key) not in (None, 0, 1, [], [0]):
            raise fields.unsupported(key, "no experts (mixture-of-experts models are not supported)")
    for key in _VISION_KEYS:
        if raw.get(key):
            raise fields.unsupported(key, "a text model (vision is not supported)")
    for key in ("quantization_config", "quantization"):
        if raw.get(key):
            raise fields.unsupported(key, "bf16, f16 or f32 weights (quantised weights are not supported)")
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.unsupported("hidden_act", "'silu'")
    _refuse_unsupported_positions(fields)


def _refuse_unsupported_positions(fields: _Fields) -> None:
    raw = fields.raw
    for key in ("rope_scaling", "rope_parameters"):
        value = raw.get(key)
        if value and (not isinstance(value, dict) or value.get("rope_type", value.get("type", "default")) != "default"):
            raise fields.unsupported(key, "plain rotary embeddings (rope scaling is not supported)")
    for key in ("compression_ratio", "partial_rotary_factor"):
        if raw.get(key) not in (None, 1):
            raise fields.unsupported(key, "1 (rope scaling and partial rotary embeddings are not supported)")
    if raw.get("use_sliding_window", bool(raw.get("sliding_window"))):
        key = "use_sliding_window" if raw.get("use_sliding_window") else "sliding_window"
        raise fields.unsupported(key, "full attention (sliding windows are not supported)")
    layer_types = raw.get("layer_types")
    if isinstance(layer_types, list) and set(map(str, layer_types)) - {"full_attention"}:
        raise fields.unsupported("layer_types", "full_attention only (sliding windows are not supported)")


def _rope_theta(fields: _Fields) -> float:
    nested = fields.raw.get("rope_parameters")
    if "rope_theta" not in fields.raw and isinstance(nested, dict):
        return _Fields(nested, f"{fields.source}: rope_parameters").number("rope_theta", 10000.0, low=1.0)
    return fields.number("rope_theta", 10000.0, low=1.0)


def _biases(family: str, fields: _Fields) -> dict[str, bool]:
    """Return which matrices carry a bias; the rule of each family is that of its class in transformers."""
    if family == "ernie4_5":
        everywhere = bool(fields.boolean("use_bias", default=False))
        return {"qkv_bias": everywhere, "output_bias": everywhere, "mlp_bias": everywhere}
    if family == "qwen2":
        return {"qkv_bias": True, "output_bias": False, "mlp_bias": False}
    attention = bool(fields.boolean("attention_bias", default=False))
    mlp = family == "llama" and bool(fields.boolean("mlp_bias", default=False))
    return {"qkv_bias": attention, "output_bias": attention, "mlp_bias": mlp}


def _says_torch_layout(raw: JsonObject) -> bool:
    """Return FastDeploy's verdict (config.py of 2.5): `torch_dtype`, or `dtype` by transformers above 4.56.0."""
    if "torch_dtype" in raw:
        return True
    parts = str(raw.get("transformers_version") or "0").split(".")
    version = tuple(int(part) for part in parts[:3] if part.isdigit())
    return "dtype" in raw and version > (4, 56, 0)


class _Fields:
    """Typed access to the keys of one JSON object; every failure is a StartupError naming file and key."""

    def __init__(self, raw: JsonObject, source: str) -> None:
        self.raw = raw
        self.source = source

    def wrong(self, key: str, expected: str) -> StartupError:
        """Return the refusal of a value of the wrong type or range."""
        got = "nothing" if key not in self.raw else _short(self.raw[key])
        return StartupError(f"{self.source}: {key}", got=got, expected=expected, remedy="download the checkpoint again")

    def unsupported(self, key: str, expected: str) -> StartupError:
        """Return the refusal of a value that is right, but not for this engine."""
        return StartupError(f"{self.source}: {key}", got=_short(self.raw.get(key)), expected=expected, remedy=_USE_GPU)

    def integer(self, key: str, *, default: int | None = None) -> int:
        value = self.raw.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(key, "a whole number above 0")
        return value

    def number(self, key: str, default: float, *, low: float, high: float = math.inf) -> float:
        value = self.raw.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str, *, default: bool | None) -> bool | None:
        value = self.raw.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def ids(self, key: str, vocab_size: int) -> frozenset[int]:
        value = self.raw.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        ids = [item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0]
        if len(ids) < len(values):
            raise self.wrong(key, "a token id or a list of token ids")
        if any(item >= vocab_size for item in ids):
            raise self.wrong(key, f"token ids below vocab_size of config.json ({vocab_size})")
        return frozenset(ids)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
