"""Hopeless starts are told before anything is loaded, with the way out; what is only estimated never stops a start."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.size import Load, Shape, cache_per_token, estimate, read_shape, weights_size
from handler.fastdeploy.gpus import Gpu, parse_architectures
from handler.fastdeploy.preflight import Demand, Disk, Host, look_at_host, preflight
from tests.checkpoint.checkpoints import CONFIG, write_checkpoint, write_safetensors

GIB = 1 << 30
GPU = Gpu(
    index=0, name="NVIDIA GeForce RTX 4090", capability=89, memory_total=24 * GIB, memory_free=23 * GIB, uuid="GPU-1", driver="550.54"
)
DEMAND = Demand(architectures=(86, 89), cuda="12.6", length=2048, batched=2048, requests=8)
HOST = Host(
    shm=Disk(path=Path("/dev/shm"), total=2 * GIB, free=2 * GIB),  # noqa: S108  # only named
    root=Disk(path=Path("/"), total=100 * GIB, free=50 * GIB),
)


def problems(demand: Demand = DEMAND, gpus: tuple[Gpu, ...] = (GPU,), host: Host = HOST, checkpoint: Path | None = None) -> list[str]:
    return preflight(demand, gpus, host, checkpoint).problems


def notes(demand: Demand = DEMAND, gpus: tuple[Gpu, ...] = (GPU,), host: Host = HOST, checkpoint: Path | None = None) -> list[str]:
    return preflight(demand, gpus, host, checkpoint).notes


def test_what_fits_gives_neither_problem_nor_note() -> None:
    found = preflight(DEMAND, (GPU,), HOST, None)
    assert (found.problems, found.notes) == ([], [])


def test_another_architecture_names_the_image_to_use() -> None:
    expected = "this image holds kernels for SM80/SM90; the GPU is an NVIDIA GeForce RTX 4090 (SM89): use the sm89 image"
    assert problems(dataclasses.replace(DEMAND, architectures=(80, 90))) == [expected]


@pytest.mark.parametrize(("name", "capability"), [("Tesla T4", 75), ("NVIDIA B200", 100), ("NVIDIA GeForce RTX 5090", 120)])
def test_a_gpu_that_no_image_serves_names_gpus_that_one_does(name: str, capability: int) -> None:
    gpu = dataclasses.replace(GPU, name=name, capability=capability)
    (problem,) = problems(gpus=(gpu,))
    assert f"{name} (SM{capability}): FastDeploy is not published for it: choose a GPU such as A100" in problem


def test_eight_equal_gpus_of_the_wrong_kind_are_one_problem_and_an_unknown_kind_is_a_note() -> None:
    demand = dataclasses.replace(DEMAND, architectures=(80,), parallel=8)
    assert len(problems(demand, tuple(dataclasses.replace(GPU, index=number) for number in range(8)))) == 1
    assert "does not tell the architecture" in notes(DEMAND, (dataclasses.replace(GPU, capability=None),))[0]
    assert problems(DEMAND, (dataclasses.replace(GPU, capability=None),)) == []


def test_an_image_that_says_nothing_is_not_checked() -> None:
    assert problems(dataclasses.replace(DEMAND, architectures=()), (dataclasses.replace(GPU, capability=75, driver="?"),)) == []


@pytest.mark.parametrize(
    ("cuda", "driver", "problem", "note"),
    [
        ("12.6", "470.82.01", "needs 525 or newer: choose hosts with CUDA 12 or newer", ""),
        ("13.0", "550.54", "needs 580 or newer", ""),
        ("12.6", "525.60.13", "", "asks for 535 or newer"),
        ("12.6", "580.1", "", ""),
        ("", "550.54", "", ""),
        ("12.6", "[N/A]", "", "could not be checked"),
    ],
)
def test_the_driver_is_held_against_the_images_cuda(cuda: str, driver: str, problem: str, note: str) -> None:
    found = preflight(dataclasses.replace(DEMAND, architectures=(), cuda=cuda), (dataclasses.replace(GPU, driver=driver),), HOST, None)
    assert (len(found.problems), len(found.notes)) == (bool(problem), bool(note))
    assert problem in "".join(found.problems)
    assert note in "".join(found.notes)


def test_weights_that_no_memory_holds_stop_the_start_and_a_busy_gpu_says_so(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=1, rows=40000)
    small = dataclasses.replace(GPU, memory_total=4 << 20, memory_free=4 << 20)
    (problem,) = problems(gpus=(small,), checkpoint=tmp_path)
    assert problem.startswith("the weights alone need 5 MB on GPU 0, an NVIDIA GeForce RTX 4090, and it has 4 MB: choose a larger GPU")
    assert "QUANTIZATION" in problem
    assert problems(dataclasses.replace(DEMAND, quantization="wint4"), (small,), checkpoint=tmp_path) == []
    assert problems(dataclasses.replace(DEMAND, parallel=2), (small, small), checkpoint=tmp_path) == []
    busy = dataclasses.replace(GPU, memory_free=1 << 20)
    assert "another process holds the rest" in problems(gpus=(busy,), checkpoint=tmp_path)[0]


def test_a_gpu_that_does_not_tell_its_memory_is_not_judged_by_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=1)
    silent = dataclasses.replace(GPU, memory_total=None, memory_free=None)
    found = preflight(DEMAND, (silent,), HOST, tmp_path)
    assert (found.problems, len(found.notes)) == ([], 1)
    partly = dataclasses.replace(GPU, memory_free=None)
    assert preflight(DEMAND, (partly,), HOST, tmp_path).problems == []


def test_an_estimate_is_printed_and_a_tight_one_only_noted(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    (story,) = notes(checkpoint=tmp_path)
    # 3 layers * 2 heads * 16 numbers * keys and values * 2 bytes = 384 bytes a token; 2048 tokens are the engine's own default.
    assert story.startswith("GPU memory, estimated: weights 77 kB, cache 384 B a token (786 kB for 2048 tokens), about 1.1 GB beside")
    tight = dataclasses.replace(GPU, memory_total=1 << 30, memory_free=1 << 30)
    found = preflight(dataclasses.replace(DEMAND, length=4096), (tight,), HOST, tmp_path)
    assert found.problems == []
    assert "GPU 0 may be too small" in found.notes[1]
    assert "lower MAX_MODEL_LEN" in found.notes[1]


def test_a_checkpoint_that_cannot_be_estimated_is_a_note(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=1)
    (tmp_path / "config.json").write_text("{}")
    assert "config.json does not tell the size of the cache" in notes(checkpoint=tmp_path)[0]
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "could not be estimated: model.safetensors: not a safetensors file" in notes(checkpoint=tmp_path)[0]


def test_shared_memory_and_disk_are_looked_at() -> None:
    assert "no /dev/shm" in problems(host=dataclasses.replace(HOST, shm=None))[0]
    full = dataclasses.replace(HOST, shm=Disk(path=Path("/dev/shm"), total=1, free=0))  # noqa: S108  # only named
    assert "is full" in problems(host=full)[0]
    little = dataclasses.replace(HOST, shm=Disk(path=Path("/dev/shm"), total=64 << 20, free=64 << 20))  # noqa: S108  # only named
    assert notes(host=little) == []
    assert "little for 2 GPUs" in notes(dataclasses.replace(DEMAND, parallel=2), (GPU, GPU), little)[0]
    for free, expected in ((GIB // 2, "may fill it"), (5 * GIB, "less than 10 % free")):
        assert expected in notes(host=dataclasses.replace(HOST, root=Disk(path=Path("/"), total=100 * GIB, free=free)))[0]
    here = look_at_host()
    assert here.root.total >= here.root.free > 0
    assert look_at_host(shm=Path("/nowhere")).shm is None


@pytest.mark.parametrize(
    ("text", "expected"), [("80,90", (80, 90)), ("sm_90 SM80", (80, 90)), ("8.9", (89,)), ("120,120", (120,)), ("", ())]
)
def test_architectures_are_read_however_they_are_written(text: str, expected: tuple[int, ...]) -> None:
    assert parse_architectures(text) == expected


@pytest.mark.parametrize("text", ["ampere", "8", "80;90", "-80"])
def test_architectures_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="compute capabilities"):
        parse_architectures(text)


SIZES = st.integers(1, 1 << 16)
SHAPES = st.builds(
    Shape, layers=SIZES, kv_heads=SIZES, head_dim=SIZES, hidden=SIZES, intermediate=SIZES, vocabulary=SIZES, latent=st.integers(0, 1000)
)
LOADS = st.builds(Load, length=SIZES, batched=SIZES, requests=SIZES, cache_bits=st.sampled_from([4, 8, 16]), parallel=st.integers(1, 8))


@given(weights=SIZES, shape=SHAPES, load=LOADS, more=st.integers(1, 1000))
def test_more_of_anything_never_needs_less_memory_and_more_gpus_never_need_more(weights: int, shape: Shape, load: Load, more: int) -> None:
    """The memory estimate is monotone in every argument."""
    before = estimate(weights, shape, load).total
    assert estimate(weights + more, shape, load).total >= before
    for name in ("layers", "kv_heads", "head_dim", "hidden", "intermediate", "vocabulary"):
        assert estimate(weights, dataclasses.replace(shape, **{name: getattr(shape, name) + more}), load).total >= before, name
    for name in ("length", "batched", "requests", "cache_bits"):
        assert estimate(weights, shape, dataclasses.replace(load, **{name: getattr(load, name) + more})).total >= before, name
    assert estimate(weights, shape, dataclasses.replace(load, parallel=load.parallel + more)).total <= before


DTYPES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "F8_E4M3": 1}
TENSORS = st.dictionaries(
    st.sampled_from(
        ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up.weight", "model.norm.weight", "a.bias", "b.weight"]
    ),
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(1, 9), min_size=1, max_size=3)),
    min_size=1,
)


@given(TENSORS)
def test_quantization_never_adds_and_never_falls_below_its_bits(
    tmp_path_factory: pytest.TempPathFactory, named: dict[str, tuple[str, list[int]]]
) -> None:
    """Weights by quantization: between a quarter (wint4 of 16 bits) and the whole of what they take without."""
    directory = tmp_path_factory.mktemp("law")
    sizes = {}
    for name, (dtype, shape) in named.items():
        elements = 1
        for extent in shape:
            elements *= extent
        sizes[name] = (dtype, shape, elements * DTYPES[dtype])
    write_safetensors(directory / "model.safetensors", sizes)
    plain, eight, four = (weights_size(directory, name) for name in ("", "wint8", "WINT4"))
    assert plain >= eight >= four >= plain // 4
    assert plain == weights_size(directory, "kvcache") == sum(size // 2 if dtype == "F32" else size for dtype, _, size in sizes.values())


def test_shapes_are_read_from_the_configurations_of_each_family(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert read_shape(tmp_path) is None
    path.write_text(json.dumps({"text_config": CONFIG, "vision_config": {}}))
    shape = read_shape(tmp_path)
    assert shape == Shape(layers=3, kv_heads=2, head_dim=16, hidden=64, intermediate=128, vocabulary=1000, positions=4096)
    assert cache_per_token(shape) == 384
    assert cache_per_token(shape, parallel=4) == 192, "a head is never split"
    old = {name: value for name, value in CONFIG.items() if name not in {"head_dim", "num_key_value_heads"}}
    path.write_text(json.dumps(old))
    shape = read_shape(tmp_path)
    assert shape is not None
    assert (shape.kv_heads, shape.head_dim) == (4, 16)
    path.write_text(json.dumps(CONFIG | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}))
    shape = read_shape(tmp_path)
    assert shape is not None
    assert cache_per_token(shape) == cache_per_token(shape, parallel=8) == 3 * 576 * 2
    for wrong in (CONFIG | {"hidden_size": "x"}, CONFIG | {"num_attention_heads": 0, "head_dim": None}, {"text_config": 5}):
        path.write_text(json.dumps(wrong))
        assert read_shape(tmp_path) is None


def test_weights_in_other_formats_count_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "model_state.pdparams").write_bytes(bytes(1000))
    assert weights_size(tmp_path, "wint8") == 1000


def test_sixty_shards_are_judged_in_well_under_a_second(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=60, rows=5)
    began = time.monotonic()
    preflight(DEMAND, (GPU,), HOST, tmp_path)
    assert time.monotonic() - began < 1
