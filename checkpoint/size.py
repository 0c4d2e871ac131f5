"""How much GPU memory a checkpoint will take, estimated from its headers and config.json alone, or from the size of its files.

Weights are counted tensor by tensor as the engine holds them, or all together where only the files' sizes are known. Quantization while
loading shrinks the matrices of linear layers, not embeddings, heads and norms; its scales (about 1 %) are left out. What the engine needs
beside weights and cache is a guess that no measurement backs, so only the weights may stop a start.

Where it is from, in FastDeploy's source: cache, `GPUModelRunner.cal_theortical_kvcache` (bytes x 2 x heads x width x layers; with latent
attention bytes x (rank + rotary width) x layers); what is left for it, `GpuWorker.determine_available_memory` (share x total - used -
peak); `parse_quant_config` (an ERNIE model's wint4 is 4 bits for routed experts, 8 for the rest).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.config import language_part, read_config
from checkpoint.files import Tensor, tensors, weight_files
from checkpoint.unavailable import ModelUnavailable

__all__ = ["Estimate", "Load", "Shape", "cache_per_token", "estimate", "loaded_size", "read_shape", "shape_of", "weights_size"]

_BITS = {"wint8": 8, "wint4": 4, "wint2": 2, "w8a8": 8, "w4a8": 4, "w4afp8": 4, "modelopt_fp4": 4, "mxfp4": 4}
_BITS |= {"block_wise_fp8": 8, "wfp8afp8": 8, "tensor_wise_fp8": 8, "weight_only": 8}
"""Bits of a weight that each of FastDeploy's quantizations leaves."""

_WHOLE = ("", "kvcache")
"""What leaves the weights as they are; other names, mix_quant among them, say nothing about their bits."""

_FLOATS = {"F64": 16, "F32": 16, "F16": 16, "BF16": 16}
"""Bits in memory of the types that the engine converts while loading; all others stay as they are."""

