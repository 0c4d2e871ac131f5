"""The plan agrees with what FastDeploy's documentation publishes, and five known models come out as they should."""

from __future__ import annotations

import pytest

from checkpoint.size import cache_per_token, shape_of
from images.gpu_types import read_gpu_types
from images.releases import read_releases
from tests.tools.plan.known import NAMES, PUBLISHED, config_of, parameters, stored
from tools.generate.hub_listing import image, pools
from tools.generate.presets import PRESETS, Preset
from tools.plan.fit import PlanRequest, Pool, evaluate, find_pool, image_for
from tools.plan.listing import ModelSummary

GIB = 1 << 30
COUNTS = (1, 2, 4, 8)

# Document, model, quantization, GiB of a GPU, fewest GPUs that it names. All are for --max-model-len 32768 --max-num-seqs 128, which is the
# documents' own command. Their "A30 40GB" is left out: the card has 24 GB, and the figures beside it are those of a card of 24 GB.
DOCUMENTED = [
    *(
        ("best_practices/ERNIE-4.5-0.3B-Paddle.md", "ernie-4.5-0.3b", quantization, gib, 1)
        for quantization in ("wint8", "wint4")
        for gib in (80, 96, 48, 24)
    ),
    ("best_practices/ERNIE-4.5-21B-A3B-Paddle.md", "ernie-4.5-21b-a3b", "wint8", 80, 1),
    ("best_practices/ERNIE-4.5-21B-A3B-Paddle.md", "ernie-4.5-21b-a3b", "wint4", 80, 1),
    ("best_practices/ERNIE-4.5-21B-A3B-Paddle.md", "ernie-4.5-21b-a3b", "block_wise_fp8", 80, 1),
    ("best_practices/ERNIE-4.5-21B-A3B-Paddle.md", "ernie-4.5-21b-a3b", "wint8", 48, 1),
    ("best_practices/ERNIE-4.5-21B-A3B-Paddle.md", "ernie-4.5-21b-a3b", "wint4", 48, 1),
    ("best_practices/ERNIE-4.5-21B-A3B-Paddle.md", "ernie-4.5-21b-a3b", "block_wise_fp8", 48, 1),
    ("best_practices/ERNIE-4.5-21B-A3B-Paddle.md", "ernie-4.5-21b-a3b", "wint8", 24, 2),
    ("best_practices/ERNIE-4.5-21B-A3B-Paddle.md", "ernie-4.5-21b-a3b", "wint4", 24, 1),
    ("best_practices/ERNIE-4.5-300B-A47B-Paddle.md", "ernie-4.5-300b-a47b", "wint8", 80, 8),
    ("best_practices/ERNIE-4.5-300B-A47B-Paddle.md", "ernie-4.5-300b-a47b", "wint4", 80, 4),
    ("best_practices/ERNIE-4.5-300B-A47B-Paddle.md", "ernie-4.5-300b-a47b", "block_wise_fp8", 80, 8),
    ("best_practices/ERNIE-4.5-300B-A47B-Paddle.md", "ernie-4.5-300b-a47b", "wint2", 80, 2),
    ("best_practices/ERNIE-4.5-300B-A47B-Paddle.md", "ernie-4.5-300b-a47b", "w4a8", 80, 4),
]


