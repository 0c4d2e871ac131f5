"""Ask a container registry for manifests and blobs; writing to one is skopeo's work (`push`).

The little of the distribution API that reading needs: the token dance (https://distribution.github.io/distribution/spec/auth/token/), the
user's own auth file, plain HTTP on loopback as Docker has it. Not here: credential helpers; `skopeo login` writes the file that is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from images.digest import Digest
from images.errors import BadSource, DigestMismatch, UnknownChoice
from images.web import Answer, Refused, ask, is_loopback

__all__ = ["AuthFile", "Manifest", "Reference", "Repository"]

_HUB = "docker.io"
_HUB_API = "registry-1.docker.io"
_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_IMAGES = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_LARGEST = 4 << 20
"""Bytes of a manifest that registries must take; a larger one is not fetched."""

_REFERENCE = re.compile(r"(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>\S+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The name of an image: registry/repository:tag@digest, of which tag or digest may be missing.

    >>> str(Reference.parse("python:3.11"))
    'docker.io/library/python:3.11'
    """

    registry: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return the reference that `text` writes, in Docker's way of leaving out its own registry.

        Raises:
            UnknownChoice: when it is none.
        """
        first, slash, rest = text.partition("/")
        named = slash and ("." in first or ":" in first or first == "localhost")
        found = _REFERENCE.fullmatch(rest if named else text)
        if not found:
            raise UnknownChoice(f"got {text!r}, expected the name of an image such as registry/repository:tag")
        repository = found["repository"]
        registry = first if named else _HUB
        if registry == _HUB and "/" not in repository:
            repository = f"library/{repository}"
        try:
            digest = Digest.parse(found["digest"]) if found["digest"] else None
        except ValueError as error:
            raise UnknownChoice(f"{text}: {error}") from None
        return cls(registry=registry, repository=repository, tag=found["tag"] or "", digest=digest)

    def at(self, digest: Digest) -> Reference:
        """Return the reference of a manifest in the same repository."""
        return replace(self, tag="", digest=digest)

    def tagged(self, tag: str) -> Reference:
        """Return the reference of a tag in the same repository."""
        return replace(self, tag=tag, digest=None)

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest as it was sent, byte for byte."""

    data: bytes
    media_type: str

    @property
    def digest(self) -> Digest:
        """Its name in the registry."""
        return Digest.of(self.data)

    def parsed(self) -> dict[str, Any]:
        """Return what it says."""
        value = json.loads(self.data)
        if not isinstance(value, dict):
            raise BadSource(f"manifest {self.digest}: got {type(value).__name__}, expected an object")
        return value


@dataclass(frozen=True, slots=True)
class AuthFile:
    """Registries and the user's names and passwords for them, as Docker and skopeo keep them (base64 of name:password)."""

    entries: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def find(cls, environment: Mapping[str, str]) -> AuthFile:
        """Return what the first file has that exists of those where skopeo looks."""
        home = Path(environment.get("HOME", "/nonexistent"))
        places = [
            *([Path(environment["REGISTRY_AUTH_FILE"])] if environment.get("REGISTRY_AUTH_FILE") else []),
            *([Path(environment["XDG_RUNTIME_DIR"], "containers/auth.json")] if environment.get("XDG_RUNTIME_DIR") else []),
            home / ".config/containers/auth.json",
            *([Path(environment["DOCKER_CONFIG"], "config.json")] if environment.get("DOCKER_CONFIG") else []),
            home / ".docker/config.json",
        ]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            return cls()
        try:
            auths = json.loads(path.read_text(encoding="utf-8")).get("auths", {})
            return cls({urlsplit(f"//{name.partition('://')[2] or name}").netloc: entry.get("auth", "") for name, entry in auths.items()})
        except (ValueError, AttributeError) as error:
            raise BadSource(f"{path}: cannot be read as an auth file: {error}") from None

    def basic(self, registry: str) -> str:
        """Return the value of a basic Authorization header, or nothing where the user has no account."""
        names = (registry, "index.docker.io", _HUB_API) if registry == _HUB else (registry,)
        found = next((self.entries[name] for name in names if self.entries.get(name)), "")
        return f"Basic {found}" if found else ""


