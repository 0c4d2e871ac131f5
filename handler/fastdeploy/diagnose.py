"""Recognise in the last words of FastDeploy why it failed, and say it in a sentence that tells the operator what to do.

The texts are those that PaddlePaddle, CUDA and FastDeploy print; the first row that matches anywhere wins, so the table goes from the
specific to the general. What is here is not tried again, so a port that somebody was quicker to take is not: every start gets others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["explain"]

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
    "the disk is full: give the container a larger disk": (r"No space left on device",),
    "the machine's main memory is too small for loading the model": (r"\bMemoryError\b", r"Cannot allocate memory", r"std::bad_alloc"),
    "FastDeploy's operators do not fit the installed PaddlePaddle: the image mixes versions, rebuild it from the lock": (
        r"undefined symbol",
        r"cannot import name '\w+' from 'fastdeploy\.model_executor\.ops",
        r"has no attribute 'append_attention'",
        r"(?:operator|op) [<`']?\w+[>`']? (?:is not registered|does not exist)",
    ),
    "QUANTIZATION names a method that this release or this model does not know": (r"Invalid quantization method",),
    "this release of FastDeploy does not serve the model's architecture: use a newer release or another model": (
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
    "FastDeploy did not find the model: check MODEL": (r"The master of .* is not exist", r"RepositoryNotFound"),
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
}
_COMPILED = tuple((cause, re.compile("|".join(patterns), re.IGNORECASE)) for cause, patterns in _CAUSES.items())


def explain(lines: Iterable[str]) -> str | None:
    """Return the cause that the lines show, or None when none is recognised."""
    text = "\n".join(lines)
    return next((cause for cause, pattern in _COMPILED if pattern.search(text)), None)
