"""Accounts at registries: those that `docker login`, `skopeo login` and credential helpers keep (images/auth.py), and who sees them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ci.hosts.shared import Hosts
from images.auth import AuthFile
from images.build_errors import BadSource, Unreachable
from images.digest import Digest
from images.push import push
from images.registry import ImageReference, RegistryRepository
from tests.images.faulty import FaultyRegistry
from tests.images.small import base_of, small_image

pytestmark = pytest.mark.timeout(120)

ACCOUNT = ("somebody", "pass:word")
KNOWN = base64.b64encode(":".join(ACCOUNT).encode()).decode()
HELPER = """#!/bin/sh
# Keeps one account, for the registry that its folder names.
[ "$1" = get ] && [ "$(cat)" = "$(cat "$(dirname "$0")/registry")" ] || { echo "credentials not found in native keychain"; exit 1; }
echo '{"ServerURL": "x", "Username": "somebody", "Secret": "pass:word"}'
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's empty home; nothing of who runs this is looked at."""
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path


def keep(path: Path, **told: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told), encoding="utf-8")
    return path


def install_helper(folder: Path, name: str, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "registry").write_text(registry, encoding="utf-8")
    program = folder / f"docker-credential-{name}"
    program.write_text(HELPER, encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize("login", [["skopeo", "login", "--tls-verify=false"], ["docker", "login"]], ids=["skopeo", "docker"])
def test_whoever_has_logged_in_can_push(login: list[str], home: Path, hosts: Hosts, tmp_path: Path) -> None:
    image = small_image(base_of(hosts), tmp_path / "image", b"private")
    with FaultyRegistry(hosts.registry, account=ACCOUNT) as proxy:
        command = [*login, "--username", ACCOUNT[0], "--password-stdin", proxy.address]
        environment = {**os.environ, **hosts.docker.environment(), "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run")}
        environment.pop("DOCKER_CONFIG", None)
        subprocess.run(command, input=ACCOUNT[1], text=True, check=True, capture_output=True, env=environment)
        to = ImageReference.parse(f"{proxy.address}/test/{uuid.uuid4().hex[:12]}:latest")
        assert push(image, to) == image.digest


def test_who_has_no_account_is_told_what_the_registry_says(home: Path, hosts: Hosts, tmp_path: Path) -> None:
    image = small_image(base_of(hosts), tmp_path / "image", b"private")
    with FaultyRegistry(hosts.registry, account=ACCOUNT) as proxy, pytest.raises(Unreachable, match="unauthorized"):
        push(image, ImageReference.parse(f"{proxy.address}/test/nobody:latest"))


