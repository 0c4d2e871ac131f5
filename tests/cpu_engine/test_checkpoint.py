"""Damaged checkpoints: whatever is missing, cut short or does not belong is named, and nothing is half loaded."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_engine.architecture import read_config
from cpu_engine.checkpoint import load
from cpu_engine.forward import Chunk, Transformer
from cpu_engine.refusals import StartupError
from cpu_engine.weights import load_weights
from tests import DEMO
from tests.cpu_engine.checkpoints import VOCABULARY, Tensors, tensors_of_config, write_checkpoint, write_raw, write_tensors


def refusal(folder: Path, *, max_model_len: int | None = None, memory: int | None = None) -> str:
    """Load a checkpoint that cannot be loaded; return the line it is refused with."""
    with pytest.raises(StartupError) as caught:
        load(folder, served_name=None, max_model_len=max_model_len, threads=1, memory=memory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def logits(folder: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    config = read_config(folder)
    model = Transformer(config, load_weights(folder, config, threads=1))
    return model.forward([Chunk(cache=model.new_cache(), tokens=[5, 6, 7])])


def test_a_whole_checkpoint_loads(tmp_path: Path) -> None:
    model, reader = load(write_checkpoint(tmp_path), served_name=None, max_model_len=None, threads=2, memory=1 << 40)
    assert reader.max_model_len == 2048
    assert reader.eos_token_ids == {2}
    assert model.config.tied_head is True
    reader.close()


WHOLE = dict(tensors_of_config())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_cut_at_any_byte_is_found(data: st.DataObject) -> None:
    """Rule: a truncated safetensors file never loads, wherever it was cut."""
    with tempfile.TemporaryDirectory() as folder:
        directory = write_checkpoint(Path(folder), WHOLE, tokenizer=False)
        file = directory / "model.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        with pytest.raises(StartupError, match=r"model\.safetensors.*(damaged|cut short)"):
            load_weights(directory, read_config(directory), threads=1)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_a_header_of_any_bytes_is_refused(header: bytes) -> None:
    """Rule: nothing but StartupError leaves the reader, whatever stands in the file."""
    with tempfile.TemporaryDirectory() as folder:
        directory = write_checkpoint(Path(folder), {}, tokenizer=False)
        write_raw(directory / "model.safetensors", header, b"")
        with pytest.raises(StartupError):
            load_weights(directory, read_config(directory), threads=1)


@pytest.mark.parametrize("header", [b"[]", b"{nope}", b"[" * 100_000])
def test_a_header_that_is_no_object_is_named(tmp_path: Path, header: bytes) -> None:
    write_raw(write_checkpoint(tmp_path) / "model.safetensors", header, b"")
    assert "model.safetensors: its safetensors header is damaged or cut short: no JSON object" in refusal(tmp_path)


def test_bytes_after_the_last_tensor_are_found(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path) / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes() + b"\0")
    assert f"got {size + 1} bytes, expected {size} bytes, as its header says" in refusal(tmp_path)


def test_where_every_matrix_of_the_mlp_is_square_config_json_tells_the_layout(tmp_path: Path) -> None:
    square = {name: values[:16, :16].copy() if "mlp" in name else values for name, values in WHOLE.items()}
    turned = {name: values.T.copy() if "proj" in name else values for name, values in square.items()}
    paddle = logits(write_checkpoint(tmp_path / "paddle", square, intermediate_size=16))
    torch = logits(write_checkpoint(tmp_path / "torch", turned, intermediate_size=16, dtype=None, torch_dtype="bfloat16"))
    np.testing.assert_array_equal(paddle, torch)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, "got dtype F8_E4M3, expected BF16, F16 or F32"),
        ({"dtype": "BF16", "shape": [4], "data_offsets": [0, 4]}, "expected 8 bytes"),
        ({"dtype": "BF16", "shape": [-2], "data_offsets": [0, 4]}, "shape [-2]"),
        ({"dtype": "BF16", "shape": [2], "data_offsets": [4, 0]}, "shape [2] in bytes "),
        ({"dtype": "BF16", "shape": [100], "data_offsets": [0, 200]}, "at least"),
        ({"dtype": "BF16", "shape": "x", "data_offsets": [0, 4]}, "no dtype, shape or data_offsets"),
        ({"dtype": "BF16"}, "no dtype, shape or data_offsets"),
        (7, "no dtype, shape or data_offsets"),
    ],
)
def test_a_tensor_that_contradicts_its_file_is_named(tmp_path: Path, entry: object, says: str) -> None:
    write_checkpoint(tmp_path)
    write_raw(tmp_path / "model.safetensors", json.dumps({"some.weight": entry}).encode(), b"\0" * 8)
    line = refusal(tmp_path)
    assert says in line
    assert "some.weight" in line
    assert "model.safetensors" in line


def changed(**changes: object) -> Tensors:
    """Return the whole set with tensors replaced (array), removed (None) or added; __ stands for a dot."""
    tensors = dict(WHOLE)
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del tensors[key]
        else:
            assert isinstance(value, np.ndarray)
            tensors[key] = value
    return tensors


ZEROS = np.zeros((3, 5), np.float32)
GATE = "ernie__layers__0__mlp__gate_proj__weight"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (changed(**{GATE: None}), "tensor layers.0.mlp.gate_proj.weight: got no such tensor in any file, expected [16, 24]"),
        (changed(ernie__norm__weight=None), "tensor norm.weight: got no such tensor"),
        (changed(**{GATE: ZEROS}), "tensor ernie.layers.0.mlp.gate_proj.weight: got shape [3, 5], expected [16, 24]"),
        (
            changed(ernie__layers__0__mlp__experts__3__weight=ZEROS),
            "tensor ernie.layers.0.mlp.experts.3.weight: got a tensor this architecture",
        ),
        (changed(ernie__layers__0__self_attn__q_proj__bias=ZEROS), "q_proj.bias: got a tensor this architecture does not have"),
        (changed(ernie__norm__weight=np.full(16, np.nan, np.float32)), "tensor ernie.norm.weight: got a NaN or infinite weight"),
        (changed(**{GATE: np.full((16, 24), np.inf, np.float32)}), "gate_proj.weight: got a NaN or infinite weight"),
        (changed(ernie__norm__weight=np.tile(np.array([8e37, -8e37], np.float32), 8)), "got logits that are no numbers"),
    ],
    ids=["missing", "missing-norm", "misshapen", "extra", "extra-bias", "nan", "infinite", "overflowing"],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_tensors_that_do_not_fit_are_named_with_their_file(tmp_path: Path, tensors: Tensors, says: str) -> None:
    assert says in refusal(write_checkpoint(tmp_path, tensors))


def test_an_untied_head_has_to_be_there(tmp_path: Path) -> None:
    assert "tensor lm_head.weight: got no such tensor" in refusal(write_checkpoint(tmp_path, tie_word_embeddings=False))


def test_a_tied_head_saved_all_the_same_is_ignored(tmp_path: Path) -> None:
    head = np.ones((VOCABULARY, 16), np.float32)
    with_head = logits(write_checkpoint(tmp_path / "with", {**WHOLE, "lm_head.weight": head}))
    np.testing.assert_array_equal(with_head, logits(write_checkpoint(tmp_path / "without")))


def test_without_the_key_the_files_tell_whether_the_head_is_tied(tmp_path: Path) -> None:
    head = np.ones((16, VOCABULARY), np.float32)
    tied = logits(write_checkpoint(tmp_path / "tied", tie_word_embeddings=None))
    np.testing.assert_array_equal(tied, logits(write_checkpoint(tmp_path / "said")))
    untied = logits(write_checkpoint(tmp_path / "untied", {**WHOLE, "lm_head.weight": head}, tie_word_embeddings=None))
    assert np.ptp(untied) == 0.0


def test_rotary_buffers_of_old_exporters_are_ignored(tmp_path: Path) -> None:
    extra = {**WHOLE, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    np.testing.assert_array_equal(logits(write_checkpoint(tmp_path / "a", extra)), logits(write_checkpoint(tmp_path / "b")))


def test_float32_weights_are_taken_with_all_their_bits(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path)
    write_tensors(directory / "model.safetensors", WHOLE, dtype="F32")
    config = read_config(directory)
    np.testing.assert_array_equal(load_weights(directory, config, threads=1).embedding, WHOLE["ernie.embed_tokens.weight"])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    index = {"weight_map": {"ernie.norm.weight": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors: got no such file, expected a shard named in" in refusal(tmp_path)


def test_an_index_without_a_map_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "weight_map: got NoneType, expected tensor -> file" in refusal(tmp_path)


def test_an_index_cannot_point_outside_the_directory(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "inside")
    write_tensors(tmp_path / "outside.safetensors", WHOLE)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    assert f"{directory / 'outside.safetensors'}: got no such file" in refusal(directory)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "model_state.pdparams").touch()
    assert "model_state.pdparams: got a .pdparams file" in refusal(tmp_path)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "model.safetensors").unlink()
    assert "got no *.safetensors file" in refusal(tmp_path)


def test_an_unreadable_weights_file_is_refused(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path) / "model.safetensors"
    file.unlink()
    file.mkdir()
    assert "model.safetensors: got Is a directory" in refusal(tmp_path)


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    assert "got no tokenizer, expected tokenizer.model or tokenizer.json" in refusal(write_checkpoint(tmp_path, tokenizer=False))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    line = refusal(write_checkpoint(tmp_path, vocab_size=VOCABULARY - 1))
    assert f"tokenizer: got {VOCABULARY} tokens, expected at most vocab_size of config.json ({VOCABULARY - 1})" in line


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_end_of_sequence_outside_the_vocabulary_is_refused(tmp_path: Path, file: str) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | {"eos_token_id": [2, 1 << 40]}))
    expected = f"{file}: eos_token_id: got [2, 1099511627776], expected token ids below vocab_size of config.json ({VOCABULARY})"
    assert expected in refusal(tmp_path)


def test_more_context_than_the_model_has_is_refused(tmp_path: Path) -> None:
    line = refusal(write_checkpoint(tmp_path), max_model_len=4097)
    assert line.startswith("--max-model-len: got 4097, expected at most max_position_embeddings of config.json (4096)")


def test_a_model_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "model.safetensors").write_bytes(b"")
    line = refusal(tmp_path, memory=100_000)
    assert "0.00 billion weights" in line
    assert "of memory that are free" in line


def test_loading_with_several_threads_gives_the_same_weights() -> None:
    config = read_config(DEMO)
    one, four = load_weights(DEMO, config, threads=1), load_weights(DEMO, config, threads=4)
    np.testing.assert_array_equal(one.layers[3].gate_up.weight, four.layers[3].gate_up.weight)
    np.testing.assert_array_equal(one.embedding, four.embedding)
