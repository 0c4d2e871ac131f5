"""Recognise in FastDeploy's output and logs that it has failed, and why, in a sentence that tells the operator what to do.

The texts are those that PaddlePaddle, CUDA, the driver and FastDeploy print; the first row that matches anywhere wins, so the specific
stand before the general. A start whose cause is known is not tried again: the table holds only what another try would meet again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

__all__ = ["MAIN_MEMORY", "explain", "fatal"]

MAIN_MEMORY = (
    "the container's main memory is too small: the kernel has ended a process for want of it (oom_kill); use a machine with more memory, "
    "or a smaller model"
)
"""The cause when the control group's count of such kills has risen: a killed process leaves no word of its own."""

_FATAL = re.compile(
    # FastDeploy 2.3 to 2.6, once its ranks are gone before they are ready; 2.3 and 2.4 may then wait for them for ever.
    r"Failed to launch worker processes"
    # paddle.distributed.launch, a second after a rank has ended, before or while it serves; FastDeploy may take half a minute more.
    r"|^launch_worker\.log: .*(?:Pod failed|Container failed !!!)"
)

_CAUSES: dict[str, tuple[str, ...]] = {
    "the image holds no kernels for this GPU's architecture: use the image built for it (sm80, sm86, sm89 or sm90)": (
        r"no kernel image is available",
        r"cudaErrorNoKernelImageForDevice",
        r"Unsupported (?:gpu|cuda) arch",
        r"Mismatched GPU Architecture",
    ),
    "the host's NVIDIA driver is too old for the image's CUDA: allow only hosts with that CUDA version or newer (allowedCudaVersions)": (
        r"CUDA driver version is insufficient",
        r"Error 803",
        r"system has unsupported display driver",
    ),
    "the host's NVIDIA driver was replaced while it ran, so that its parts do not fit each other: start on another worker": (
        r"Driver/library version mismatch",
    ),
    "this container has no NVIDIA driver: choose a GPU endpoint, or start it with --gpus all": (r"libcuda\.so(?:\.1)?: cannot open",),
    "the GPU's memory is damaged: start on another worker": (r"uncorrectable ECC",),
    "the GPU's memory is too small: use a larger GPU or more of them (TENSOR_PARALLEL_SIZE), quantise (QUANTIZATION=wint4), or lower "
    "MAX_MODEL_LEN, MAX_NUM_SEQS or GPU_MEMORY_UTILIZATION": (
        r"Out of memory error on GPU",
        r"CUDA out of memory",
        r"ResourceExhaustedError",
        r"cudaErrorMemoryAllocation",
        r"CUDA error\(2\)",
        r"CUBLAS_STATUS_ALLOC_FAILED",
    ),
    "no GPU memory is left for the KV cache: lower MAX_MODEL_LEN or MAX_NUM_SEQS, or raise GPU_MEMORY_UTILIZATION": (
        r"num_gpu_blocks.*(?:<= ?0|not enough)",
        r"No available memory for the cache blocks",
    ),
    "the container's shared memory (shm) is too small: start it with a larger one (--shm-size)": (
        r"Bus error",
        r"(?=.*/shm\b).*No space left on device",
        r"unable to (?:open|allocate) shared memory",
    ),
    "the disk is full: give the container a larger disk": (r"No space left on device", r"Disk quota exceeded"),
    "the machine's main memory is too small for loading the model": (r"\bMemoryError\b", r"Cannot allocate memory", r"std::bad_alloc"),
    "FastDeploy's operators do not fit the installed PaddlePaddle: the image mixes versions, rebuild it from the lock": (
        r"undefined symbol",
        r"cannot import name '\w+' from 'fastdeploy\.model_executor\.ops",
        r"has no attribute 'append_attention'",
        r"(?:operator|op) [<`']?\w+[>`']? (?:is not registered|does not exist)",
    ),
    "this release of FastDeploy does not read how the weights are quantized: use the unquantized model, with QUANTIZATION=wint4 or wint8": (
        r"Torch weight offline quantization only supports",
        r"modelopt only supports NVFP4",
        r"quantization_config should have a key named 'quantization'",
    ),
    "QUANTIZATION names a method that this release or this model does not know": (r"Invalid quantization method",),
    "this release of FastDeploy does not serve the model's architecture: use a newer release or another model": (
        r"does not support [`']--runner (?:generate|pooling)",
        r"Cannot find supported model",
        r"Architectures?\b.* (?:is|are) not supported",
        r"Cannot find model architecture",
        r"Unsupported (?:model )?architecture",
    ),
    "a weights file is damaged or incomplete: delete it, so that it is downloaded again, or bake the model again": (
        r"SafetensorError",
        r"HeaderTooLarge",
        r"MetadataIncompleteBuffer",
    ),
    "the checkpoint does not have the layout that FastDeploy expects: FD_FOR_TORCH_MODEL_FORMAT=1 makes it read the torch layout": (
        r"(?:KeyError|ValueError).*(?:\.weight|layers\.\d+)",
        r"shape mismatch",
        r"size mismatch",
    ),
    "the model's tokenizer has no tokens for thinking, which REASONING_PARSER looks for: leave it unset for a model that does not think": (
        r"could not (?:locate|find) think (?:start|end)\b",
    ),
    "REASONING_PARSER names a parser that this release does not have": (r"not found in reasoning_parsers",),
    "TOOL_CALL_PARSER names a parser that this release does not have": (r"not found in tool_parsers",),
    "FastDeploy did not find the model: check MODEL": (r"The \S+ of \S+ is not exist", r"RepositoryNotFound"),
    "the GPUs cannot talk to each other (NCCL): try TENSOR_PARALLEL_SIZE=1, or another host": (
        r"NCCL error",
        r"ncclUnhandledCudaError",
        r"ncclSystemError",
    ),
    "the GPU reported an error; if it comes again on another host, report it to FastDeploy": (
        r"CUDA error\(\d+\)",
        r"cudaError[A-Z]\w+",
        r"CUDNN_STATUS_(?!SUCCESS)\w+",
        r"an illegal memory access",
    ),
    "a package that the engine needs is missing from its interpreter: rebuild the image from the lock": (r"ModuleNotFoundError",),
}
_COMPILED = tuple((cause, re.compile("|".join(patterns), re.IGNORECASE)) for cause, patterns in _CAUSES.items())


def fatal(line: str) -> bool:
    """Return whether a line means that the engine has failed, whatever its processes do from then on."""
    return bool(_FATAL.search(line))


def explain(lines: Iterable[str], pinned: Collection[int] = ()) -> str | None:
    """Return the cause that the lines show, or None when none is recognised.

    A port that another program was quicker to take is one only if it is among those that the operator `pinned`: a new start gets others.
    """
    text = "\n".join(lines)
    named = [int(number) for line in text.splitlines() if "already in use" in line for number in re.findall(r"\d+", line)]
    if taken := set(named).intersection(pinned):
        return f"another process holds port {min(taken)}, which a variable pins: leave it unset, so that each start takes a free one"
    return next((cause for cause, pattern in _COMPILED if pattern.search(text)), None)
