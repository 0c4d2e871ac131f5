"""Small checkpoints written by hand, to be damaged or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tests import DEMO

VOCABULARY: int = json.loads((DEMO / "config.json").read_text())["vocab_size"]

CONFIG: dict[str, object] = {
    "architectures": ["Ernie4_5_ForCausalLM"],
    "model_type": "ernie4_5",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "use_bias": False,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}

Tensors = dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]


def write_checkpoint(folder: Path, tensors: Tensors | None = None, *, tokenizer: bool = True, **config: object) -> Path:
    """Write a whole checkpoint; `config` replaces keys of config.json, None takes one out."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = {key: value for key, value in {**CONFIG, **config}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(merged))
    write_tensors(folder / "model.safetensors", dict(tensors_of_config()) if tensors is None else tensors)
    if tokenizer:
        for name in ("tokenizer.model", "tokenizer_config.json"):
            shutil.copy(DEMO / name, folder / name)
    return folder


def write_overflowing(folder: Path) -> Path:
    """Write a checkpoint of finite weights that answers with infinity wherever token 7 comes last."""
    # Only token 7 meets itself in the head, where 4e18 times 1e20 is more than a float32 holds.
    embedding = np.zeros((VOCABULARY, 16), np.float32)
    embedding[7] = np.tile(np.array([4e18, -4e18], np.float32), 8)
    huge = {"ernie.embed_tokens.weight": embedding, "ernie.norm.weight": np.full(16, 1e20, np.float32)}
    return write_checkpoint(folder, {**dict(tensors_of_config()), **huge})


def tensors_of_config() -> Iterator[tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]]:
    """Give the tensors that CONFIG implies, in Paddle layout."""
    random = np.random.default_rng(7)
    hidden, inner, query, key = 16, 24, 16, 8
    shapes: Mapping[str, tuple[int, ...]] = {
        "ernie.embed_tokens.weight": (VOCABULARY, hidden),
        "ernie.layers.0.input_layernorm.weight": (hidden,),
        "ernie.layers.0.self_attn.q_proj.weight": (hidden, query),
        "ernie.layers.0.self_attn.k_proj.weight": (hidden, key),
        "ernie.layers.0.self_attn.v_proj.weight": (hidden, key),
        "ernie.layers.0.self_attn.o_proj.weight": (query, hidden),
        "ernie.layers.0.post_attention_layernorm.weight": (hidden,),
        "ernie.layers.0.mlp.gate_proj.weight": (hidden, inner),
        "ernie.layers.0.mlp.up_proj.weight": (hidden, inner),
        "ernie.layers.0.mlp.down_proj.weight": (inner, hidden),
        "ernie.norm.weight": (hidden,),
    }
    for name, shape in shapes.items():
        yield name, random.standard_normal(shape, np.float32)


def write_tensors(path: Path, tensors: Tensors, dtype: str = "BF16") -> None:
    """Write a safetensors file; bf16 by cutting off the lower half of each float32."""
    header: dict[str, object] = {"__metadata__": {"format": "np"}}
    data = b""
    for name, values in tensors.items():
        piece = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes() if dtype == "BF16" else values.tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    write_raw(path, json.dumps(header).encode(), data)


def write_raw(path: Path, header: bytes, data: bytes) -> None:
    """Write header and data as they are, with the right length in front."""
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