_EXPERT = re.compile(r"(?<!shared_)experts\.")
_KEPT = re.compile(r"embed|lm_head|norm|gate\.weight$|bias$")
_RUNTIME = 1 << 30
"""Bytes for the CUDA context and the libraries' kernels: a guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of a model that fix the size of its cache and of its activations."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocabulary: int
    latent: int = 0
    """Width of the compressed cache of multi-head latent attention; 0 where each head has keys and values."""
    positions: int = 0
    """Longest context; 0 where config.json does not say."""
    tied: bool = False
    """Whether the head is the embedding, so that its numbers are stored once."""
    ernie: bool = False
    experts: int = 0
    """Of an ERNIE model: how many of its numbers are routed experts'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the model is asked to bear."""

    length: int
    """Longest request, in tokens."""
    batched: int
    """Tokens computed at the same time."""
    requests: int
    """Requests decoded at the same time."""
    cache_bits: int = 16
    parallel: int = 1
    """GPUs that share the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes on each GPU."""

    weights: int
    per_token: int
    """Cache of one token."""
    sequence: int
    """Cache of one request of full length."""
    margin: int
    """Activations and runtime: a guess."""

    @property
    def total(self) -> int:
        """Return what a start with room for one full request takes."""
        return self.weights + self.sequence + self.margin

    def tokens(self, usable: float) -> int:
        """Return for how many tokens there is cache in `usable` bytes, beside weights and margin."""
        return max(0, int((usable - self.weights - self.margin) // max(self.per_token, 1)))


def read_shape(directory: Path) -> Shape | None:
    """Return the shape that config.json gives, or None where it is not there or not of a kind known here."""
    try:
        return shape_of(read_config(directory))
    except ModelUnavailable:
        return None


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """Return the shape that a config.json holds, or None where it is not of a kind known here."""
    try:
        config = language_part(config)
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        rank = _number(config, "kv_lora_rank")
        ernie = any(str(name).startswith("Ernie4_5") for name in config.get("architectures", ()))
        return Shape(
            layers=int(config["num_hidden_layers"]),
            kv_heads=_number(config, "num_key_value_heads") or heads,
            head_dim=_number(config, "head_dim") or hidden // heads,
            hidden=hidden,
            intermediate=_number(config, "intermediate_size"),
            vocabulary=int(config["vocab_size"]),
            latent=rank + _number(config, "qk_rope_head_dim") if rank else 0,
            positions=_number(config, "max_position_embeddings"),
            tied=bool(config.get("tie_word_embeddings")),
            ernie=ernie,
            experts=_experts(config) if ernie else 0,
        )
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def _number(config: Mapping[str, Any], name: str) -> int:
    return int(config.get(name) or 0)


def _experts(config: Mapping[str, Any]) -> int:
    """Count the numbers of an ERNIE model's routed experts; one for texts and one for images has a list of two of each."""
    counts, widths = (
        value if isinstance(value, list) else [value or 0] for value in map(config.get, ("moe_num_experts", "moe_intermediate_size"))
    )
    last, first = config.get("moe_layer_end_index"), config.get("moe_layer_start_index")
    starts, ends = (value if isinstance(value, list) else [value] * len(counts) for value in (first, last))
    layers, step = int(config["num_hidden_layers"]), _number(config, "moe_layer_interval") or 1
    total = 0
    for count, width, start, end in zip(counts, widths, starts, ends, strict=True):
        last_layer = layers - 1 if end in (None, -1) else int(end)
        total += len(range(int(start or 0), last_layer + 1, step)) * int(count) * 3 * int(config["hidden_size"]) * int(width)
    return total


def weights_size(directory: Path, quantization: str = "", experts: str | None = None) -> int:
    """Return the bytes that the weights of a checkpoint take in memory, over all GPUs, with one of FastDeploy's quantizations or none.

    `experts` is what a mixture (mix_quant) does to routed experts, where `quantization` is what it does to the rest.

    Raises:
        OSError, ValueError: naming a file that cannot be read, or a quantization whose bits are not known.
    """
    for name in (quantization, experts or ""):
        if name.lower() not in _BITS and name.lower() not in _WHOLE:
            raise ValueError(f"QUANTIZATION: how many bits {name} leaves is not known")
    total, shape = 0, read_shape(directory)
    ernie = shape is not None and shape.ernie
    for name in weight_files(directory):
        path = directory / name
        sizes = (
            [_size(tensor, quantization, experts, ernie=ernie) for tensor in tensors(path)]
            if path.suffix == ".safetensors"
            else [path.stat().st_size]
        )
        total += sum(sizes)
    return total


def _size(tensor: Tensor, quantization: str, experts: str | None, *, ernie: bool) -> int:
    bits = _FLOATS.get(tensor.dtype)
    if bits is None:
        return tensor.size
    if len(tensor.shape) > 1 and not _KEPT.search(tensor.name):
        expert = bool(_EXPERT.search(tensor.name))
        alone = ernie and experts is None  # a mixture says itself what it does to the rest
        bits = min(bits, _bits(experts if expert and experts is not None else quantization, ernie=alone, expert=expert))
    return -(-tensor.elements * bits // 8)


def _bits(quantization: str, *, ernie: bool, expert: bool) -> int:
    """Return the bits that a number of a linear layer is left with."""
    name = quantization.lower()
    return 8 if name == "wint4" and ernie and not expert else _BITS.get(name, 16)


def loaded_size(stored: int, shape: Shape, quantization: str = "") -> int:
    """Return what `weights_size` would, from the `stored` bytes of files that hold 16 bits for each number.

    Norms and biases, a thousandth of a model, are taken for matrices.
    """
    numbers = stored // 2
    kept = min(numbers, shape.vocabulary * shape.hidden * (1 if shape.tied else 2))
    experts = min(numbers - kept, shape.experts)
    parts = (
        (kept, 16),
        (experts, _bits(quantization, ernie=shape.ernie, expert=True)),
        (numbers - kept - experts, _bits(quantization, ernie=shape.ernie, expert=False)),
    )
    return -(-sum(count * bits for count, bits in parts) // 8)


def cache_per_token(shape: Shape, *, bits: int = 16, parallel: int = 1) -> int:
    """Return the bytes of cache that one token takes on each of `parallel` GPUs, with `bits` for each number."""
    width = shape.latent or 2 * -(-shape.kv_heads // parallel) * shape.head_dim
    return -(-shape.layers * width * bits // 8)


def estimate(weights: int, shape: Shape, load: Load) -> Estimate:
    """Return what each GPU needs for `weights` bytes in all."""
    per_token = cache_per_token(shape, bits=load.cache_bits, parallel=load.parallel)
    width = 6 * shape.hidden + 2 * -(-shape.intermediate // load.parallel)
    activations = 2 * load.batched * width + 4 * load.requests * shape.vocabulary
    return Estimate(
        weights=-(-weights // load.parallel), per_token=per_token, sequence=per_token * load.length, margin=_RUNTIME + activations
    )
