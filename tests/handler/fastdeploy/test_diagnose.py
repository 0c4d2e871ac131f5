from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from handler.fastdeploy.diagnose import explain, fatal
from handler.fastdeploy.flags import RELEASES
from tests.handler.fastdeploy.starts import engine


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
        ("ValueError: This model does not support '--runner generate.", "does not serve the model's architecture"),
        ("ValueError: This model does not support `--runner pooling`. You can pass `--convert <embed>", "does not serve the model's"),
        ("ValueError: Cannot find supported model: ['LlamaForCausalLM']", "does not serve the model's architecture"),
        ("ValueError: Model architectures ['LlamaModel'] are not supported for now.", "does not serve the model's architecture"),
        ("RuntimeError: Qwen3  reasoning parser could not locate think end tokens in the tokenizer!", "REASONING_PARSER"),
        ("RuntimeError: Could not find think end token id in tokenizer vocabulary", "REASONING_PARSER"),
        ("KeyError: \"reasoning helper: 'deepseek-r1' not found in reasoning_parsers\"", "REASONING_PARSER names a parser"),
        ("KeyError: \"tool helper: 'hermes' not found in tool_parsers\"", "TOOL_CALL_PARSER names a parser"),
        ("ValueError: Torch weight offline quantization only supports block-wise FP8.", "use the unquantized model"),
        ("ValueError: modelopt only supports NVFP4 quantization.", "use the unquantized model"),
        ("ValueError: quantization_config should have a key named 'quantization' for specify quant config.", "use the unquantized model"),
        ("ModuleNotFoundError: No module named 'xgrammar'", "a package that the engine needs is missing"),
        ("OSError: [Errno 122] Disk quota exceeded: '/root/.cache/x'", "the disk is full"),
        ("ImportError: libcuda.so.1: cannot open shared object file: No such file or directory", "has no NVIDIA driver"),
        ("NVML: Driver/library version mismatch", "driver was replaced while it ran"),
        ("OSError: (External) CUDA error(214), uncorrectable ECC error encountered.", "the GPU's memory is damaged"),
        ("Exception: The v1.0 of org/name is not exist. Please check the model name or revision.", "check MODEL"),
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


TAKEN = (
    "AssertionError: Parameter `engine_worker_queue_port`:9000 is already in use.",
    "AssertionError: The parameter `engine_worker_queue_port`:['9000'] is already in use.",
    "Exception: The parameter `metrics_port`:9000 is already in use.",
)


@pytest.mark.parametrize("line", TAKEN)
def test_a_port_that_a_variable_pins_is_a_cause_when_it_is_taken_and_one_of_the_start_s_own_choice_is_none(line: str) -> None:
    """Rule: a hopeless cause is not tried again; a new start takes other ports, but not others than those that are pinned."""
    pinned = engine({"ENGINE_WORKER_QUEUE_PORT": "9000"})
    assert "another process holds port 9000, which a variable pins" in (pinned.explain(["INFO starting", line]) or "")
    assert engine().explain(["INFO starting", line]) is None


VERDICTS = (
    "ERROR    2025-11-10 08:51:51,102 77  engine.py[line:153] Failed to launch worker processes, check log/workerlog.* for more details.",
    "launch_worker.log: [2025-11-10 08:51:50,903] [    INFO] controller.py:114 - Pod failed",
    "launch_worker.log: [2025-11-10 08:51:50,904] [   ERROR] controller.py:116 - Container failed !!!",
)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("line", VERDICTS)
def test_the_lines_after_which_fastdeploy_never_serves_mean_its_end(line: str, release: str) -> None:
    """Rule: 2.3 and 2.4 wait for ever for ranks that have ended, and a dead rank is learned half a minute late while they serve."""
    assert engine(release=release).fatal(line)


@pytest.mark.parametrize("line", [
    "Waiting for worker processes to be ready...",
    "workerlog.0: [2025-11-10 08:51:50] Loading Weights: 100%",
    "workerlog.0: INFO a user asked: Pod failed, Container failed !!!",
    "launch_worker.log: [2025-11-10 08:51:50] [    INFO] Pod is ready",
    "ERROR a request failed",
    "",
])  # fmt: skip
def test_other_lines_end_nothing(line: str) -> None:
    assert not fatal(line)


def test_the_logs_that_are_followed_are_those_of_launchers_ranks_and_cache_managers_and_hold_no_prompts(tmp_path: Path) -> None:
    followed = ["launch_worker.log", "workerlog.0", "workerlog.7", "launch_cache_transfer_manager_0.log", "launch_cache_messager_3.log"]
    for name in [*followed, "api_server.log", "fastdeploy.log", "data_processor.log"]:
        (tmp_path / name).write_text("a line\n")
    lines = engine({"FD_LOG_DIR": str(tmp_path)}).log_files().lines()
    assert sorted(name for name, _ in lines) == sorted(followed)


def test_kills_of_the_kernel_for_want_of_memory_are_the_cause_whatever_the_lines_say() -> None:
    """Rule: a process that was killed leaves no word of its own; the control group counts such kills."""
    prepared = engine()
    assert prepared.explain(["KeyError: 'x'"]) is None
    killed = replace(prepared, oom_kills=prepared.oom_kills - 1)
    assert "the container's main memory is too small" in (killed.explain(["ncclSystemError"]) or "")
