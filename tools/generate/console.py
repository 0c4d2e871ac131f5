"""worker-config.json: the form of RunPod's console, which an earlier generation of workers is configured by.

Its shape is known from other workers' files only: versions, each with an image and headings over names, and one schema of all names.
"""

from __future__ import annotations

from typing import Any

from images.releases import Target, read_releases
from tools.generate.form_fields import Field, fields

__all__ = ["console", "image_name"]

_TYPES = {"number": "number", "boolean": "toggle", "choice": "select"}


def console() -> dict[str, Any]:
    """Return worker-config.json."""
    headings: dict[str, list[str]] = {}
    for field in fields():
        headings.setdefault(field.group, []).append(field.name)
    categories = [{"title": heading, "settings": names} for heading, names in headings.items()]
    versions = {}
    for target in read_releases().targets():
        if target.engine == "fastdeploy":
            version = {"imageName": image_name(target), "minimumCudaVersion": target.cuda, "categories": categories}
            versions[f"{target.release} CUDA {target.cuda} {'/'.join(target.covers)}"] = version
    return {"versions": versions, "schema": {field.name: _setting(field) for field in fields()}}


def image_name(target: Target) -> str:
    """Return the name of an image; the registry that it was pushed to stands before it."""
    return f"worker-fastdeploy:{target.release}-cuda{target.cuda}-{'-'.join(target.covers)}"


def _setting(field: Field) -> dict[str, Any]:
    setting = {
        "env_var_name": field.name,
        "value": "" if field.default is None else field.default,
        "title": field.title,
        "description": field.help,
        "required": field.required,
        "type": _TYPES.get(field.kind, "text"),
    }
    if field.options:
        setting["options"] = [{"value": option, "label": option} for option in field.options]
    return setting
