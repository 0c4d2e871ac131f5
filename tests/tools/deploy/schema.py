"""What POST and PATCH of /v2/serverless take, as JSON schemas: the rules of the API's description that a deployment touches."""

from __future__ import annotations

from typing import Any

_TEXTS = {"type": "array", "items": {"type": "string"}}
_CUDA = r"^\d+\.\d+$"
_SCALING = {
    "oneOf": [
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["type", "queueDelay"],
            "properties": {"type": {"const": "QUEUE_DELAY"}, "queueDelay": {"type": "number", "minimum": 0.5}},
        },
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["type", "requestCount"],
            "properties": {"type": {"const": "REQUEST_COUNT"}, "requestCount": {"type": "integer", "minimum": 1}},
        },
    ]
}


def _gpu(floor: str) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "pools": {**_TEXTS, "minItems": 1},
            "excludedTypes": {"type": "array", "uniqueItems": True, "items": {"type": "string", "pattern": r"^\s*[^-\s]"}},
            "count": {"type": "integer", "minimum": 1},
            "allowedCudaVersions": {"type": "array", "items": {"type": "string", "pattern": _CUDA}},
            "minCudaVersion": {"type": "string", "pattern": floor},
        },
        "dependentRequired": {"excludedTypes": ["pools"]},
    }


_FIELDS: dict[str, Any] = {
    "name": {"type": "string", "minLength": 1},
    "image": {"type": "string"},
    "args": {"type": "string"},
    "disk": {"type": "integer", "minimum": 1},
    "env": {"type": "object", "additionalProperties": {"type": "string"}},
    "ports": {"type": "array", "items": {"type": "string", "pattern": r"^\d+/(http|tcp)$"}},
    "registry": {"type": ["string", "null"]},
    "scaling": _SCALING,
    "workers": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "min": {"type": "integer", "minimum": 0},
            "max": {"type": "integer", "minimum": 0},
            "idleTimeout": {"type": "integer", "minimum": 1, "maximum": 3600},
        },
    },
    "cpu": {
        "type": "array",
        "minItems": 1,
        "uniqueItems": True,
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["id", "vcpuCount"],
            "properties": {"id": {"type": "string", "minLength": 1}, "vcpuCount": {"enum": [2, 4, 8, 16, 32, 64]}},
        },
    },
    "timeout": {"type": "integer"},
    "flashboot": {"enum": ["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"]},
    "networkVolumes": _TEXTS,
    "dataCenterIds": _TEXTS,
}

CREATE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "type", "scaling", "image"],
    "oneOf": [{"required": ["gpu"]}, {"required": ["cpu"]}],
    "properties": {**_FIELDS, "type": {"enum": ["QUEUE", "LOAD_BALANCER"]}, "gpu": {**_gpu(_CUDA), "required": ["pools"]}},
    "allOf": [
        {
            "if": {"properties": {"type": {"const": "LOAD_BALANCER"}}},
            "then": {"properties": {"scaling": {"properties": {"type": {"const": "REQUEST_COUNT"}}}}},
        },
        {
            "if": {"properties": {"type": {"const": "QUEUE"}, "scaling": {"properties": {"type": {"const": "REQUEST_COUNT"}}}}},
            "then": {"properties": {"workers": {"not": {"required": ["idleTimeout"]}}}},
        },
    ],
}
"""Beyond types: a load balancer grows by requests, and a queue that does has no idle time."""

UPDATE: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": {**_FIELDS, "gpu": _gpu(r"^$|" + _CUDA)}}
"""The type of an endpoint is not among them."""
