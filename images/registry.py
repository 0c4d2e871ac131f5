"""A client of container registries: manifests, and blobs that are small or streamed. Large copies are skopeo's work (`skopeo`).

It has the part of the distribution API that the builder needs: tokens (https://distribution.github.io/distribution/spec/auth/token/), the
user's auth files and the credential helpers that they name, plain HTTP on loopback as Docker has it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from checkpoint.http_client import HttpError, NoAnswer, StatusError, ask, byte_range, is_loopback, read_body
from checkpoint.unavailable import masked
from images.auth import HUB, HUB_API, AuthFile
from images.build_errors import BadSource, DigestMismatch, Silent, UnknownChoice, Unreachable
from images.digest import Digest, parse_json

__all__ = ["ImageReference", "Manifest", "RegistryRepository", "unreachable_on_http_errors"]

_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_IMAGES = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_LARGEST = 4 << 20
"""Bytes of a manifest that every registry accepts; a larger one is refused."""

_REFERENCE = re.compile(r"(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>\S+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """The name of an image: registry/repository:tag@digest, where tag or digest may be missing.

    >>> str(Reference.parse("python:3.11"))
    'docker.io/library/python:3.11'
    """

    registry: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> ImageReference:
        """Return the reference that `text` writes, where a name without a registry is Docker's.

        Raises:
            UnknownChoice: when it is not a reference.
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

    def at(self, digest: Digest) -> ImageReference:
        """Return the reference of a manifest in the same repository."""
        return replace(self, tag="", digest=digest)

    def tagged(self, tag: str) -> ImageReference:
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
    """A manifest as the registry has it, byte for byte."""

    data: bytes
    media_type: str

    @property
    def digest(self) -> Digest:
        """Return the digest by which the registry knows it."""
        return Digest.of(self.data)

    def parsed(self) -> dict[str, Any]:
        """Return its content.

        Raises:
            BadSource: when it is not a JSON object.
        """
        try:
            value = parse_json(self.data)
        except ValueError as error:
            raise BadSource(f"manifest {self.digest}: cannot be read ({error})") from None
        if not isinstance(value, dict):
            raise BadSource(f"manifest {self.digest}: got {type(value).__name__}, expected a JSON object")
        return value


