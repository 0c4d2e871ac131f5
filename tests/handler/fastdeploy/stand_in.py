"""A package that stands where FastDeploy would: a release's parser, its version file, and a server that says what it was given."""

from __future__ import annotations

import json
from pathlib import Path

from handler.fastdeploy import table
from tests.handler.fastdeploy import parser_from_table

TABLES = Path(table.__file__).parent / "flag_tables"

_UTILS = """
import json
from fastdeploy.utils import build

print("a line of FastDeploy's own")

def make_arg_parser(parser):
    with open({path!r}, encoding="utf-8") as file:
        return build(json.load(file)["flags"], parser)
"""

_SERVER = """
import json, os, sys, time
from multiprocessing.managers import BaseManager
from fastdeploy.entrypoints.openai.utils import make_arg_parser
from fastdeploy.utils import FlexibleArgumentParser

arguments = vars(make_arg_parser(FlexibleArgumentParser()).parse_args())

class QueueManager(BaseManager):
    pass

if __name__ == "__main__":
    managers = []
    for name in ("engine_worker_queue_port", "cache_queue_port"):
        manager = QueueManager(("0.0.0.0", int(arguments[name][0])), b"secret_key")
        manager.start()
        client = QueueManager(("0.0.0.0", int(arguments[name][0])), b"secret_key")
        client.connect()
        managers.append(manager)
    names = ("CUDA_VISIBLE_DEVICES", "FD_LOG_DIR", "DO_NOT_TRACK")
    print(json.dumps({"arguments": arguments, "environment": {name: os.environ.get(name) for name in names}}), flush=True)
    sys.stdin.readline()
    for manager in managers:
        manager.shutdown()
"""


def install(folder: Path, release: str, *, tables: Path = TABLES) -> Path:
    """Put the package into `folder`, which is to be on the interpreter's path, and return it."""
    package = folder / "fastdeploy"
    inner = package / "entrypoints" / "openai"
    inner.mkdir(parents=True)
    for level in (package, inner.parent, inner):
        (level / "__init__.py").touch()
    (package / "version.txt").write_text(f"fastdeploy GIT COMMIT ID: 0\nfastdeploy version: {release}.1\nCXX ABI VERSION: 1\n")
    (package / "utils.py").write_text(Path(parser_from_table.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (inner / "utils.py").write_text(_UTILS.format(path=str(tables / f"{release}.json")), encoding="utf-8")
    (inner / "api_server.py").write_text(_SERVER, encoding="utf-8")
    return folder


def entries(release: str) -> list[dict[str, object]]:
    """Return the flags of a release's file."""
    found: list[dict[str, object]] = json.loads((TABLES / f"{release}.json").read_text(encoding="utf-8"))["flags"]
    return found
