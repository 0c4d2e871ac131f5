"""A model as far as a plan needs it: config.json, and the sizes of its files, from a directory, the hub, or counted from config.json."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checkpoint.config import read_config
from checkpoint.files import read_json, wanted
from checkpoint.hub import Hub, list_files
from checkpoint.unavailable import ModelUnavailable
from images.build_errors import nearest
from tools.generate.presets import PRESETS
from tools.plan.parameters import weights_of

__all__ = ["ModelSummary", "read_hosted", "read_model"]

_WEIGHTS = (".safetensors", ".pdparams", ".bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """`stored` are the bytes of its weights' files, `download` those of all that a worker fetches."""

    name: str
    config: Mapping[str, Any]
    stored: int
    download: int
    is_counted: bool = False
    """Whether the bytes were counted from config.json, since the files are not there."""
    is_hosted: bool = False
    """Whether `name` is a repository of the hub."""

    @property
    def quantized(self) -> bool:
        """Whether the files hold quantized weights, which stay as they are."""
        return bool(self.config.get("quantization_config"))

    @property
    def halves(self) -> int:
        """The bytes of its weights in 16 bits."""
        wide = "float32" in (self.config.get("torch_dtype"), self.config.get("dtype"))
        return self.stored // 2 if wide else self.stored


def read_model(name: str, place: Path, hub: Hub) -> ModelSummary:
    """Return the model in the directory `place`, or of the config.json there, or the repository `name` of the hub; no weight is read.

    Raises:
        ModelUnavailable: in one sentence: what is missing or wrong, and what to do.
    """
    if place.is_dir():
        return _from_directory(name, place)
    if place.is_file():
        return _from_config(name, place)
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise ModelUnavailable(
            f"model: got {name!r}, which is no directory and no config.json here, and no repository name of the form org/name{_like(name)}"
        )
    return read_hosted(name, hub)


def _from_directory(name: str, directory: Path) -> ModelSummary:
    try:
        config = read_config(directory)
    except ModelUnavailable as error:
        raise ModelUnavailable(f"model={name}: {error}: name the folder that holds a checkpoint") from None
    sizes = {str(path.relative_to(directory)): path.stat().st_size for path in sorted(directory.rglob("*")) if path.is_file()}
    return _model(name, config, {path: sizes[path] for path in wanted(sizes)})


def _from_config(name: str, file: Path) -> ModelSummary:
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"model={name}: cannot be read ({error}): expected the config.json of a checkpoint") from None
    wide = "float32" in (config.get("torch_dtype"), config.get("dtype"))
    stored = weights_of(config) * (2 if wide else 1)
    return ModelSummary(name=name, config=config, stored=stored, download=stored, is_counted=True)


def read_hosted(name: str, hub: Hub, revision: str = "") -> ModelSummary:
    """Return the model of the repository `name` of the hub at a revision, by default its main branch; no weight is read.

    Raises:
        ModelUnavailable: in one sentence: what is missing or wrong, and what to do.
    """
    try:
        listing = list_files(name, revision, hub)
    except ModelUnavailable as error:
        raise ModelUnavailable(f"{error}{_like(name) if _says_missing(error.__cause__) else ''}") from None
    # Not before: the library does not import with an address that is none, which `list_files` refuses.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    with tempfile.TemporaryDirectory() as folder:
        try:
            endpoint, token = hub.endpoint or None, hub.token or None
            path = hf_hub_download(name, "config.json", revision=listing.commit, local_dir=folder, endpoint=endpoint, token=token)
            config = read_config(Path(path).parent)
        except (HfHubHTTPError, ModelUnavailable, OSError) as error:
            raise ModelUnavailable(f"model={name}: config.json cannot be read ({error})") from None
    return replace(_model(name, config, {file.path: file.size for file in listing.files}), is_hosted=True)


def _says_missing(cause: BaseException | None) -> bool:
    """Tell whether the hub has answered that there is no such repository; one that cannot be reached says nothing about the name."""
    if cause is None:
        return False
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 404)


def _model(name: str, config: Mapping[str, Any], sizes: Mapping[str, int]) -> ModelSummary:
    stored = sum(size for path, size in sizes.items() if "/" not in path and path.endswith(_WEIGHTS))
    if not stored:
        raise ModelUnavailable(
            f"model={name}: no weights: expected files *.safetensors, *.pdparams or pytorch_model*.bin beside config.json"
        )
    return ModelSummary(name=name, config=config, stored=stored, download=sum(sizes.values()))


def _like(name: str) -> str:
    known = {str(preset.defaults["MODEL"]) for preset in PRESETS}
    return "" if name in known else nearest(name, sorted(known), closeness=0.8)
