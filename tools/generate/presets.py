"""The models that the Hub offers at a click, each with the limits that fit its default GPU.

Names, quantizations and parsers are those of FastDeploy's docs/supported_models.md and docs/best_practices: ERNIE takes wint4 and wint8,
dense Qwen3 wint8 but not wint4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One entry of the Hub's list; the first is the default."""

    name: str
    defaults: Mapping[str, str | int]
    download: int
    """Gigabytes of its repository's weights, about: two bytes for each parameter that the model's name counts."""


PRESETS = (
    Preset(
        name="ERNIE-4.5 0.3B",
        defaults={"MODEL": "baidu/ERNIE-4.5-0.3B-Paddle", "MAX_MODEL_LEN": 32768, "MAX_NUM_SEQS": 64},
        download=1,
    ),
    Preset(
        name="ERNIE-4.5 21B-A3B, 4 bits",
        defaults={
            "MODEL": "baidu/ERNIE-4.5-21B-A3B-Paddle",
            "QUANTIZATION": "wint4",
            "MAX_MODEL_LEN": 32768,
            "MAX_NUM_SEQS": 64,
        },
        download=44,
    ),
    Preset(
        name="ERNIE-4.5 21B-A3B, 8 bits",
        defaults={
            "MODEL": "baidu/ERNIE-4.5-21B-A3B-Paddle",
            "QUANTIZATION": "wint8",
            "MAX_MODEL_LEN": 32768,
            "MAX_NUM_SEQS": 64,
        },
        download=44,
    ),
    Preset(
        name="Qwen3 8B",
        defaults={"MODEL": "Qwen/Qwen3-8B", "MAX_MODEL_LEN": 32768, "MAX_NUM_SEQS": 64, "REASONING_PARSER": "qwen3"},
        download=17,
    ),
    Preset(
        name="ERNIE-4.5 VL 28B-A3B (images and video), 4 bits",
        defaults={
            "MODEL": "baidu/ERNIE-4.5-VL-28B-A3B-Paddle",
            "QUANTIZATION": "wint4",
            "MAX_MODEL_LEN": 32768,
            "MAX_NUM_SEQS": 32,
            "MAX_NUM_BATCHED_TOKENS": 384,
            "REASONING_PARSER": "ernie-45-vl",
            "LIMIT_MM_PER_PROMPT": '{"image": 100, "video": 100}',
        },
        download=58,
    ),
)
