"""Makes small checkpoints of real safetensors files."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 3,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], int]], seed: int = 0) -> None:
    """Write tensors given as name -> (dtype, shape, bytes), with contents that no two seeds share."""
    header, offset = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + random.Random(seed).randbytes(offset))


def write_checkpoint(directory: Path, *, shards: int = 3, rows: int = 300, seed: int = 0) -> Path:
    """Write config, tokenizer and `shards` files of about rows * 128 bytes each; one shard means one file without an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text(json.dumps({"seed": seed}))
    if shards == 1:
        write_safetensors(directory / "model.safetensors", {"model.a.weight": ("BF16", [rows, 64], rows * 128)}, seed)
        return directory
    names = {f"model.layers.{number}.weight": f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)}
    for number, (tensor, name) in enumerate(names.items()):
        write_safetensors(directory / name, {tensor: ("BF16", [rows, 64], rows * 128)}, seed * 1000 + number)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return directory
