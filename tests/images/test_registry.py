"""A registry's answers: what is no manifest, what is no token, and where an account's password may go."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from checkpoint import http_client
from images.auth import AuthFile
from images.build_errors import BadSource, Unreachable
from images.digest import Digest
from images.registry import ImageReference, RegistryRepository
from tests.twins.scripted_server import ScriptedServer, served


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(http_client, "PAUSES", (0.0, 0.0, 0.0))


@pytest.mark.parametrize("length", ["1000", "4"])
def test_a_manifest_that_breaks_off_is_an_error_of_the_registry(length: str) -> None:
    kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json", "Content-Length": length}
    with served() as server:
        server.answers["/v2/a/b/manifests/x"] = (200, kind, b"{}")
        server.answers[f"/v2/a/b/blobs/{Digest.of(b'{}')}"] = (200, kind, b"{}")
        repository = RegistryRepository(ImageReference.parse(f"{server.url.removeprefix('http://')}/a/b"))
        with pytest.raises(Unreachable, match=f"manifest x: the answer broke off after 2 of {length} bytes; run the command again"):
            repository.manifest("x")
        with pytest.raises(Unreachable, match="broke off"):
            repository.small_blob(Digest.of(b"{}"))


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[]", b"{}"])
def test_what_gives_no_token_is_named(body: bytes) -> None:
    with served() as server:
        server.answers["/v2/a/b/manifests/x"] = (401, {"WWW-Authenticate": f'Bearer realm="{server.url}/token"'}, b"")
        server.answers["/token"] = (200, {}, body)
        with pytest.raises(Unreachable, match="/token: the answer holds no token; is this a registry's token server"):
            RegistryRepository(ImageReference.parse(f"{server.url.removeprefix('http://')}/a/b")).manifest("x")


ACCOUNT = base64.b64encode(b"somebody:pass:word").decode()


def accounts(folder: Path, *registries: str, servers: str = "") -> AuthFile:
    """Return the accounts of a user who is logged in at some registries."""
    path = folder / "auth.json"
    path.write_text(json.dumps({"auths": {name: {"auth": ACCOUNT} for name in registries}}))
    return AuthFile.find({"REGISTRY_AUTH_FILE": str(path), "REGISTRY_TOKEN_SERVERS": servers})


def repository_of(server: ScriptedServer, auth: AuthFile) -> RegistryRepository:
    return RegistryRepository(ImageReference.parse(f"{server.url.removeprefix('http://')}/a/b"), auth)


@pytest.mark.parametrize(
    "realm",
    ["http://token.evil.example/token", "https://token.evil.example/token", "http://127.evil.example/t", "http://127.0.0.1@evil.example/t"],
)
def test_a_registry_cannot_send_a_password_to_another_domain_or_in_clear_text(realm: str, tmp_path: Path) -> None:
    with served() as server:
        server.answers["/v2/a/b/manifests/x"] = (401, {"WWW-Authenticate": f'Bearer realm="{realm}?tenant=hidden",service="x"'}, b"")
        auth = accounts(tmp_path, server.url.removeprefix("http://"))
        with pytest.raises(Unreachable, match="gets no password; if you trust it, set REGISTRY_TOKEN_SERVERS=") as raised:
            repository_of(server, auth).manifest("x")
        assert [path for _, path, _ in server.asked] == ["/v2/a/b/manifests/x"]
    assert "pass:word" not in str(raised.value)
    assert "hidden" not in str(raised.value)


def test_a_token_server_gets_the_account_and_the_registry_the_token(tmp_path: Path) -> None:
    with served() as server:
        server.answers["/v2/a/b/manifests/x"] = (401, {"WWW-Authenticate": f'Bearer realm="{server.url}/token?a=1",scope="pull"'}, b"")
        server.answers["/token"] = (200, {}, b'{"access_token": "good"}')
        with pytest.raises(Unreachable, match="401"):
            repository_of(server, accounts(tmp_path, server.url.removeprefix("http://"))).manifest("x")
        assert server.asked == [
            ("GET", "/v2/a/b/manifests/x", None),
            ("GET", "/token?a=1&scope=pull", f"Basic {ACCOUNT}"),
            ("GET", "/v2/a/b/manifests/x", "Bearer good"),
        ]


@pytest.mark.parametrize(
    ("registry", "server", "allowed"),
    [
        ("docker.io", "https://auth.docker.io/token", True),
        ("ghcr.io", "https://ghcr.io/token", True),
        ("registry.gitlab.com", "https://gitlab.com/jwt/auth", True),
        ("registry.shop.co.uk", "https://auth.shop.co.uk/", True),
        ("quay.io", "https://quay.io/v2/auth", True),
        ("registry.example:5000", "https://registry.example:5001/token", True),
        ("ghcr.io", "http://ghcr.io/token", False),
        ("ghcr.io", "https://evil.io/token", False),
        ("docker.io", "https://docker.io.evil.example/token", False),
        ("shop.co.uk", "https://evil.co.uk/token", False),
        ("ghcr.io", "http://127.0.0.1/token", False),
        ("ghcr.io", "https://ghcr.io@evil.example/token", False),
        ("127.0.0.1:5000", "http://127.0.0.1:5001/token", True),
        ("ghcr.io", "https://tokens.example/token", True),
        ("ghcr.io", "http://tokens.example/token", False),
    ],
)
def test_a_password_goes_to_the_registrys_own_domain_over_https_and_to_hosts_that_the_user_lists(
    registry: str, server: str, allowed: bool, tmp_path: Path
) -> None:
    auth = accounts(tmp_path, registry, servers="other.example, tokens.example")
    assert auth.may_have_password(registry, server) == allowed


@pytest.mark.parametrize("document", [b"[" * 100_000, b"[]", b"not JSON"], ids=["deep", "a list", "text"])
def test_a_manifest_that_is_none_is_named(document: bytes) -> None:
    kind = {"Content-Type": "application/vnd.oci.image.index.v1+json", "Content-Length": str(len(document))}
    with served() as server:
        server.answers["/v2/a/b/manifests/x"] = (200, kind, document)
        with pytest.raises(BadSource, match="manifest sha256:"):
            repository_of(server, AuthFile()).manifest("x")
