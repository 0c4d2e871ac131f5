"""An image as its registry has it: its digest, and what it was built for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from images.auth import AuthFile
from images.build_errors import ImageError
from images.digest import Digest
from images.registry import ImageReference, RegistryRepository
from tools.deploy.api_answers import BadAnswer, read_answer
from tools.deploy.deploy_errors import DeployRefused

__all__ = ["PushedImage", "look_up", "not_pushed"]


class _Descriptor(TypedDict):
    digest: str
    size: int


class _ImageManifest(TypedDict):
    config: _Descriptor
    layers: list[_Descriptor]


class _Execution(TypedDict, total=False):
    Env: list[str]


class _ImageConfig(TypedDict, total=False):
    os: str
    architecture: str
    config: _Execution


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedImage:
    """An image as its registry has it."""

    reference: str
    """What was asked for."""
    pinned: str
    """The same by digest, which is what endpoints get: a tag may move, and RunPod's hosts keep what a tag once meant."""
    variables: Mapping[str, str]
    """The environment that it sets."""
    size: int
    """Bytes of its layers, as they are pulled."""
    is_known: bool = True
    """Whether its registry has it; what it holds is not known otherwise."""

    @property
    def repository(self) -> str:
        """The last word of its repository's name."""
        return self.pinned.partition("@")[0].rpartition("/")[2]

    @property
    def cuda(self) -> str | None:
        """The CUDA version that it needs, or None where it does not say."""
        text = self.variables.get("IMAGE_CUDA", "")
        return text if re.fullmatch(r"\d{1,4}\.\d{1,4}", text) else None

    @property
    def is_cpu(self) -> bool:
        """Whether it holds the CPU engine, which needs no GPU."""
        return self.variables.get("ENGINE") == "cpu"


def look_up(text: str, environment: Mapping[str, str]) -> PushedImage:
    """Return the image that `text` names, read with the accounts in the user's auth file.

    Raises:
        DeployRefused: when no registry has it, or it is not one of this worker.
    """
    try:
        reference = ImageReference.parse(text)
        repository = RegistryRepository(reference, AuthFile.find(environment))
        manifest = repository.manifest("" if reference.digest else reference.tag or "latest", reference.digest)
        parsed = read_answer(_ImageManifest, manifest.parsed())
        config = read_answer(_ImageConfig, json.loads(repository.small_blob(Digest.parse(parsed["config"]["digest"]))))
    except ImageError as error:
        raise DeployRefused(f"image: {text}: cannot be read, so nothing was sent: {error}") from None
    except (BadAnswer, ValueError, RecursionError) as error:
        raise DeployRefused(f"image: {text}: its registry has something else under this name ({type(error).__name__}: {error})") from None
    platform = f"{config.get('os')}/{config.get('architecture')}"
    if platform != "linux/amd64":
        raise DeployRefused(f"image: {text}: got an image for {platform}, expected linux/amd64, which is what RunPod's hosts are")
    image = PushedImage(
        reference=text,
        pinned=str(reference.at(manifest.digest)),
        variables=dict(entry.partition("=")[::2] for entry in config.get("config", {}).get("Env", [])),
        size=sum(layer["size"] for layer in parsed["layers"]),
    )
    if "IMAGE_ARCHITECTURES" not in image.variables and not image.is_cpu:
        raise DeployRefused(f"image: {text}: it sets no IMAGE_ARCHITECTURES, expected an image of this worker (ci/just build-image)")
    return image


def not_pushed(text: str) -> PushedImage:
    """Return what a dry run shows of an image that is in no registry yet."""
    name = ImageReference.parse(text).name
    return PushedImage(reference=text, pinned=f"{name}@sha256:{'?' * 64}", variables={}, size=0, is_known=False)
