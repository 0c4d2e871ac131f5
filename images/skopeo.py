"""Copy images with skopeo, which knows every registry's ways, the local Docker's, and the user's accounts."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from images.build_errors import Unreachable
from images.http_client import PAUSES, is_loopback

__all__ = ["copy"]

_HOPELESS = ("unauthorized", "authentication required", "denied", "no space left", "manifest unknown", "name unknown", "no such host")
"""Words of skopeo after which another try would end like the first."""

_LAST_WORDS = 1500


def copy(source: str, destination: str, *, folder: Path | None = None, options: Iterable[str] = ("--preserve-digests",)) -> None:
    """Copy an image with skopeo, whose names of places these are, unchanged; what a registry failed to do is tried again.

    `folder` is where relative names of places begin; other `options` allow what must be changed, as for a Docker.

    Raises:
        Unreachable: with skopeo's last words, after four tries or when another one is hopeless.
    """
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", *_plain_http(source, destination), *options, source, destination]
    for pause in (*PAUSES, None):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, errors="replace")
        except FileNotFoundError:
            raise Unreachable("skopeo: not found on this machine; install it (Debian: apt-get install skopeo)") from None
        if done.returncode == 0:
            return
        said = done.stderr.strip()[-_LAST_WORDS:]
        if pause is None or any(word in said for word in _HOPELESS):
            raise Unreachable(f"copying {source} to {destination}: {said}")
        time.sleep(pause)


def _plain_http(source: str, destination: str) -> list[str]:
    """Return the options that let skopeo speak plain HTTP, on loopback only, as Docker does."""
    ends = (("--src-tls-verify=false", source), ("--dest-tls-verify=false", destination))
    return [option for option, place in ends if place.startswith("docker://") and is_loopback(place)]
