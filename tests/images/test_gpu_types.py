"""The table of GPUs, and the names by which people call them."""

from __future__ import annotations

from pathlib import Path

import pytest

from images.build_errors import InvalidFile
from images.gpu_types import named, read_gpu_types

TYPES = read_gpu_types()


@pytest.mark.parametrize("gpu", TYPES, ids=lambda gpu: gpu.name)
def test_a_gpu_is_found_by_its_own_name_and_by_its_short_one_and_by_nothing_else(gpu: object) -> None:
    for text in (gpu.name, gpu.name.upper(), gpu.short, gpu.short.replace(" ", ""), gpu.short.replace(" ", "-").lower()):  # type: ignore[attr-defined]
        assert named(text, TYPES) == [gpu], text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("RTX4090", ["RTX 4090"]),
        ("4090", ["RTX 4090"]),
        ("GeForce RTX 4090", ["RTX 4090"]),
        ("A100", ["A100 PCIe", "A100 SXM"]),
        ("h100", ["H100 SXM", "H100 PCIe", "H100 NVL"]),
        ("H100 80GB", ["H100 SXM"]),
        ("H200", ["H200 SXM"]),
        ("A40", ["A40"]),
        ("L40", ["L40"]),
        ("4000 Ada", ["RTX 4000 Ada"]),
        ("RTX 4000", ["RTX 4000 Ada", "RTX 4000 Ada SFF"]),
        ("MI300X", ["MI300X"]),
        ("RTX", []),
        ("NVIDIA", []),
        ("", []),
        ("A10", []),
        ("80gb", []),
    ],
)
def test_a_gpu_is_named_as_people_name_it(text: str, found: list[str]) -> None:
    assert [gpu.short for gpu in named(text, TYPES)] == found


def test_a_short_name_means_one_gpu_only() -> None:
    names = ["".join(text.lower().split()) for gpu in TYPES for text in (gpu.name, gpu.short)]
    assert len(set(names)) == len(names)


def test_an_architecture_that_is_none_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "gpus.toml"
    file.write_text('[[gpus]]\nname = "X"\nshort = "Y"\npool = ""\narchitecture = "ampere"\ngib = 1\n')
    with pytest.raises(InvalidFile, match=r"gpus\[0\].architecture: got 'ampere', expected a name such as sm89"):
        read_gpu_types(file)
