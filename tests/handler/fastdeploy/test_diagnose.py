from __future__ import annotations

import pytest

from handler.fastdeploy.diagnose import explain


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("CUDA error(209), no kernel image is available for execution on the device.", "use the image built for it"),
        ("OSError: (External) CUDA error(803), system has unsupported display driver / cuda driver combination", "driver is too old"),
        ("RuntimeError: CUDA driver version is insufficient for CUDA runtime version", "driver is too old"),
        (
            "SystemError: (Fatal) Out of memory error on GPU 0. Cannot allocate 1.2GB memory on GPU 0, 23.5GB memory has been allocated",
            "QUANTIZATION=wint4",
        ),
        ("ResourceExhaustedError:", "TENSOR_PARALLEL_SIZE"),
        ("OSError: [Errno 28] No space left on device: '/dev/shm/psm_1'", "--shm-size"),
        ("OSError: [Errno 28] No space left on device: '/models/x'", "the disk is full"),
        ("Fatal Python error: Bus error", "--shm-size"),
        ("ImportError: cannot import name 'append_attention' from 'fastdeploy.model_executor.ops.gpu'", "rebuild it from the lock"),
        ("ImportError: /x/fastdeploy_ops_pd_.so: undefined symbol: _ZN6paddle", "rebuild it from the lock"),
        ("ValueError: Invalid quantization method: fp4", "QUANTIZATION names a method"),
        ("safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge", "weights file is damaged"),
        ("KeyError: 'ernie.layers.0.self_attn.qkv_proj.weight'", "FD_FOR_TORCH_MODEL_FORMAT=1"),
        ("Exception: The master of org/name is not exist", "check MODEL"),
        ("ncclUnhandledCudaError: Call to CUDA function failed", "cannot talk to each other"),
        ("OSError: (External) CUDA error(719), unspecified launch failure.", "the GPU reported an error"),
        ("MemoryError", "main memory is too small"),
    ],
)
def test_what_the_engines_logs_show_is_explained(line: str, words: str) -> None:
    found = explain(["INFO loading", line, "INFO exiting"])
    assert found is not None
    assert words in found


def test_ordinary_lines_have_no_cause() -> None:
    assert (
        explain(["Loading Weights: 100%", "Application startup complete.", "CUDNN_STATUS_SUCCESS", "Architecture: Qwen3ForCausalLM"])
        is None
    )
    assert explain([]) is None


def test_a_port_that_was_taken_is_no_cause_since_the_next_start_gets_others() -> None:
    assert explain(["OSError: [Errno 98] Address already in use"]) is None


def test_the_more_specific_cause_wins() -> None:
    lines = ["OSError: (External) CUDA error(2), out of memory", "OSError: (External) CUDA error(209), no kernel image is available"]
    assert "use the image built for it" in (explain(lines) or "")
