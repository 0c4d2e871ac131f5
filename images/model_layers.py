"""A model as entries and layers: a Hugging Face cache at /models, and the settings with which the worker serves it.

    models/models--org--name/refs/REVISION             the commit, where a branch or a tag was asked for
    models/models--org--name/snapshots/COMMIT/PATH     the files, not links to blobs: each layer is then complete by itself
    local_model_args.json                              variables of the worker, which replace those of its environment

/models is not below /runpod-volume, which a mounted volume would hide. A large file is a layer of its own, so that a pull receives several
at once and a model that changes in part moves only in part; the small files share layers of about equal size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from images.build_errors import BadSource
from images.digest import canonical_json
from images.entries import LayerEntry, check_path, data_entry, file_entry, with_parents
from images.lock_entries import LockedModel, ModelFile

__all__ = ["FOLDER", "LARGE", "SETTINGS", "groups", "model_entries", "settings_entries"]

FOLDER = "models"
SETTINGS = "local_model_args.json"

LARGE = 1 << 30
"""Bytes from which a file is a layer of its own."""

_FULL = 4 << 30
"""Bytes of small files up to which they share one layer."""


def groups(model: LockedModel) -> list[tuple[ModelFile, ...]]:
    """Return the model's files by layer, each large file alone; a function of paths and sizes only."""
    if not any(file.path == "config.json" for file in model.files):
        raise BadSource(
            f"{model.repository} at {model.commit}: got no config.json among its {len(model.files)} files; expected a checkpoint"
        )
    large = [file for file in model.files if file.size >= LARGE]
    small = [file for file in model.files if file.size < LARGE]
    count = -(-sum(file.size for file in small) // _FULL) or 1
    shared: list[list[ModelFile]] = [[] for _ in range(count)]
    # The largest first, each to the smallest layer: no layer is then larger than another by more than one file.
    for file in sorted(small, key=lambda file: (-file.size, file.path.encode())):
        min(shared, key=lambda files: sum(other.size for other in files)).append(file)
    alone = [(file,) for file in sorted(large, key=lambda file: file.path.encode())]
    return [tuple(files) for files in shared if files] + alone


def model_entries(model: LockedModel, files: Iterable[ModelFile], find: Callable[[ModelFile], Path]) -> list[LayerEntry]:
    """Return the entries of some of the model's files; `find` returns the file on this disk that holds one.

    Raises:
        UnsafePath: for a path that leaves its folder.
    """
    snapshot = f"{_folder(model)}/snapshots/{model.commit}"
    name = f"{model.repository} at {model.commit[:12]}"
    entries = [file_entry(f"{snapshot}/{check_path(file.path, name)}", find(file), file.size, file.digest, name) for file in files]
    return with_parents(entries)


def settings_entries(model: LockedModel, quantization: str) -> list[LayerEntry]:
    """Return the entries with which the worker serves the model: its settings, and the branch or tag of the commit."""
    settings = {"MODEL": model.repository, "MODEL_REVISION": model.commit}
    if quantization:
        settings["QUANTIZATION"] = quantization
    entries = [data_entry(SETTINGS, canonical_json(settings) + b"\n")]
    if model.revision != model.commit:
        entries.append(data_entry(f"{_folder(model)}/refs/{model.revision}", model.commit.encode()))
    return with_parents(entries)


def _folder(model: LockedModel) -> str:
    return f"{FOLDER}/models--{model.repository.replace('/', '--')}"
