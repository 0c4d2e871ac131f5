"""The user's accounts at registries, from the files in which `docker login` and `skopeo login` keep them.

An account is in such a file (base64 of name:password), or a credential helper has it, which the file names for one registry: the program
docker-credential-NAME, which reads the registry's name and answers {"Username": ..., "Secret": ...}
(https://github.com/docker/docker-credential-helpers). Not here: a helper for all registries (credsStore), since skopeo asks none.

A registry may send a client to a token server. A password goes there only over https (or on loopback), and only to the registry's own
domain or to a host that REGISTRY_TOKEN_SERVERS lists.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from checkpoint.http_client import is_loopback
from images.build_errors import BadSource
from images.digest import parse_json

__all__ = ["HUB", "HUB_API", "AuthFile"]

HUB = "docker.io"
"""Docker's own registry, by the name in references."""
HUB_API = "registry-1.docker.io"
"""The host that serves it."""

_HUB_HOSTS = (HUB, "index.docker.io", HUB_API)


@dataclass(frozen=True, slots=True)
class AuthFile:
    """The files of accounts, of which the first one that has a registry counts; they are read when an account is asked for."""

    paths: tuple[Path, ...] = ()
    token_servers: tuple[str, ...] = ()
    """Hosts that may get a password for any registry."""

    @classmethod
    def find(cls, environment: Mapping[str, str]) -> AuthFile:
        """Return the files where skopeo looks: the one that REGISTRY_AUTH_FILE names, or else the usual ones."""
        servers = tuple(environment.get("REGISTRY_TOKEN_SERVERS", "").replace(",", " ").split())
        if environment.get("REGISTRY_AUTH_FILE"):
            return cls((Path(environment["REGISTRY_AUTH_FILE"]),), servers)
        home = Path(environment.get("HOME", "/nonexistent"))
        runtime, docker = environment.get("XDG_RUNTIME_DIR"), environment.get("DOCKER_CONFIG")
        paths = (
            Path(runtime, "containers/auth.json") if runtime else Path(f"/run/containers/{os.getuid()}/auth.json"),
            home / ".config/containers/auth.json",
            Path(docker, "config.json") if docker else home / ".docker/config.json",
        )
        return cls(paths, servers)

    def basic(self, registry: str, repository: str = "") -> str:
        """Return the value of a basic Authorization header, empty where the user has no account.

        Raises:
            BadSource: when a file cannot be read, or the helper that it names for this registry fails.
        """
        found = next((value for path in self.paths if path.is_file() for value in _accounts(path, registry, repository) if value), "")
        return f"Basic {found}" if found else ""

    def may_have_password(self, registry: str, server: str) -> bool:
        """Return whether the token server at an address may get the password of an account at the registry."""
        parts = urlsplit(server)
        host, own = parts.hostname or "", urlsplit(f"//{HUB_API if registry == HUB else registry}").hostname or ""
        if is_loopback(server):
            return is_loopback(f"//{own}")
        return parts.scheme == "https" and (host in self.token_servers or _is_of_one_domain(host, own))


def _is_of_one_domain(host: str, registry: str) -> bool:
    """Return whether a host is the registry's own, its parent, below it, or beside it below the same parent.

    >>> _is_of_one_domain("auth.docker.io", "registry-1.docker.io"), _is_of_one_domain("gitlab.com", "registry.gitlab.com")
    (True, True)
    >>> _is_of_one_domain("evil.io", "ghcr.io"), _is_of_one_domain("evil.co.uk", "shop.co.uk")
    (False, False)
    """
    parent = registry.partition(".")[2]
    labels = parent.split(".")
    # A domain directly below a country's co, com or the like belongs to anyone, as one directly below io does.
    is_public = len(labels) < 2 or (len(labels) == 2 and len(labels[1]) == 2 and len(labels[0]) <= 3)
    return host == registry or host.endswith(f".{registry}") or (not is_public and (host == parent or host.endswith(f".{parent}")))


def _accounts(path: Path, registry: str, repository: str) -> Iterator[str]:
    """Yield what a file has for a repository, in base64: its registry's helper's answer, then its own accounts, the most specific first."""
    try:
        content: dict[str, Any] = parse_json(path.read_bytes())
        helpers = {_name(key): (key, str(helper)) for key, helper in (content.get("credHelpers") or {}).items()}
        written = {_name(key): str(entry.get("auth") or "") for key, entry in (content.get("auths") or {}).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BadSource(f"{path}: cannot be read as an auth file: {error}") from None
    if registry in helpers:
        key, helper = helpers[registry]
        yield _from_helper(f"docker-credential-{helper}", key, path)
    parts = [registry, *repository.split("/")]
    for end in range(len(parts), 0, -1):
        yield written.get("/".join(parts[:end]), "")


def _name(key: str) -> str:
    """Return the registry or repository that a key of an auth file means, or the key itself where it means neither.

    A key is a registry's name, one with a part of its repositories (containers-auth.json(5)), or the address of a registry's API.
    https://index.docker.io/v1/access-token and the like are none of these.
    """
    _, scheme, rest = key.rpartition("://")
    host, _, path = rest.partition("/")
    host = HUB if host in _HUB_HOSTS else host
    if path.strip("/") in ("", "v1", "v2"):
        return host
    return key if scheme else f"{host}/{path}"


def _from_helper(helper: str, registry: str, path: Path) -> str:
    """Return the account that a helper has, empty where it has none."""
    import subprocess  # slow to import beside a push of milliseconds, and few users have a helper

    try:
        done = subprocess.run([helper, "get"], input=registry, capture_output=True, text=True, check=False, timeout=60)
        answer = parse_json(done.stdout) if done.returncode == 0 else {}
        name, secret = answer.get("Username"), answer.get("Secret")
    except (OSError, ValueError, AttributeError, subprocess.TimeoutExpired) as error:
        raise BadSource(f"{path}: credHelpers: {registry}: {helper} fails ({error}); repair it, or remove it from the file") from None
    return base64.b64encode(f"{name}:{secret}".encode()).decode() if secret and name not in ("", "<token>") else ""
