"""What config.json says of a model, and that nothing in it ends a start in a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.config import head_counts, language_part, longest_context, read_config
from checkpoint.unavailable import ModelUnavailable
from tests.strategies import SETTINGS


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "[" * 100_000, '{"a":' * 100_000, "\udcff"])
def test_a_config_json_that_is_no_object_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ModelUnavailable, match=r"config\.json: cannot be read \("):
        read_config(tmp_path)


def test_a_config_json_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=f"^{tmp_path}/config.json: cannot be read"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 5}')
    assert read_config(tmp_path) == {"vocab_size": 5}


def test_the_language_model_s_numbers_are_read_wherever_they_stand() -> None:
    inner = {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    for config in (inner, {"text_config": inner}, {"text_config": inner, "num_attention_heads": 3}):
        assert head_counts(config) == {"num_attention_heads": 8, "num_key_value_heads": 2}
        assert longest_context(config) == 4096
    assert head_counts({"num_attention_heads": 0, "num_key_value_heads": "2"}) == {}


CONFIGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "text_config",
                    "max_position_embeddings",
                    "rope_scaling",
                    "factor",
                    "original_max_position_embeddings",
                    "num_attention_heads",
                ]
            ),
            inner,
        )
    ),
)


@SETTINGS
@given(st.dictionaries(st.sampled_from(["text_config", "max_position_embeddings", "rope_scaling", "num_attention_heads"]), CONFIGS))
def test_any_config_gives_numbers(config: dict[str, Any]) -> None:
    assert longest_context(config) == int(longest_context(config))
    assert all(count > 0 for count in head_counts(config).values())
    assert language_part(config).keys() >= config.keys()
