"""What the RunPod Hub reads: .runpod/hub.json (the listing and its form) and .runpod/tests.json (what it runs after each release).

Fields are those of the Hub's publishing guide (docs.runpod.io/hub/publishing-guide); `ci/hub.schema.json` holds them as a schema. The Hub
builds one image for all its GPUs, so the listing offers the pools that the default release's own base covers, whole pools only.
"""

from __future__ import annotations

from typing import Any

from images.releases import GpuType, Target, read_gpus, read_releases
from tools.generate.form_fields import Field, fields
from tools.generate.presets import PRESETS, Preset
from tools.plan.fit import container_disk

__all__ = ["CUDA_VERSIONS", "covered_gpus", "hub", "image", "pools", "tests"]

CUDA_VERSIONS = ("12.6", "12.7", "12.8", "12.9", "13.0")
"""What RunPod lets an endpoint ask of its hosts, from the oldest CUDA of any image here; the field is a list of exact matches."""

_LONG = 20 * 60 * 1000
"""Milliseconds for the first test, which waits until the image is there, the model downloaded and loaded; the others find all that done."""


def image() -> Target:
    """Return the image that the Hub builds: the default release's own base."""
    releases = read_releases()
    return releases.target(releases.release(releases.default).prebuilt[0])


def pools(covers: tuple[str, ...]) -> list[str]:
    """Return the pools all of whose GPUs an image covers that covers these architectures, those with less memory first."""
    known = {gpu.pool: gpu for gpu in read_gpus() if gpu.pool}
    inside = {pool: {gpu.architecture for gpu in read_gpus() if gpu.pool == pool} for pool in known}
    return sorted((pool for pool in known if inside[pool] <= set(covers)), key=lambda pool: (known[pool].gib, list(known).index(pool)))


def covered_gpus(covers: tuple[str, ...]) -> list[GpuType]:
    """Return the GPUs of those pools."""
    return [gpu for pool in pools(covers) for gpu in read_gpus() if gpu.pool == pool]


def hub() -> dict[str, Any]:
    """Return hub.json."""
    target = image()
    return {
        "title": "FastDeploy",
        "description": "ERNIE-4.5, Qwen3 and other open-weights LLMs behind an OpenAI-compatible URL, served by PaddlePaddle's FastDeploy.",
        "type": "serverless",
        "category": "language",
        "config": {
            "runsOn": "GPU",
            "containerDiskInGb": container_disk(max(preset.download for preset in PRESETS) * 10**9),
            "gpuCount": 1,
            "gpuIds": ",".join(pools(target.covers)),
            "allowedCudaVersions": _allowed(target),
            "presets": [{"name": preset.name, "defaults": dict(preset.defaults)} for preset in PRESETS],
            "env": [{"key": field.name, "input": _input(field, PRESETS[0])} for field in fields()],
        },
    }


def tests() -> dict[str, Any]:
    """Return tests.json: the smallest model, asked through each shape of job."""
    target = image()
    return {
        "tests": [
            {"name": "chat", "input": {"openai_route": "/v1/chat/completions", "openai_input": _chat(16)}, "timeout": _LONG},
            {
                "name": "chat_stream",
                "input": {"openai_route": "/v1/chat/completions", "openai_input": _chat(16, stream=True)},
                "timeout": 60000,
            },
            {"name": "models", "input": {"openai_route": "/v1/models", "openai_input": {}}, "timeout": 60000},
            {
                "name": "native",
                "input": {"prompt": "One, two, three,", "sampling_params": {"max_tokens": 8, "temperature": 0}},
                "timeout": 60000,
            },
        ],
        "config": {
            "gpuTypeId": covered_gpus(target.covers)[0].name,
            "gpuCount": 1,
            "env": [{"key": name, "value": str(value)} for name, value in PRESETS[0].defaults.items()],
            "allowedCudaVersions": _allowed(target),
        },
    }


def _allowed(target: Target) -> list[str]:
    return list(reversed(CUDA_VERSIONS[CUDA_VERSIONS.index(target.cuda) :]))


def _chat(tokens: int, *, stream: bool = False) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": tokens, "temperature": 0}
    return body | {"stream": True} if stream else body


def _input(field: Field, default: Preset) -> dict[str, Any]:
    """Return a field as the Hub writes it; the default preset's model is the form's own."""
    kinds = {"model": "huggingface", "number": "number", "boolean": "boolean"}
    value = default.defaults["MODEL"] if field.kind == "model" else field.default
    parts: dict[str, Any] = {"name": field.title, "type": kinds.get(field.kind, "string"), "description": field.help}
    if field.options:
        parts["options"] = [{"label": option, "value": option} for option in field.options]
    bounds = {"min": field.minimum, "max": field.maximum}
    parts |= {name: bound for name, bound in bounds.items() if bound is not None}
    if value is not None:
        parts["default"] = value
    if field.kind == "boolean":
        parts |= {"trueValue": "true", "falseValue": "false"}
    flags = {"required": field.required, "advanced": field.advanced}
    return parts | {name: True for name, on in flags.items() if on}