class Repository:
    """One repository of a registry, read with the user's credentials where there are any."""

    def __init__(self, reference: Reference, auth: AuthFile | None = None) -> None:
        self.reference = reference
        host = _HUB_API if reference.registry == _HUB else reference.registry
        self._url = f"{'http' if is_loopback(f'//{host}') else 'https'}://{host}/v2/{reference.repository}"
        self._basic = (auth or AuthFile()).basic(reference.registry)
        self._authorization = ""

    def manifest(self, tag: str = "", digest: Digest | None = None) -> Manifest:
        """Return the manifest of a tag or digest; of an image for several platforms, that for linux/amd64.

        Raises:
            Unreachable: when the registry could not be asked, or has none.
            BadSource: when it is none, or not the one that was asked for.
        """
        answer = self._ask(f"manifests/{digest or tag}", accept=(*_IMAGES, *_INDEXES))
        with answer:
            data = answer.read(_LARGEST + 1)
            media_type = answer.headers.get_content_type()
        found = Manifest(data=data, media_type=media_type)
        what = f"{self.reference.name}: manifest {digest or tag}"
        if len(data) > _LARGEST:
            raise BadSource(f"{what}: more than {_LARGEST} bytes")
        if digest is not None and found.digest != digest:
            raise DigestMismatch(f"{what}: the registry sent {found.digest}; it may be broken or lie, use another")
        if media_type in _INDEXES:
            return self.manifest(digest=_for_amd64(found, what))
        if media_type not in _IMAGES:
            raise BadSource(f"{what}: got a manifest of type {media_type}, expected an image of Docker's or OCI's kind")
        return found

    def blob(self, digest: Digest, offset: int = 0) -> Answer:
        """Return a blob's content from `offset` on, unread and unchecked; the caller closes it. Status 200: from its beginning."""
        return self._ask(f"blobs/{digest}", offset=offset)

    def small_blob(self, digest: Digest) -> bytes:
        """Return the content of a small blob, such as an image's configuration, checked."""
        with self.blob(digest) as answer:
            data = answer.read(_LARGEST + 1)
        if Digest.of(data) != digest:
            raise DigestMismatch(f"{self.reference.name}: blob {digest}: the registry sent {Digest.of(data)}; use another")
        return data

    def size(self, digest: Digest) -> int | None:
        """Return a blob's size in bytes, or None where the repository has no such blob."""
        try:
            with self._ask(f"blobs/{digest}", method="HEAD") as answer:
                return int(answer.headers["Content-Length"])
        except Refused as refused:
            if refused.status == 404:
                return None
            raise

    def _ask(self, path: str, *, method: str = "GET", accept: tuple[str, ...] = (), offset: int = 0) -> Answer:
        url, headers = f"{self._url}/{path}", {"Accept": ", ".join(accept)} if accept else {}
        try:
            return ask(url, method=method, headers=headers, secret=self._secret(), offset=offset)
        except Refused as refused:
            if refused.status != 401 or not self._authorize(refused.challenge):
                raise
        return ask(url, method=method, headers=headers, secret=self._secret(), offset=offset)

    def _secret(self) -> dict[str, str]:
        return {"Authorization": self._authorization} if self._authorization else {}

    def _authorize(self, challenge: str) -> bool:
        """Answer a registry's challenge, once it has asked; tell whether there is a new answer."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            fresh = self._basic
        else:
            said = dict(re.findall(r'(\w+)="([^"]*)"', rest))
            if "realm" not in said:
                return False
            query = urlencode({key: said[key] for key in ("service", "scope") if key in said})
            secret = {"Authorization": self._basic} if self._basic else {}
            with ask(f"{said['realm']}?{query}", secret=secret) as answer:
                token = json.loads(answer.read(_LARGEST))
            fresh = f"Bearer {token.get('token') or token.get('access_token')}"
        changed = bool(fresh) and fresh != self._authorization
        self._authorization = fresh
        return changed


def _for_amd64(index: Manifest, what: str) -> Digest:
    platforms = []
    for entry in index.parsed().get("manifests", []):
        platform = entry.get("platform", {})
        platforms.append(f"{platform.get('os')}/{platform.get('architecture')}")
        if platforms[-1] == "linux/amd64":
            return Digest.parse(entry["digest"])
    raise BadSource(f"{what}: got an image for {', '.join(platforms) or 'no platform'}, expected one for linux/amd64")
