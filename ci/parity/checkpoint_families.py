"""The tiny models that stand for each family the CPU engine serves: their config.json and how their weights lie on disk.

The keys are those a published checkpoint of the family carries. The sizes are chosen so that no two dimensions of a matrix agree
(a transposed or mis-split matrix cannot pass unnoticed), except in `ernie_square`, whose k_proj and v_proj are square on purpose:
there nothing but config.json tells which layout the file has.
"""

from dataclasses import dataclass, field
from typing import Any

from ci.parity.layouts import CheckpointLayout

ERNIE = {
    "architectures": ["Ernie4_5ForCausalLM"],
    "model_type": "ernie4_5",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "use_bias": False,
    "use_cache": True,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "attention_dropout": 0.0,
    "bos_token_id": 151,
    "eos_token_id": 153,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "rms_norm_eps": 1e-06,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_sliding_window": False,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151,
    "eos_token_id": 153,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "sliding_window": None,
    "use_cache": True,
    "use_sliding_window": False,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "use_cache": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One tiny model and the forms in which it is stored; every form holds exactly the same numbers."""

    name: str
    family: str
    notes: str
    config: dict[str, Any] = field(repr=False)
    """config.json in Hugging Face form, without `torch_dtype`."""
    layouts: tuple[CheckpointLayout, ...]
    full_precision: bool = False
    """Weights use all bits of a float32; otherwise each is a number that bfloat16, float16 and float32 all hold exactly."""


def sizes(hidden: int, inter: int, layers: int, heads: tuple[int, int], vocab: int, theta: float) -> dict[str, Any]:
    """The config keys that give a model its size; `heads` is (query heads, key/value heads)."""
    return {
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
        "rope_theta": theta,
    }


CASES = (
    Case(
        name="ernie",
        family="ernie4_5",
        notes="tied embeddings, no bias, two query heads per key/value head; the shape of ERNIE-4.5-0.3B in small",
        config={**ERNIE, **sizes(32, 56, 2, (4, 2), 208, 500000.0), "head_dim": 12},
        layouts=(
            CheckpointLayout(name="hf", dtype="bfloat16"),
            CheckpointLayout(name="hf_transformers5", dtype="bfloat16", saved_by_transformers=True),
            CheckpointLayout(name="hf_transformers5_sharded", dtype="bfloat16", saved_by_transformers=True, shards=2),
            CheckpointLayout(name="paddle", dtype="bfloat16", paddle=True),
            CheckpointLayout(name="paddle_fused", dtype="bfloat16", paddle=True, fused=True, transformers_version="4.56.0"),
            CheckpointLayout(name="paddle_prefix_sharded", dtype="float16", paddle=True, prefix="ernie.", shards=3),
            CheckpointLayout(name="paddle_mixed", dtype="bfloat16", paddle=True, fused=True, prefix="ernie.", shards=2, norms="float32"),
        ),
    ),
    Case(
        name="ernie_bias",
        family="ernie4_5",
        notes="use_bias on every projection, untied lm_head (Paddle layout stores it [hidden, vocab])",
        config={**ERNIE, **sizes(32, 48, 2, (4, 2), 200, 10000.0), "head_dim": 12, "use_bias": True, "tie_word_embeddings": False},
        layouts=(
            CheckpointLayout(name="hf", dtype="float16"),
            CheckpointLayout(name="paddle", dtype="bfloat16", paddle=True),
            CheckpointLayout(name="paddle_prefix_fused", dtype="bfloat16", paddle=True, fused=True, prefix="ernie."),
        ),
    ),
    Case(
        name="ernie_square",
        family="ernie4_5",
        notes="k_proj and v_proj are square, so only config.json tells [in, out] from [out, in]; one key/value head; three layers",
        config={**ERNIE, **sizes(32, 40, 3, (2, 1), 200, 500000.0), "head_dim": 32},
        layouts=(
            CheckpointLayout(name="hf", dtype="bfloat16"),
            CheckpointLayout(name="hf_dtype_4_57", dtype="bfloat16", dtype_key="dtype", transformers_version="4.57.1"),
            CheckpointLayout(name="paddle", dtype="bfloat16", paddle=True),
            CheckpointLayout(name="paddle_dtype_4_55", dtype="bfloat16", paddle=True, transformers_version="4.55.0"),
        ),
    ),
    Case(
        name="qwen2",
        family="qwen2",
        notes="q/k/v bias, tied embeddings, head_dim absent from config.json, sliding_window present but switched off",
        config={**QWEN2, **sizes(40, 48, 2, (4, 2), 208, 1000000.0)},
        layouts=(
            CheckpointLayout(name="hf", dtype="bfloat16"),
            CheckpointLayout(name="hf_transformers5_sharded", dtype="bfloat16", saved_by_transformers=True, shards=2),
            CheckpointLayout(name="paddle", dtype="float16", paddle=True),
            CheckpointLayout(name="paddle_fused_sharded", dtype="bfloat16", paddle=True, fused=True, shards=2),
        ),
    ),
    Case(
        name="qwen2_untied",
        family="qwen2",
        notes="as the larger Qwen2: untied lm_head; float32 weights with all their bits; key/value heads not shared",
        config={**QWEN2, **sizes(24, 40, 2, (4, 4), 200, 10000.0), "tie_word_embeddings": False},
        layouts=(
            CheckpointLayout(name="hf", dtype="float32"),
            CheckpointLayout(name="paddle_fused", dtype="float32", paddle=True, fused=True),
        ),
        full_precision=True,
    ),
    Case(
        name="qwen3",
        family="qwen3",
        notes="norm on q and k, head_dim differs from hidden / heads, tied",
        config={**QWEN3, **sizes(40, 56, 2, (4, 2), 208, 1000000.0), "head_dim": 16, "tie_word_embeddings": True},
        layouts=(
            CheckpointLayout(name="hf", dtype="bfloat16"),
            CheckpointLayout(name="hf_transformers5", dtype="bfloat16", saved_by_transformers=True),
            CheckpointLayout(name="paddle", dtype="bfloat16", paddle=True),
            CheckpointLayout(name="paddle_fused_sharded", dtype="float16", paddle=True, fused=True, shards=2),
        ),
    ),
    Case(
        name="llama",
        family="llama",
        notes="untied, head_dim = hidden / heads and absent from config.json",
        config={**LLAMA, **sizes(40, 56, 2, (4, 2), 200, 10000.0)},
        layouts=(
            CheckpointLayout(name="hf", dtype="bfloat16"),
            CheckpointLayout(name="hf_fused", dtype="bfloat16", fused=True),
            CheckpointLayout(name="paddle_sharded", dtype="float16", paddle=True, shards=2),
        ),
    ),
    Case(
        name="llama_head_dim",
        family="llama",
        notes="head_dim set and different from hidden / heads, attention_bias, tied",
        config={**LLAMA, **sizes(32, 56, 2, (4, 1), 200, 50000.0), "head_dim": 12, "attention_bias": True, "tie_word_embeddings": True},
        layouts=(
            CheckpointLayout(name="hf", dtype="float32"),
            CheckpointLayout(name="paddle_fused", dtype="float32", paddle=True, fused=True),
        ),
        full_precision=True,
    ),
)
