"""The user's accounts at registries, from the files in which `docker login` and `skopeo login` keep them.

An account is written into such a file (base64 of name:password), or kept by a credential helper that it names for one registry: the program
docker-credential-NAME, which reads the registry's name and answers {"Username": ..., "Secret": ...}
(https://github.com/docker/docker-credential-helpers). Not here: a helper for all registries (credsStore), since skopeo asks none.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from images.errors import BadSource

__all__ = ["HUB", "HUB_API", "AuthFile"]

HUB = "docker.io"
"""Docker's own registry, by the name that people give it."""
HUB_API = "registry-1.docker.io"
"""Where it answers."""

_HUB_NAMES = (HUB, "index.docker.io", HUB_API, "https://index.docker.io/v1/")


@dataclass(frozen=True, slots=True)
class AuthFile:
    """The files of accounts, the first of which that knows a registry has the say; none of them is read before one is asked for."""

    paths: tuple[Path, ...] = ()

    @classmethod
    def find(cls, environment: Mapping[str, str]) -> AuthFile:
        """Return the files where skopeo looks: the one that REGISTRY_AUTH_FILE names, or else the usual ones."""
        if environment.get("REGISTRY_AUTH_FILE"):
            return cls((Path(environment["REGISTRY_AUTH_FILE"]),))
        home = Path(environment.get("HOME", "/nonexistent"))
        runtime, docker = environment.get("XDG_RUNTIME_DIR"), environment.get("DOCKER_CONFIG")
        return cls(
            (
                Path(runtime, "containers/auth.json") if runtime else Path(f"/run/containers/{os.getuid()}/auth.json"),
                home / ".config/containers/auth.json",
                Path(docker, "config.json") if docker else home / ".docker/config.json",
            )
        )

    def basic(self, registry: str) -> str:
        """Return the value of a basic Authorization header, or nothing where the user has no account.

        Raises:
            BadSource: when a file, or the helper that it names for this registry, does not answer as it should.
        """
        names = _HUB_NAMES if registry == HUB else (registry,)
        found = next((value for path in self.paths if path.is_file() for value in _accounts(path, names) if value), "")
        return f"Basic {found}" if found else ""


def _accounts(path: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield what a file has for a registry of these names, in base64: its helper's word, then what is written."""
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        helpers = dict(told.get("credHelpers") or {})
        written = {_host(name): str(entry.get("auth") or "") for name, entry in (told.get("auths") or {}).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BadSource(f"{path}: cannot be read as an auth file: {error}") from None
    for name in names:
        if name in helpers:
            yield _asked(f"docker-credential-{helpers[name]}", name, path)
        yield written.get(_host(name), "")


def _host(name: str) -> str:
    return urlsplit(f"//{name.partition('://')[2] or name}").netloc


def _asked(helper: str, registry: str, path: Path) -> str:
    """Return what a helper says, nothing if it knows nothing."""
    import subprocess  # few have a helper, and an edit's push is a matter of milliseconds

    try:
        done = subprocess.run([helper, "get"], input=registry, capture_output=True, text=True, check=False, timeout=60)
        said = json.loads(done.stdout) if done.returncode == 0 else {}
        name, secret = said.get("Username"), said.get("Secret")
    except (OSError, ValueError, AttributeError, subprocess.TimeoutExpired) as error:
        raise BadSource(f"{path}: credHelpers: {registry}: {helper} cannot be asked ({error}); see to it, or take it out") from None
    return base64.b64encode(f"{name}:{secret}".encode()).decode() if secret and name not in ("", "<token>") else ""
