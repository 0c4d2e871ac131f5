"""Find the weights: a directory as it is, or a repository of the Hugging Face hub, downloaded once."""

from __future__ import annotations

import logging
from pathlib import Path

from handler.errors import ModelUnavailable
from handler.settings import ModelSettings

__all__ = ["find_model"]

log = logging.getLogger(__name__)

_WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
"""Only what an engine reads: no second format of the same weights."""


def find_model(model: ModelSettings) -> Path:
    """Return the directory that holds the checkpoint, after downloading it if MODEL names a repository.

    A download goes to the hub's own cache (HF_HOME), so that it is whole or absent and a second start needs no network.

    Raises:
        ModelUnavailable: when there is no such directory or repository, or the download fails.
    """
    directory = Path(model.source).expanduser()
    if directory.is_dir():
        return directory.resolve()
    if model.source.startswith(("/", ".", "~")) or model.source.count("/") != 1:
        raise ModelUnavailable(f"MODEL: got {model.source!r}, which is no directory here and no repository name of the form org/name")
    return _download(model)


def _download(model: ModelSettings) -> Path:
    # Imported here: it takes 0.3 s, and a local directory needs none of it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = f"MODEL={model.source}" + (f" at MODEL_REVISION={model.revision}" if model.revision else "")
    log.info("getting %s from the Hugging Face hub", wanted)
    try:
        return Path(
            snapshot_download(model.source, revision=model.revision or None, token=model.token.reveal() or None, allow_patterns=_WANTED)
        )
    except GatedRepoError:
        raise ModelUnavailable(f"{wanted}: the repository is gated; accept its terms on the hub and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise ModelUnavailable(f"{wanted}: no such repository, or it is private: check the name, or set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise ModelUnavailable(f"{wanted}: the repository has no such revision") from None
    except LocalEntryNotFoundError as error:
        raise ModelUnavailable(f"{wanted}: not in the local cache, and the hub cannot be reached ({error.__cause__ or error})") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelUnavailable(f"{wanted}: the download failed: {error}") from error
