"""Write one set of weights as a checkpoint directory, in the forms that Hugging Face and PaddlePaddle publish.

FastDeploy's rule for which is which (`read_model_config` of its 2.5 release): `torch_dtype` in config.json means that a linear's weight is
[out, in]; `dtype` means [in, out], except beside a `transformers_version` above 4.56.0, which means [out, in] again.
Embeddings are [vocab, hidden] in both. On disk q/k/v and gate/up may be separate or fused, in the plain order q|k|v and gate|up.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.up_gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
PADDLE_ARCHITECTURE = {"Ernie4_5ForCausalLM": "Ernie4_5_ForCausalLM"}
"""Paddle spells ERNIE's class differently; the other families have one name."""

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLayout:
    """How one checkpoint directory stores its weights."""

    name: str
    dtype: str
    """Type of the stored weights, as config.json spells it."""
    paddle: bool = False
    """Linears are [in, out]."""
    fused: bool = False
    prefix: str = "model."
    shards: int = 1
    """More than one: model-0000i-of-0000n.safetensors with model.safetensors.index.json."""
    norms: str = ""
    """Type of the norm weights where it differs from `dtype`."""
    dtype_key: str = ""
    """Name of the type's key in config.json where it is not the usual one of the layout."""
    transformers_version: str = ""
    saved_by_transformers: bool = False
    """The directory is written by `save_pretrained` of the installed transformers, untouched."""


def write_checkpoint(folder: Path, layout: CheckpointLayout, config: dict[str, Any], weights: Weights) -> None:
    """Write `weights` (Hugging Face names, [out, in], float32) and `config` into `folder` as `layout` says."""
    folder.mkdir(parents=True)
    stored = fuse(weights) if layout.fused else weights
    tensors = {rename(name, layout): as_stored(name, tensor, layout) for name, tensor in stored.items()}
    write_tensors(folder, tensors, layout)
    key = layout.dtype_key or ("dtype" if layout.paddle else "torch_dtype")
    extra: dict[str, Any] = {key: layout.dtype}
    if layout.transformers_version:
        extra["transformers_version"] = layout.transformers_version
    if layout.paddle:
        extra["architectures"] = [PADDLE_ARCHITECTURE.get(name, name) for name in config["architectures"]]
    write_json(folder / "config.json", {**config, **extra})


def fuse(weights: Weights) -> Weights:
    """Join q|k|v and gate|up along the output dimension (the first, in [out, in])."""
    fused = dict(weights)
    for whole, parts in FUSED.items():
        for first in [name for name in weights if f".{parts[0]}." in name]:
            names = [first.replace(parts[0], part) for part in parts]
            fused[first.replace(parts[0], whole)] = torch.cat([fused.pop(name) for name in names])
    return fused


def rename(name: str, layout: CheckpointLayout) -> str:
    """Put the layout's prefix where Hugging Face writes `model.`."""
    return layout.prefix + name.removeprefix("model.") if name.startswith("model.") else name


def as_stored(name: str, tensor: torch.Tensor, layout: CheckpointLayout) -> torch.Tensor:
    """Transpose linears for Paddle and convert to the type on disk; raise ValueError if the conversion would lose a bit."""
    dtype = layout.norms if layout.norms and "norm" in name else layout.dtype
    turned = tensor.T if layout.paddle and tensor.ndim == 2 and "embed_tokens" not in name else tensor
    stored = turned.to(getattr(torch, dtype)).contiguous()
    if not torch.equal(stored.float(), turned):
        raise ValueError(f"{layout.name}: {name} does not fit into {dtype} without loss; every layout of a case must hold the same numbers")
    return stored


def write_tensors(folder: Path, tensors: Weights, layout: CheckpointLayout) -> None:
    """Write one safetensors file, or shards of about equal size with an index."""
    metadata = {"format": "np" if layout.paddle else "pt"}
    if layout.shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
        return
    total = sum(t.nbytes for t in tensors.values())
    shards: list[Weights] = [{} for _ in range(layout.shards)]
    seen = 0
    for name, tensor in tensors.items():
        shards[min(layout.shards - 1, seen * layout.shards // total)][name] = tensor
        seen += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{layout.shards:05d}.safetensors"
        save_file(shard, folder / file, metadata=metadata)
        weight_map.update(dict.fromkeys(shard, file))
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(path: Path, value: object) -> None:
    """Write `value` readably, the same bytes every time."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
