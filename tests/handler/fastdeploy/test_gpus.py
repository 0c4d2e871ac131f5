"""What nvidia-smi says, read; a shell script stands in its place, and says what the real one is known to say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import EngineFailedToStart
from handler.fastdeploy.gpus import Gpu, list_gpus, read_gpus

H100 = "0, NVIDIA H100 80GB HBM3, 9.0, 81559, 81079, 550.127.05, GPU-6b1dbe3a-0001-2222-3333-444455556666\n"
RTX = "1, NVIDIA GeForce RTX 4090, 8.9, 24564, 24111, 550.127.05, GPU-77f0ad11-0001-2222-3333-444455556666\n"
MIG = "0, NVIDIA A100-SXM4-80GB, 8.0, 81920, [N/A], 535.161.08, GPU-aaaa\n"


def smi(directory: Path, output: str, code: int = 0, error: str = "") -> str:
    """Return the path of a program that answers like this, and fails unless it is asked what nvidia-smi understands."""
    program = directory / "nvidia-smi"
    (directory / "out").write_text(output)
    (directory / "err").write_text(error)
    program.write_text(
        f"#!/bin/sh\ncase $1 in --query-gpu=*compute_cap*) ;; *) exit 99 ;; esac\n"
        f"cat {directory}/out\ncat {directory}/err >&2\nexit {code}\n"
    )
    program.chmod(0o755)
    return str(program)


def test_a_gpu_is_read_with_sizes_in_bytes(tmp_path: Path) -> None:
    first, second = list_gpus(smi(tmp_path, H100 + RTX))
    assert first == Gpu(
        index=0,
        name="NVIDIA H100 80GB HBM3",
        capability=90,
        memory_total=81559 << 20,
        memory_free=81079 << 20,
        uuid="GPU-6b1dbe3a-0001-2222-3333-444455556666",
        driver="550.127.05",
    )
    assert (second.index, second.capability) == (1, 89)


def test_what_the_driver_does_not_tell_is_none_and_capabilities_of_two_digits_are_read() -> None:
    assert read_gpus(MIG)[0].memory_free is None
    unknown = read_gpus(
        "3, NVIDIA B200, 10.0, [Insufficient Permissions], [Unknown Error], 570.1, GPU-b\n0, Old, [N/A], 1, 1, 470.1, GPU-c"
    )
    assert [(gpu.capability, gpu.memory_total) for gpu in unknown] == [(100, None), (None, 1 << 20)]


@pytest.mark.parametrize(
    ("output", "error", "code", "expected"),
    [
        (
            "",
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.54\n",
            18,
            "the host must be restarted",
        ),
        ("Failed to initialize NVML: Unknown Error\n", "", 255, "this container lost its access to the GPU"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure ...\n", "", 9, "driver is not loaded"),
        ("No devices were found\n", "", 6, "was given no GPU"),
        ("No devices were found\n", "", 0, "was given no GPU"),
        ("", "", 0, "was given none"),
        ("Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.  Reboot the system\n", "", 15, "fallen off the bus"),
        ('Field "compute_cap" is not a valid field to query.\n', "", 2, "older than any that CUDA 12 runs on"),
        ("", "CUDA Error 803: system has unsupported display driver / cuda driver combination\n", 1, "CUDA compatibility library"),
        ("", "", 4, "exit code 4: it said nothing"),
        ("0, a, b\n", "", 0, "expected a line of a GPU's 7 properties"),
    ],
)
def test_every_known_failure_ends_in_one_sentence_with_a_way_out(tmp_path: Path, output: str, error: str, code: int, expected: str) -> None:
    with pytest.raises(EngineFailedToStart, match=expected):
        list_gpus(smi(tmp_path, output, code, error))


def test_no_driver_at_all_and_a_program_that_cannot_run_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(EngineFailedToStart, match="is not there, so this container has no GPU driver"):
        list_gpus(str(tmp_path / "none"))
    (tmp_path / "text").write_text("not a program")
    with pytest.raises(EngineFailedToStart, match="does not answer"):
        list_gpus(str(tmp_path / "text"))


@pytest.mark.parametrize("error", [False, True])
def test_a_worn_gpu_works_and_its_warning_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, error: bool) -> None:
    warning = "WARNING: infoROM is corrupted at gpu 0000:1A:00.0\n"
    worn = smi(tmp_path, H100 + RTX, 14, warning) if error else smi(tmp_path, H100 + warning + RTX, 14)
    assert list_gpus(worn) == read_gpus(H100 + RTX)
    assert caplog.messages == [f"nvidia-smi: {warning.strip()}"]
    with pytest.raises(EngineFailedToStart, match="lists no GPU"):
        list_gpus(smi(tmp_path, warning, 14))


@given(st.text())
def test_any_text_gives_gpus_or_the_one_error(text: str) -> None:
    """ "Parsing is pure": nothing but EngineFailedToStart leaves it."""
    try:
        assert all(gpu.index >= 0 for gpu in read_gpus(text))
    except EngineFailedToStart as error:
        assert "nvidia-smi: got" in str(error)
