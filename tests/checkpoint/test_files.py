"""What belongs to a checkpoint, and that no missing or shortened part of it goes unnoticed."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint.files import damage, tensors, wanted, weight_files
from tests.checkpoint.checkpoints import write_checkpoint, write_safetensors

ERNIE = ["README.md", ".gitattributes", "config.json", "tokenizer.model", "tokenizer_config.json", "model.safetensors.index.json"]
ERNIE += ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "mtp/config.json", "mtp/model.safetensors", "a.png"]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (ERNIE, [name for name in ERNIE if name not in {"README.md", ".gitattributes", "a.png"}]),
        (["config.json", "model.safetensors", "pytorch_model.bin", "model_state.pdparams"], ["config.json", "model.safetensors"]),
        (["config.json", "model_state.pdparams", "pytorch_model.bin"], ["config.json", "model_state.pdparams"]),
        (["config.json", "pytorch_model.bin", "training_args.bin", "tf_model.h5"], ["config.json", "pytorch_model.bin"]),
        (
            ["pytorch_model.bin.index.json", "model.safetensors.index.json", "model.safetensors"],
            ["model.safetensors.index.json", "model.safetensors"],
        ),
        (
            ["config.json", "consolidated.safetensors", "consolidated.safetensors.index.json", "m.safetensors"],
            ["config.json", "m.safetensors"],
        ),
        (["consolidated.safetensors"], ["consolidated.safetensors"]),
        (["config.json", "original/config.json", "original/model.safetensors", "metal/model.bin"], ["config.json"]),
        (["config.json", "onnx/config.json", "onnx/model.onnx", "figures/a.json", "model-q4.gguf"], ["config.json"]),
    ],
)
def test_one_format_of_the_weights_and_the_small_files_are_wanted(listed: list[str], expected: list[str]) -> None:
    assert wanted(listed) == expected


NAMES = st.sampled_from(
    "config.json model.safetensors a.safetensors consolidated.safetensors m.pdparams pytorch_model.bin x.bin t.json README.md "
    "model.safetensors.index.json pytorch_model.bin.index.json chat_template.jinja flax_model.msgpack".split()
)
PATHS = st.lists(st.tuples(st.sampled_from(["", "mtp/", "original/", "onnx/"]), NAMES).map("".join), unique=True)


@given(PATHS)
def test_wanted_is_a_choice_in_order_that_no_second_look_changes_and_never_two_formats(paths: list[str]) -> None:
    """ "Only the files an engine needs, and no second format"."""
    chosen = wanted(paths)
    assert chosen == [path for path in paths if path in set(chosen)]
    assert wanted(chosen) == chosen
    for folder in {PurePosixPath(path).parent for path in chosen}:
        kinds = {PurePosixPath(path).suffix for path in chosen if PurePosixPath(path).parent == folder}
        assert len(kinds & {".safetensors", ".pdparams", ".bin"}) <= 1


@given(shards=st.integers(1, 5), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_shortened_or_missing_file_is_always_found_by_name(
    tmp_path_factory: pytest.TempPathFactory, shards: int, data: st.DataObject
) -> None:
    """ "A partial download is never taken for a whole one: check every shard named by the index, and sizes"."""
    directory = write_checkpoint(tmp_path_factory.mktemp("law") / "model", shards=shards, rows=5)
    assert damage(directory) == []
    # The tokenizer is the engine's to check: which one a model needs is its own matter.
    victim = data.draw(st.sampled_from(sorted(path.name for path in directory.iterdir() if path.name != "tokenizer.json")))
    path = directory / victim
    keep = data.draw(st.one_of(st.none(), st.integers(0, path.stat().st_size - 1)))
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep])
    found = damage(directory)
    shutil.rmtree(directory)
    if victim == "model.safetensors.index.json" and keep is None:
        # The numbering of the shards still tells how many there are, and they are all there.
        assert found == []
    elif victim == "model.safetensors" and keep is None:
        assert found == ["no weights: expected *.safetensors, *.pdparams or pytorch_model*.bin"]
    else:
        assert any(problem.startswith(victim) for problem in found), found


def test_the_numbering_tells_of_shards_that_an_absent_index_cannot(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, shards=3)
    (directory / "model.safetensors.index.json").unlink()
    (directory / "model-00002-of-00003.safetensors").unlink()
    assert damage(directory) == ["model-00002-of-00003.safetensors: missing"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer in the file's place: run `git lfs pull`"),
        ("model.safetensors", b"\xff" * 100, "model.safetensors: not a safetensors file"),
        ("model.safetensors", b"\x02" + bytes(7) + b"[]", "model.safetensors: its safetensors header is damaged"),
        ("model.safetensors", b"\x07" + bytes(7) + b'{"a":1}', "model.safetensors: its safetensors header is damaged"),
        ("pytorch_model.bin", b"", "pytorch_model.bin: empty"),
        ("config.json", b"[]", "config.json: list, expected a JSON object"),
        ("config.json", b"{", "config.json: not JSON"),
        ("model.safetensors.index.json", b"{}", "model.safetensors.index.json: holds no weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 1}}', "model.safetensors.index.json: holds no weight_map"),
    ],
)
def test_a_file_of_another_kind_is_named_and_told(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    assert any(expected in problem for problem in damage(tmp_path)), damage(tmp_path)


def test_a_directory_without_config_or_weights_says_both(tmp_path: Path) -> None:
    assert damage(tmp_path) == ["no weights: expected *.safetensors, *.pdparams or pytorch_model*.bin", "config.json: missing"]


def test_a_folder_in_the_place_of_a_file_is_damage_not_a_crash(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, shards=1)
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").mkdir()
    assert len(damage(directory)) == 1


def test_tensors_come_with_type_shape_and_size(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"x": ("BF16", [3, 4], 24), "scale": ("F32", [], 4)})
    first, second = tensors(tmp_path / "a.safetensors")
    assert (first.name, first.dtype, first.shape, first.size, first.elements) == ("x", "BF16", (3, 4), 24, 12)
    assert (second.shape, second.elements) == ((), 1)
    assert weight_files(tmp_path) == ["a.safetensors"]
