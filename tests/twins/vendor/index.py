"""A wheel index on loopback: the folders of a directory as the pages of the simple repository API (PEP 503)."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from ci.hosts.base import PYTHON
from images.cache import Cache
from images.index import download_wheels, locked_requirements
from images.lock import read_lock
from tests import ROOT as _ROOT

__all__ = ["WheelIndex", "index_of_everything"]


class WheelIndex:
    """The index while it is entered; `root` has a folder per project, in pip's spelling (fastdeploy-gpu), with its wheels."""

    def __init__(self, root: Path) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.root = root
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/simple/"

    def __enter__(self) -> WheelIndex:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    root: Path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match unquote(self.path).strip("/").split("/"):
            case ["simple", project] if (self.server.root / project).is_dir():
                names = sorted(path.name for path in (self.server.root / project).iterdir())
                links = "".join(f'<a href="/files/{project}/{name}">{name}</a>\n' for name in names)
                self._reply(HTTPStatus.OK, f"<!DOCTYPE html><html><body>\n{links}</body></html>".encode(), "text/html")
            case ["files", project, name] if (self.server.root / project / name).is_file():
                self._reply(HTTPStatus.OK, (self.server.root / project / name).read_bytes(), "application/zip")
            case _:
                self._reply(HTTPStatus.NOT_FOUND, b"no such page\n", "text/plain")

    def _reply(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def index_of_everything(lock: Path, folder: Path) -> Iterator[str]:
    """Serve what the build asks its index for, from what was fetched before: the worker's packages, and the builder's own."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    for packages in read_lock(lock).packages:
        for file in packages.wheels:
            shutil.copyfile(Cache().path(file.digest), wheels / file.name)
    text = (_ROOT / "images" / "requirements.lock").read_text(encoding="utf-8")
    missing = [
        line for line in locked_requirements(text, PYTHON) if not list(wheels.glob(line.partition("==")[0].replace("-", "_") + "-*"))
    ]
    kept = _ROOT / "dist" / f"ci-wheels-{hashlib.sha256(repr(missing).encode()).hexdigest()[:12]}"
    if not kept.exists():
        half = folder / "half"
        half.mkdir()
        download_wheels(missing, half, PYTHON)
        shutil.move(half, kept)
    for path in [*wheels.iterdir(), *kept.iterdir()]:
        project = folder / "simple" / path.name.partition("-")[0].lower().replace("_", "-").replace(".", "-")
        project.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, project / path.name)
    with WheelIndex(folder / "simple") as index:
        yield index.url