def model(name: str) -> ModelSummary:
    return ModelSummary(name=name, config=config_of(name), stored=stored(name), download=stored(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_a_known_model_is_the_one_its_makers_tell(name: str) -> None:
    assert parameters(config_of(name)) == pytest.approx(PUBLISHED[name], rel=0.005)


@pytest.mark.parametrize(("document", "name", "quantization", "gib", "fewest"), DOCUMENTED)
def test_the_fewest_gpus_are_those_of_fastdeploys_documentation(document: str, name: str, quantization: str, gib: int, fewest: int) -> None:
    target = read_releases().target("sm80")
    pool = Pool(name="DOCUMENTED", architectures=("sm80",), gib=gib, memory=gib * GIB)
    fits = [
        evaluate(model(name), PlanRequest(pool=pool, count=count, quantization=quantization, length=32768, requests=128), target).fits
        for count in COUNTS
    ]
    assert COUNTS[fits.index(True)] == fewest, document


# ModelSummary, quantization, pool, GPUs; then gigabytes of weights on each GPU, bytes of cache a token, and whether requests of 32768 fit.
KNOWN = [
    ("ernie-4.5-0.3b", "", "AMPERE_16", 1, 0.7, 18432, True),
    ("ernie-4.5-21b-a3b", "", "ADA_48_PRO", 1, 43.7, 57344, False),
    ("ernie-4.5-21b-a3b", "", "AMPERE_80", 1, 43.7, 57344, True),
    ("ernie-4.5-21b-a3b", "wint8", "ADA_24", 1, 22.1, 57344, False),
    ("ernie-4.5-21b-a3b", "wint4", "ADA_24", 1, 11.9, 57344, True),
    ("ernie-4.5-300b-a47b", "wint4", "ADA_80_PRO", 2, 78.7, 110592, False),
    ("ernie-4.5-300b-a47b", "wint4", "ADA_80_PRO", 4, 39.4, 55296, True),
    ("qwen3-8b", "", "AMPERE_16", 1, 16.4, 147456, False),
    ("qwen3-8b", "wint8", "ADA_24", 1, 9.4, 147456, True),
    ("qwen3-30b-a3b", "", "AMPERE_48", 1, 61.1, 98304, False),
    ("qwen3-30b-a3b", "wint8", "ADA_24", 1, 31.2, 98304, False),
    ("qwen3-30b-a3b", "wint8", "ADA_48_PRO", 1, 31.2, 98304, True),
]


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: f"{row[0]}-{row[1] or 'bf16'}-{row[3]}x{row[2]}")
def test_five_known_models(row: tuple[str, str, str, int, float, int, bool]) -> None:
    name, quantization, gpu, count, weights, per_token, fits = row
    pool = find_pool(gpu, read_gpu_types())
    asked = PlanRequest(pool=pool, count=count, quantization=quantization, length=32768)
    found = evaluate(model(name), asked, image_for(pool, read_releases(), "2.5.0"))
    assert found.estimate.weights / 1e9 == pytest.approx(weights, abs=0.06)
    assert found.estimate.per_token == per_token
    assert found.fits is fits


PRESET_MODELS = {
    "baidu/ERNIE-4.5-0.3B-Paddle": "ernie-4.5-0.3b",
    "baidu/ERNIE-4.5-21B-A3B-Paddle": "ernie-4.5-21b-a3b",
    "Qwen/Qwen3-8B": "qwen3-8b",
}


@pytest.mark.parametrize(
    "preset", [preset for preset in PRESETS if preset.defaults["MODEL"] in PRESET_MODELS], ids=lambda preset: preset.name
)
def test_the_hubs_presets_fit_the_smallest_gpu_that_the_hub_offers(preset: Preset) -> None:
    target = image()
    pool = find_pool(pools(target.covers)[0], read_gpu_types())
    asked = PlanRequest(
        pool=pool,
        quantization=str(preset.defaults.get("QUANTIZATION", "")),
        length=int(preset.defaults["MAX_MODEL_LEN"]),
        requests=int(preset.defaults["MAX_NUM_SEQS"]),
    )
    found = evaluate(model(PRESET_MODELS[str(preset.defaults["MODEL"])]), asked, target)
    assert found.tokens >= 4 * found.length, "a few requests of full length at a time"


def test_a_cache_of_latent_attention_counts_rank_and_rotary_width_once() -> None:
    """FastDeploy: bytes x (kv_lora_rank + qk_rope_head_dim) x layers."""
    shape = shape_of(config_of("qwen3-8b") | {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_hidden_layers": 61})
    assert shape is not None
    assert cache_per_token(shape) == 2 * (512 + 64) * 61
