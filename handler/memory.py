"""How much GPU memory a checkpoint will take, estimated from its headers and config.json alone.

Weights are counted tensor by tensor as the engine holds them. Quantization while loading shrinks the matrices of linear layers, not
embeddings, heads and norms; its scales (about 1 %) are left out. What the engine needs beside weights and cache is a guess that no
measurement backs, so only the weights may stop a start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handler.weights.shards import Tensor, read_json, tensors, weight_files

__all__ = ["Estimate", "Load", "Shape", "cache_per_token", "estimate", "read_shape", "weights_size"]

_BITS = {"wint8": 8, "wint4": 4, "wint2": 2, "w8a8": 8, "w4a8": 4, "w4afp8": 4, "modelopt_fp4": 4, "mxfp4": 4}
_BITS |= {"block_wise_fp8": 8, "wfp8afp8": 8, "tensor_wise_fp8": 8, "weight_only": 8}
"""Bits of a weight that each of FastDeploy's quantizations leaves; the others (kvcache, mix_quant) keep the weights or say nothing."""

_FLOATS = {"F64": 16, "F32": 16, "F16": 16, "BF16": 16}
"""Bits in memory of the types that the engine converts while loading; all others stay as they are."""

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


def read_shape(directory: Path) -> Shape | None:
    """Return the shape that config.json gives, or None where it is not there or not of a kind known here."""
    try:
        config = read_json(directory / "config.json")
        config = config.get("text_config", config)
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        rank = _number(config, "kv_lora_rank")
        return Shape(
            layers=int(config["num_hidden_layers"]),
            kv_heads=_number(config, "num_key_value_heads") or heads,
            head_dim=_number(config, "head_dim") or hidden // heads,
            hidden=hidden,
            intermediate=_number(config, "intermediate_size"),
            vocabulary=int(config["vocab_size"]),
            latent=rank + _number(config, "qk_rope_head_dim") if rank else 0,
            positions=_number(config, "max_position_embeddings"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def _number(config: dict[str, Any], name: str) -> int:
    return int(config.get(name) or 0)


def weights_size(directory: Path, quantization: str = "") -> int:
    """Return the bytes that the weights of a checkpoint take in memory, over all GPUs, with one of FastDeploy's quantizations or none.

    Raises:
        OSError, ValueError: naming a file that cannot be read.
    """
    total = 0
    for name in weight_files(directory):
        path = directory / name
        total += sum(_size(tensor, quantization) for tensor in tensors(path)) if path.suffix == ".safetensors" else path.stat().st_size
    return total


def _size(tensor: Tensor, quantization: str) -> int:
    bits = _FLOATS.get(tensor.dtype)
    if bits is None:
        return tensor.size
    if len(tensor.shape) > 1 and not _KEPT.search(tensor.name):
        bits = min(bits, _BITS.get(quantization.lower(), bits))
    return -(-tensor.elements * bits // 8)


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
