"""The user's accounts at registries, from the files in which `docker login` and `skopeo login` keep them.

An account is written into such a file (base64 of name:password), or kept by a credential helper that it names for one registry: the program
docker-credential-NAME, which reads the registry's name and answers {"Username": ..., "Secret": ...}
(https://github.com/docker/docker-credential-helpers). Not here: a helper for all registries (credsStore), since skopeo asks none.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.build_errors import BadSource

__all__ = ["HUB", "HUB_API", "AuthFile"]

HUB = "docker.io"
"""Docker's own registry, by the name that people give it."""
HUB_API = "registry-1.docker.io"
"""Where it answers."""

_HUB_HOSTS = (HUB, "index.docker.io", HUB_API)


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

    def basic(self, registry: str, repository: str = "") -> str:
        """Return the value of a basic Authorization header, or nothing where the user has no account.

        Raises:
            BadSource: when a file, or the helper that it names for this registry, does not answer as it should.
        """
        found = next((value for path in self.paths if path.is_file() for value in _accounts(path, registry, repository) if value), "")
        return f"Basic {found}" if found else ""


def _accounts(path: Path, registry: str, repository: str) -> Iterator[str]:
    """Yield what a file has for a repository, in base64: its registry's helper's word, then what is written, the most special first."""
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        helpers = {_name(key): (key, str(helper)) for key, helper in (told.get("credHelpers") or {}).items()}
        written = {_name(key): str(entry.get("auth") or "") for key, entry in (told.get("auths") or {}).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BadSource(f"{path}: cannot be read as an auth file: {error}") from None
    if registry in helpers:
        key, helper = helpers[registry]
        yield _asked(f"docker-credential-{helper}", key, path)
    parts = [registry, *repository.split("/")]
    for end in range(len(parts), 0, -1):
        yield written.get("/".join(parts[:end]), "")


def _name(key: str) -> str:
    """Return the registry or repository that a key of an auth file means; what is kept for another purpose has a name that none has.

    A key is a registry's name, one with a part of its repositories (containers-auth.json(5)), or the address of a registry's API, of which
    https://index.docker.io/v1/access-token and its like are none.
    """
    _, scheme, rest = key.rpartition("://")
    host, _, path = rest.partition("/")
    host = HUB if host in _HUB_HOSTS else host
    if path.strip("/") in ("", "v1", "v2"):
        return host
    return key if scheme else f"{host}/{path}"


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
