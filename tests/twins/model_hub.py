"""A loopback twin of the Hugging Face hub: it serves directories as repositories, by the part of the API that huggingface_hub 2.4 uses.

Routes, headers and error codes are those that the library asks for and understands; large files are answered with a redirect to a second
host name, as the hub answers with one to its content network, so that a client which carries its token there is seen. A client finds it
through HF_ENDPOINT, or an `endpoint` argument. Not here: uploads, Xet, pull requests, every kind of repository but models.

    with ModelHub() as hub:
        commit = hub.add("org/name", directory)
        subprocess.run([...], env=os.environ | hub.environment())
        assert hub.requests[0].status == 200
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PAGE = 50
"""Files on one page of a listing."""

_BLOCK = 1 << 16
_RANGE = re.compile(r"bytes=(\d+)-$")
_IN_GIT = 10 << 10
"""Files up to this size lie in git itself, as text files of the real hub do; larger ones are large-file storage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One answered request."""

    method: str
    path: str
    range: str = ""
    token: str = ""
    status: int
    sent: int = 0
    """Bytes of the body that were sent."""


@dataclass(slots=True, kw_only=True)
class Fault:
    """What befalls the next `times` transfers of a file's content."""

    times: int = 1
    status: int | None = None
    """Answer with this status instead."""
    drop_after: int | None = None
    """Close the connection after so many bytes of the body."""
    reset: bool = False
    """Close it the hard way, with a TCP reset."""
    bytes_per_second: int | None = None
    """Send no faster than this."""
    wrong: bool = False
    """Send as many bytes as there are, but zeros."""
    ignore_range: bool = False
    """Send the whole file although a part was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of a repository; `sha256` is empty where it lies in git."""

    path: Path
    size: int
    blob: str
    sha256: str


@dataclass(slots=True, kw_only=True)
class Repository:
    """Commits and what points to them; a gated repository shows its files and hands them to `allowed` tokens only."""

    gated: bool = False
    private: bool = False
    allowed: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> str | None:
        """Return the commit that a branch, tag or commit names."""
        return revision if revision in self.commits else self.revisions.get(revision)


class ModelHub:
    """The hub on a port of its own, answering in threads while it is entered.

    `tokens` are the ones it knows; `faults` befall contents by their path in the repository; `requests` holds what was answered.
    """

    def __init__(self, *, tokens: tuple[str, ...] = (), port: int = 0) -> None:
        self.tokens = set(tokens)
        self.repositories: dict[str, Repository] = {}
        self.faults: dict[str, Fault] = {}
        self.requests: list[Request] = []
        self.sending = threading.Event()
        """Set once the first byte of a large file has left."""
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.content_url = f"http://localhost:{self.port}"

    def __enter__(self) -> ModelHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """Return the variables that send huggingface_hub here."""
        return {"HF_ENDPOINT": self.url, "NO_PROXY": "127.0.0.1,localhost"}

    def add(self, name: str, directory: Path, *, revision: str = "main") -> str:
        """Let `revision` of a repository hold what the directory holds now, and return the commit."""
        files = {str(path.relative_to(directory)): _store(path) for path in sorted(directory.rglob("*")) if path.is_file()}
        commit = hashlib.sha1(repr([(path, file.blob) for path, file in files.items()]).encode()).hexdigest()  # noqa: S324  # as git does
        repository = self.repositories.setdefault(name, Repository())
        repository.commits[commit] = files
        repository.revisions[revision] = commit
        return commit

    def claim(self, name: str, path: str, size: int) -> None:
        """Say that a file is this long, whatever it is."""
        for files in self.repositories[name].commits.values():
            was = files[path]
            files[path] = StoredFile(path=was.path, size=size, blob=was.blob, sha256=was.sha256)

    def received(self, path: str) -> int:
        """Return how many bytes of a file were sent, over all requests."""
        return sum(request.sent for request in self.requests if request.path.endswith("/" + path))


