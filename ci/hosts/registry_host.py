"""A container registry on a free loopback port, with what it holds in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from ci.hosts.servers import free_port, running

__all__ = ["container_registry"]


@contextlib.contextmanager
def container_registry(folder: Path) -> Iterator[str]:
    """Run a registry that keeps its blobs in `folder`, removed afterwards, and yield its address, such as 127.0.0.1:41234."""
    folder.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    settings = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "blobs")}, "delete": {"enabled": True}},
        "http": {"addr": address},
    }
    config = folder / "config.yml"
    config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    try:
        with running(["docker-registry", "serve", str(config)], folder / "registry.log", lambda: _answers(address)):
            yield address
    finally:
        shutil.rmtree(folder)


def _answers(address: str) -> bool:
    with urllib.request.urlopen(f"http://{address}/v2/", timeout=5) as response:
        return bool(response.status == 200)
