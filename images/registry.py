"""Ask a container registry for manifests and blobs, and give it small ones; what is large is skopeo's work (`skopeo`).

The little of the distribution API that this needs: the token dance (https://distribution.github.io/distribution/spec/auth/token/), the
user's own auth file and the credential helpers that it names, plain HTTP on loopback as Docker has it.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from images.auth import HUB, HUB_API, AuthFile
from images.build_errors import BadSource, DigestMismatch, UnknownChoice, Unreachable
from images.digest import Digest
from images.http_client import Answer, Refused, ask, is_loopback, read_body

__all__ = ["Manifest", "Reference", "Repository"]

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
        registry = first if named else HUB
        if registry == HUB and "/" not in repository:
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


class Repository:
    """One repository of a registry, asked with the user's credentials where there are any; threads may share it."""

    def __init__(self, reference: Reference, auth: AuthFile | None = None) -> None:
        self.reference = reference
        host = HUB_API if reference.registry == HUB else reference.registry
        self._url = f"{'http' if is_loopback(f'//{host}') else 'https'}://{host}/v2/{reference.repository}"
        self._auth = auth or AuthFile()
        self._authorization = ""
        self._one_at_a_time = threading.Lock()

    def manifest(self, tag: str = "", digest: Digest | None = None) -> Manifest:
        """Return the manifest of a tag or digest; of an image for several platforms, that for linux/amd64.

        Raises:
            Unreachable: when the registry could not be asked, or has none.
            BadSource: when it is none, or not the one that was asked for.
        """
        answer = self._ask(f"manifests/{digest or tag}", headers={"Accept": ", ".join((*_IMAGES, *_INDEXES))})
        what, media_type = f"{self.reference.name}: manifest {digest or tag}", answer.headers.get_content_type()
        data = read_body(answer, _LARGEST, what)
        found = Manifest(data=data, media_type=media_type)
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
        data = read_body(self.blob(digest), _LARGEST, f"{self.reference.name}: blob {digest}")
        if Digest.of(data) != digest:
            raise DigestMismatch(f"{self.reference.name}: blob {digest}: the registry sent {Digest.of(data)}; use another")
        return data

    def has(self, digest: Digest) -> bool:
        """Tell whether the repository has a blob."""
        try:
            self._ask(f"blobs/{digest}", method="HEAD").close()
        except Refused as refused:
            if refused.status == 404:
                return False
            raise
        return True

    def put_blob(self, digest: Digest, data: bytes) -> None:
        """Give the repository a small blob, in one piece.

        Raises:
            Unreachable: when the registry does not take it.
        """
        with self._ask("blobs/uploads/", method="POST", data=b"") as answer:
            place = urlsplit(urljoin(f"{self._url}/", answer.headers.get("Location", "")))
        own = urlsplit(self._url)
        if (place.scheme, place.netloc) != (own.scheme, own.netloc):  # the user's secret goes nowhere else
            raise Unreachable(f"{self.reference.name}: uploads go to {place.scheme}://{place.netloc}, expected {own.scheme}://{own.netloc}")
        url = place._replace(query=f"{place.query}{'&' if place.query else ''}{urlencode({'digest': str(digest)})}").geturl()
        self._ask(url, method="PUT", headers={"Content-Type": "application/octet-stream"}, data=data).close()

    def put_manifest(self, manifest: Manifest, tag: str = "") -> None:
        """Give the repository a manifest, under its digest or a tag; all that it names must be there.

        Raises:
            Unreachable: when the registry does not take it.
        """
        headers = {"Content-Type": manifest.media_type}
        self._ask(f"manifests/{tag or manifest.digest}", method="PUT", headers=headers, data=manifest.data).close()

    def _ask(self, path: str, **request: Any) -> Answer:
        """Ask as `ask` does, and once more with what the registry wants to see if it says so."""
        url, sent = urljoin(f"{self._url}/", path), self._authorization
        try:
            return ask(url, secret=_secret(sent), **request)
        except Refused as refused:
            if refused.status != 401:
                raise
            with self._one_at_a_time:  # of threads that were refused for the same reason, one asks for a token
                if self._authorization == sent and not self._authorize(refused.challenge):
                    raise
        return ask(url, secret=_secret(self._authorization), **request)

    def _authorize(self, challenge: str) -> bool:
        """Answer a registry's challenge, once it has asked; tell whether there is a new answer."""
        scheme, _, rest = challenge.partition(" ")
        fresh = self._auth.basic(self.reference.registry, self.reference.repository)
        if scheme.lower() != "basic":
            said = dict(re.findall(r'(\w+)="([^"]*)"', rest))
            if "realm" not in said:
                return False
            query = urlencode({key: said[key] for key in ("service", "scope") if key in said})
            answer = ask(f"{said['realm']}?{query}", secret=_secret(fresh))
            try:
                token = json.loads(read_body(answer, _LARGEST, said["realm"]))
                fresh = f"Bearer {token.get('token') or token['access_token']}"
            except (ValueError, AttributeError, KeyError):
                raise Unreachable(f"{said['realm']}: the server answered no token; is it a registry's?") from None
        changed = bool(fresh) and fresh != self._authorization
        self._authorization = fresh
        return changed


def _secret(authorization: str) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}


def _for_amd64(index: Manifest, what: str) -> Digest:
    platforms = []
    for entry in index.parsed().get("manifests", []):
        platform = entry.get("platform", {})
        platforms.append(f"{platform.get('os')}/{platform.get('architecture')}")
        if platforms[-1] == "linux/amd64":
            return Digest.parse(entry["digest"])
    raise BadSource(f"{what}: got an image for {', '.join(platforms) or 'no platform'}, expected one for linux/amd64")