def _store(path: Path) -> StoredFile:
    size = path.stat().st_size
    large, small = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)  # noqa: S324  # as git does
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            large.update(block)
            small.update(block)
    return StoredFile(path=path, size=size, blob=small.hexdigest(), sha256=large.hexdigest() if size > _IN_GIT else "")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: ModelHub

    def shutdown_request(self, request: Any) -> None:
        """Close without the farewell that would turn a reset into an orderly end."""
        self.close_request(request)

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients of this server are killed on purpose."""


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 30

    def log_message(self, *_: object) -> None:
        """Say nothing: `requests` has it all."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        self.sent = 0
        status = 0
        try:
            status = self._answer()
        except _Refusal as refusal:
            status = refusal.status
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._reply(status, json.dumps({"error": refusal.message}).encode(), {name: value for name, value in headers.items() if value})
        except OSError:
            self.close_connection = True
        finally:
            asked = {"range": self.headers.get("Range", ""), "token": self._token()}
            # The path as a reader knows it: without query, and for contents the path in the repository.
            with self.server.hub.lock:
                self.server.hub.requests.append(
                    Request(method=self.command, path=unquote(urlsplit(self.path).path), status=status, sent=self.sent, **asked)
                )

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _answer(self) -> int:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        match parts:
            case ["api", "models", organisation, name]:
                return self._info(f"{organisation}/{name}", "main")
            case ["api", "models", organisation, name, "revision", revision]:
                return self._info(f"{organisation}/{name}", revision)
            case ["api", "models", organisation, name, "tree", revision]:
                return self._tree(f"{organisation}/{name}", revision)
            case [organisation, name, "resolve", revision, *path]:
                return self._resolve(f"{organisation}/{name}", revision, "/".join(path))
            case ["content", organisation, name, commit, *path]:
                repository = self.server.hub.repositories[f"{organisation}/{name}"]
                return self._send(repository.commits[commit]["/".join(path)], "/".join(path), {})
        raise _Refusal(HTTPStatus.NOT_FOUND)

    def _repository(self, name: str, revision: str) -> tuple[Repository, str]:
        hub, token = self.server.hub, self._token()
        if token and token not in hub.tokens:
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "", "Invalid credentials in Authorization header")
        repository = hub.repositories.get(name)
        if repository is None or (repository.private and token not in repository.allowed):
            # The hub does not tell strangers whether a repository exists.
            if token:
                raise _Refusal(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "", "Invalid username or password.")
        commit = repository.find(revision)
        if commit is None:
            raise _Refusal(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def _info(self, name: str, revision: str) -> int:
        repository, commit = self._repository(name, revision)
        siblings = []
        for path, file in repository.commits[commit].items():
            about: dict[str, Any] = {"rfilename": path, "size": file.size, "blobId": file.blob}
            if file.sha256:
                about["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
            siblings.append(about)
        body = {"id": name, "sha": commit, "private": repository.private, "gated": "manual" if repository.gated else False}
        return self._reply(HTTPStatus.OK, json.dumps(body | {"siblings": siblings}).encode())

    def _tree(self, name: str, revision: str) -> int:
        repository, commit = self._repository(name, revision)
        query = dict(part.partition("=")[::2] for part in urlsplit(self.path).query.split("&"))
        first = int(query.get("cursor", 0))
        files = list(repository.commits[commit].items())
        page = []
        for path, file in files[first : first + PAGE]:
            about: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.blob}
            if file.sha256:
                about["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
            page.append(about)
        more = {}
        if first + PAGE < len(files):
            more["Link"] = f'<{self.server.hub.url}/api/models/{name}/tree/{commit}?recursive=True&cursor={first + PAGE}>; rel="next"'
        return self._reply(HTTPStatus.OK, json.dumps(page).encode(), more)

    def _resolve(self, name: str, revision: str, path: str) -> int:
        repository, commit = self._repository(name, revision)
        if repository.gated and self._token() not in repository.allowed:
            status = HTTPStatus.FORBIDDEN if self._token() else HTTPStatus.UNAUTHORIZED
            raise _Refusal(status, "GatedRepo", f"Access to model {name} is restricted.")
        file = repository.commits[commit].get(path)
        if file is None:
            raise _Refusal(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.sha256 or file.blob}"'}
        if not file.sha256:
            return self._send(file, path, headers)
        headers |= {"X-Linked-Etag": headers.pop("ETag"), "X-Linked-Size": str(file.size)}
        headers["Location"] = f"{self.server.hub.content_url}/content/{name}/{commit}/{path}"
        return self._reply(HTTPStatus.FOUND, b"", headers)

    def _send(self, file: StoredFile, path: str, headers: dict[str, str]) -> int:
        """Send a file, or what a fault makes of it; from the byte that Range names, if it does."""
        fault = self._fault(path) if self.command == "GET" else Fault()
        if fault.status:
            raise _Refusal(fault.status, "", "a fault")
        asked = _RANGE.match(self.headers.get("Range", ""))
        first = int(asked.group(1)) if asked and not fault.ignore_range else 0
        if first >= file.size > 0:
            raise _Refusal(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
        status = HTTPStatus.PARTIAL_CONTENT if first else HTTPStatus.OK
        self.send_response(status)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{file.size - 1}/{file.size}")
        for header, value in (headers | {"Content-Length": str(file.size - first), "Accept-Ranges": "bytes"}).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self._send_body(file, first, fault)
        return status

    def _send_body(self, file: StoredFile, first: int, fault: Fault) -> None:
        with file.path.open("rb") as opened:
            opened.seek(first)
            while block := opened.read(_BLOCK):
                if fault.drop_after is not None:
                    block = block[: fault.drop_after - self.sent]
                self.wfile.write(bytes(len(block)) if fault.wrong else block)
                self.sent += len(block)
                if file.sha256:
                    self.server.hub.sending.set()
                if fault.drop_after is not None and self.sent >= fault.drop_after:
                    if fault.reset:
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    return
                if fault.bytes_per_second:
                    time.sleep(len(block) / fault.bytes_per_second)

    def _fault(self, path: str) -> Fault:
        hub = self.server.hub
        with hub.lock:
            fault = hub.faults.get(path)
            if fault is None:
                return Fault()
            fault.times -= 1
            if not fault.times:
                del hub.faults[path]
            return fault

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> int:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.sent = len(body)
        return status
