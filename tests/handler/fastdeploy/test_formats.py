from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from handler.fastdeploy.flags import RELEASES
from tests.handler.fastdeploy.starts import engine, problems

SERVED: dict[str, Any] = {"architectures": ["Qwen3ForCausalLM"]}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("config", "misread"), [
    ({"torch_dtype": "bfloat16", "transformers_version": "4.55.0"}, False),
    ({"torch_dtype": "bfloat16", "transformers_version": "5.0.0"}, False),
    ({"dtype": "bfloat16"}, False),
    ({"dtype": "bfloat16", "transformers_version": "4.55.4"}, False),
    ({"dtype": "bfloat16", "transformers_version": "4.56.0"}, True),
    ({"dtype": "bfloat16", "transformers_version": "5.0.0.dev0"}, True),
    ({"dtype": "bfloat16", "transformers_version": None}, False),
])  # fmt: skip
def test_weights_whose_layout_would_be_misread_are_declared(release: str, config: Mapping[str, Any], misread: bool) -> None:
    prepared = engine({}, {**SERVED, **config}, release)
    assert prepared.variables().get("FD_FOR_TORCH_MODEL_FORMAT") == ("1" if misread else None)


@pytest.mark.parametrize(("config", "got"), [({"torch_dtype": "x", "dtype": "x"}, "both"), ({"model_type": "ernie4_5"}, "neither")])
def test_a_config_that_fastdeploy_stops_over_is_refused(config: Mapping[str, Any], got: str) -> None:
    (problem,) = problems({}, {**SERVED, **config})
    assert problem.startswith(f"config.json: got {got} of torch_dtype and dtype, expected one")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("config", "declared"), [
    ({"text_config": {"dtype": "bfloat16"}, "vision_config": {}, "transformers_version": "4.57.0.dev0"}, "1"),
    ({"text_config": {"dtype": "bfloat16"}, "vision_config": {}}, None),
    ({"text_config": {"torch_dtype": "bfloat16"}, "vision_config": {}}, None),
    ({"quantization_config": {"quant_method": "mxfp4"}, "transformers_version": "4.55.0.dev0"}, None),
])  # fmt: skip
def test_from_2_5_on_the_layout_is_told_by_the_language_part_or_by_mxfp4(
    release: str, config: Mapping[str, Any], declared: str | None
) -> None:
    """Qwen3-VL has its dtype in text_config, and gpt-oss has none (ModelConfig.read_model_config)."""
    if release in ("2.3", "2.4"):
        assert problems({}, {**SERVED, **config}, release)[0].startswith("config.json: got neither of torch_dtype and dtype")
    else:
        assert engine({}, {**SERVED, **config}, release).variables().get("FD_FOR_TORCH_MODEL_FORMAT") == declared


@pytest.mark.parametrize("release", RELEASES)
def test_a_type_in_both_parts_is_one_only_where_the_parts_are_read_together(release: str) -> None:
    config = SERVED | {"torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}}
    if release in ("2.3", "2.4"):
        engine({}, config, release)
    else:
        assert "got both" in problems({}, config, release)[0]
    assert "got neither" in problems({}, SERVED | {"quantization_config": {"quant_method": "fp8"}}, release)[0]