class RegistryRepository:
    """One repository of a registry, with the user's credentials where there are any; threads may share it."""

    def __init__(self, reference: ImageReference, auth: AuthFile | None = None) -> None:
        self.reference = reference
        host = HUB_API if reference.registry == HUB else reference.registry
        self._url = f"{'http' if is_loopback(f'//{host}') else 'https'}://{host}/v2/{reference.repository}"
        self._auth = auth or AuthFile()
        self._authorization = ""
        self._one_at_a_time = threading.Lock()

    def manifest(self, tag: str = "", digest: Digest | None = None) -> Manifest:
        """Return the manifest of a tag or digest; of an image for several platforms, the one for linux/amd64.

        Raises:
            Unreachable: when the registry does not answer, or has none.
            BadSource: when it is not the manifest of an image, or has another digest.
        """
        answer = self._ask(f"manifests/{digest or tag}", headers={"Accept": ", ".join((*_IMAGES, *_INDEXES))})
        what, media_type = f"{self.reference.name}: manifest {digest or tag}", answer.headers.get_content_type()
        with unreachable_on_http_errors():
            data = read_body(answer, _LARGEST, what)
        found = Manifest(data=data, media_type=media_type)
        if len(data) > _LARGEST:
            raise BadSource(f"{what}: more than {_LARGEST} bytes")
        if digest is not None and found.digest != digest:
            raise DigestMismatch(f"{what}: the registry sent {found.digest}; use another registry")
        if media_type in _INDEXES:
            return self.manifest(digest=_for_amd64(found, what))
        if media_type not in _IMAGES:
            raise BadSource(f"{what}: got a manifest of type {media_type}, expected Docker's or OCI's type of an image")
        return found

    def blob(self, digest: Digest, start: int = 0, end: int | None = None) -> HTTPResponse:
        """Return the response with a blob's bytes from `start` up to `end`, unread and unchecked; the caller closes it."""
        return self._ask(f"blobs/{digest}", headers=byte_range(start, end))

    def small_blob(self, digest: Digest) -> bytes:
        """Return the checked content of a small blob, such as an image's configuration."""
        with unreachable_on_http_errors():
            data = read_body(self.blob(digest), _LARGEST, f"{self.reference.name}: blob {digest}")
        if Digest.of(data) != digest:
            raise DigestMismatch(f"{self.reference.name}: blob {digest}: the registry sent {Digest.of(data)}; use another registry")
        return data

    def has(self, digest: Digest) -> bool:
        """Return whether the repository has a blob."""
        try:
            self._ask(f"blobs/{digest}", method="HEAD").close()
        except Unreachable as error:
            if error.status == 404:
                return False
            raise
        return True

    def put_blob(self, digest: Digest, data: bytes) -> None:
        """Send a small blob, in one piece.

        Raises:
            Unreachable: when the registry does not accept it.
        """
        with self._ask("blobs/uploads/", method="POST", data=b"") as answer:
            place = urlsplit(urljoin(f"{self._url}/", answer.headers.get("Location", "")))
        own = urlsplit(self._url)
        if (place.scheme, place.netloc) != (own.scheme, own.netloc):  # the user's secret stays with the registry
            raise Unreachable(f"{self.reference.name}: uploads go to {place.scheme}://{place.netloc}, expected {own.scheme}://{own.netloc}")
        url = place._replace(query=f"{place.query}{'&' if place.query else ''}{urlencode({'digest': str(digest)})}").geturl()
        self._ask(url, method="PUT", headers={"Content-Type": "application/octet-stream"}, data=data).close()

    def put_manifest(self, manifest: Manifest, tag: str = "") -> None:
        """Send a manifest, under its digest or a tag; all that it names must be there.

        Raises:
            Unreachable: when the registry does not accept it.
        """
        headers = {"Content-Type": manifest.media_type}
        self._ask(f"manifests/{tag or manifest.digest}", method="PUT", headers=headers, data=manifest.data).close()

    def _ask(self, path: str, **request: Any) -> HTTPResponse:
        """Send a request, and send it once more with the credentials that the registry asks for."""
        url, sent = urljoin(f"{self._url}/", path), self._authorization
        with self._advised(), unreachable_on_http_errors():
            try:
                return ask(url, secret=_secret(sent), **request)
            except StatusError as error:
                if error.status != 401:
                    raise
                with self._one_at_a_time:  # of several threads that get a 401, one asks for a token
                    if self._authorization == sent and not self._authorize(error.headers.get("WWW-Authenticate", "")):
                        raise
            return ask(url, secret=_secret(self._authorization), **request)

    @contextmanager
    def _advised(self) -> Iterator[None]:
        """Add what to do to the error of an account that the registry does not accept."""
        try:
            yield
        except Unreachable as error:
            if error.status not in (401, 403):
                raise
            raise Unreachable(f"{error}; log in with `skopeo login {self.reference.registry}`", error.status) from error

    def _authorize(self, challenge: str) -> bool:
        """Get the credentials that a registry's challenge asks for, and return whether they are new."""
        scheme, _, rest = challenge.partition(" ")
        fresh = self._auth.basic(self.reference.registry, self.reference.repository)
        if scheme.lower() != "basic":
            fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
            if "realm" not in fields:
                return False
            fresh = self._token(fields, fresh)
        changed = bool(fresh) and fresh != self._authorization
        self._authorization = fresh
        return changed

    def _token(self, challenge: Mapping[str, str], account: str) -> str:
        """Return the authorization that the token server of a challenge gives, with the user's account if there is one."""
        server = challenge["realm"]
        if account and not self._auth.may_have_password(self.reference.registry, server):
            registry, host = self.reference.registry, urlsplit(server).hostname
            raise Unreachable(
                f"{registry}: its token server {masked(server)} is of another domain, or not over https, so it gets no password; "
                f"if you trust it, set REGISTRY_TOKEN_SERVERS={host}, otherwise log out of {registry}"
            )
        query = urlencode({key: challenge[key] for key in ("service", "scope") if key in challenge})
        answer = ask(f"{server}{'&' if '?' in server else '?'}{query}", secret=_secret(account))
        try:
            token = parse_json(read_body(answer, _LARGEST, masked(server)))
            return f"Bearer {token.get('token') or token['access_token']}"
        except (ValueError, AttributeError, KeyError):
            raise Unreachable(f"{masked(server)}: the answer holds no token; is this a registry's token server?") from None


def _secret(authorization: str) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}


def _for_amd64(index: Manifest, what: str) -> Digest:
    try:
        entries = [(entry.get("platform") or {}, entry["digest"]) for entry in index.parsed()["manifests"]]
        digests = {f"{platform.get('os')}/{platform.get('architecture')}": Digest.parse(digest) for platform, digest in reversed(entries)}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadSource(f"{what}: not an index of images ({type(error).__name__}: {error})") from None
    if "linux/amd64" not in digests:
        raise BadSource(f"{what}: got an image for {', '.join(digests) or 'no platform'}, expected one for linux/amd64")
    return digests["linux/amd64"]


@contextmanager
def unreachable_on_http_errors() -> Iterator[None]:
    """Raise what the HTTP client raises as Unreachable."""
    try:
        yield
    except StatusError as error:
        raise Unreachable(str(error), error.status) from error
    except NoAnswer as error:
        raise Silent(str(error)) from error
    except HttpError as error:
        raise Unreachable(str(error)) from error
