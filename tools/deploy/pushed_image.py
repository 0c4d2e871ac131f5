"""Look an image up in its registry: its digest, and what it says it was built for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from images.auth import AuthFile
from images.build_errors import ImageError
from images.digest import Digest
from images.registry import ImageReference, RegistryRepository
from tools.deploy.outcomes import Refused

__all__ = ["Image", "look_up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image as its registry has it."""

    reference: str
    """What was asked for."""
    pinned: str
    """The same by digest, which is what endpoints are given: a tag may move, and RunPod's hosts keep what a tag once meant."""
    variables: Mapping[str, str]
    """The environment that it sets."""
    size: int
    """Bytes of its layers, as they are pulled."""

    @property
    def repository(self) -> str:
        """The last word of its repository's name."""
        return self.pinned.partition("@")[0].rpartition("/")[2]

    @property
    def cuda(self) -> str | None:
        """The CUDA version that it needs, or None where it does not say."""
        return self.variables.get("IMAGE_CUDA") or None


def look_up(text: str, environment: Mapping[str, str]) -> Image:
    """Return the image that `text` names, read with the credentials of the user's auth file.

    Raises:
        Refused: when no registry has it, or it is not one of this worker.
    """
    try:
        reference = ImageReference.parse(text)
        repository = RegistryRepository(reference, AuthFile.find(environment))
        manifest = repository.manifest("" if reference.digest else reference.tag or "latest", reference.digest)
        said = manifest.parsed()
        config = json.loads(repository.small_blob(Digest.parse(said["config"]["digest"])))
        layers = said["layers"]
    except ImageError as error:
        raise Refused(f"image: {text}: not to be had, so nothing was sent: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"image: {text}: its registry has something else under this name ({type(error).__name__}: {error})") from None
    pairs = [entry.partition("=")[::2] for entry in (config.get("config") or {}).get("Env") or []]
    platform = f"{config.get('os')}/{config.get('architecture')}"
    if platform != "linux/amd64":
        raise Refused(f"image: {text}: got an image for {platform}, expected linux/amd64, which is what RunPod's GPU hosts are")
    image = Image(
        reference=text,
        pinned=str(reference.at(manifest.digest)),
        variables=dict(pairs),
        size=sum(int(layer.get("size", 0)) for layer in layers),
    )
    if "IMAGE_ARCHITECTURES" not in image.variables and image.variables.get("ENGINE") != "cpu":
        raise Refused(f"image: {text}: it sets no IMAGE_ARCHITECTURES, expected an image of this worker (ci/just build-image)")
    return image