def test_a_credential_helper_is_asked(home: Path, hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyRegistry(hosts.registry, account=ACCOUNT) as proxy:
        to = ImageReference.parse(f"{proxy.address}/test/{uuid.uuid4().hex[:12]}:latest")
        install_helper(tmp_path / "bin", "mine", proxy.address, monkeypatch)
        keep(home / ".docker/config.json", credHelpers={proxy.address: "mine"})
        image = small_image(base_of(hosts), tmp_path / "image", b"private")
        assert push(image, to) == image.digest


def test_the_first_file_that_knows_a_registry_has_the_say(home: Path) -> None:
    keep(home / "run/containers/auth.json", auths={"first.example": {"auth": "Zmlyc3Q="}})
    keep(home / ".config/containers/auth.json", auths={"first.example": {"auth": "bm8="}, "https://second.example/v2": {"auth": "c2Vj"}})
    docker = keep(home / ".docker/config.json", auths={"https://index.docker.io/v1/": {"auth": "aHVi"}})
    found = AuthFile.find(os.environ)
    assert [found.basic(name) for name in ("first.example", "second.example", "docker.io", "other.example")] == [
        "Basic Zmlyc3Q=",
        "Basic c2Vj",
        "Basic aHVi",
        "",
    ]
    alone = AuthFile.find({**os.environ, "REGISTRY_AUTH_FILE": str(docker)})
    assert [alone.basic("first.example"), alone.basic("docker.io")] == ["", "Basic aHVi"]


def test_of_accounts_at_one_registry_the_most_special_one_is_taken(home: Path) -> None:
    """As containers-auth.json(5) has it; what `docker login` keeps beside an account, for itself, is none."""
    keep(
        home / ".docker/config.json",
        auths={
            "quay.io": {"auth": "YWxs"},
            "quay.io/orga": {"auth": "YQ=="},
            "quay.io/orgb": {"auth": "Yg=="},
            "quay.io/orgb/one": {"auth": "MQ=="},
            "https://index.docker.io/v1/": {"auth": "aHVi"},
            "https://index.docker.io/v1/access-token": {"auth": "YWNjZXNz"},
            "https://index.docker.io/v1/refresh-token": {"auth": "cmVmcmVzaA=="},
        },
    )
    found = AuthFile.find(os.environ)
    names = ("quay.io/orga/x", "quay.io/orgb/x", "quay.io/orgb/one", "quay.io/orgab/x", "docker.io/library/python")
    got = [base64.b64decode(found.basic(*name.split("/", 1)).partition(" ")[2]).decode() for name in names]
    assert got == ["a", "b", "1", "all", "hub"]


def test_where_skopeo_looks_first_when_nobody_has_a_session() -> None:
    """skopeo login writes there as root, who has no XDG_RUNTIME_DIR in most containers."""
    assert AuthFile.find({"HOME": "/home/x"}).paths[0] == Path(f"/run/containers/{os.getuid()}/auth.json")


def test_a_helper_that_knows_nothing_leaves_it_to_the_next_file(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_helper(tmp_path / "bin", "mine", "elsewhere.example", monkeypatch)
    keep(home / "run/containers/auth.json", credHelpers={"one.example": "mine"})
    keep(home / ".docker/config.json", auths={"one.example": {"auth": KNOWN}})
    found = AuthFile.find(os.environ)
    assert found.basic("one.example") == f"Basic {KNOWN}"


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        (
            {"credHelpers": {"one.example": "not-installed"}},
            r"config\.json: credHelpers: one\.example: docker-credential-not-installed fails",
        ),
        ({"auths": ["one.example"]}, r"config\.json: cannot be read as an auth file"),
        ({"auths": {"one.example": "word"}}, r"config\.json: cannot be read as an auth file"),
    ],
    ids=["a helper that is not there", "a list", "a word"],
)
def test_a_file_that_cannot_be_followed_is_named(told: dict[str, object], complaint: str, home: Path) -> None:
    keep(home / ".docker/config.json", **told)
    with pytest.raises(BadSource, match=complaint):
        AuthFile.find(os.environ).basic("one.example")


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\\xff"], ids=["deep", "cut short", "no JSON"])
def test_a_file_that_is_no_json_is_named(text: str, home: Path) -> None:
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").write_text(text)
    with pytest.raises(BadSource, match=r"config\.json: cannot be read as an auth file"):
        AuthFile.find(os.environ).basic("one.example")


def test_no_file_is_read_before_a_registry_asks_for_an_account(home: Path, hosts: Hosts) -> None:
    keep(home / ".docker/config.json", auths=["damaged"])
    base = ImageReference.parse(hosts.base)
    assert RegistryRepository(base, AuthFile.find(os.environ)).manifest(base.tag).data


def test_threads_that_are_refused_together_ask_for_one_token(home: Path, hosts: Hosts) -> None:
    keep(home / ".docker/config.json", auths={})
    with FaultyRegistry(hosts.registry, account=ACCOUNT) as proxy:
        keep(home / ".docker/config.json", auths={proxy.address: {"auth": KNOWN}})
        repository = RegistryRepository(ImageReference.parse(f"{proxy.address}/ci/base"), AuthFile.find(os.environ))
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda number: repository.has(Digest.of(b"%d" % number)), range(32))) == [False] * 32
        assert proxy.tokens == 1


def test_an_upload_never_goes_to_another_host(home: Path) -> None:
    """A registry may name any place for the body, and the user's secret would go there."""
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(202)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/there?x=1")  # type: ignore[attr-defined]
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_PUT(self) -> None:
            asked.append(self.path)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with pytest.raises(Unreachable, match=r"uploads go to http://localhost:\d+, expected http://127\.0\.0\.1:\d+"):
            RegistryRepository(ImageReference.parse(f"127.0.0.1:{server.server_port}/a/b")).put_blob(Digest.of(b"x"), b"x")
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []
