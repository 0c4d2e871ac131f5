"""Copy images with skopeo, which knows registries, the local Docker, OCI layouts, and the user's accounts."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from checkpoint.http_client import PAUSES, is_loopback
from checkpoint.progress import Progress
from images.build_errors import Unreachable
from images.context import Tell, say
from images.programs import require_skopeo

__all__ = ["copy"]

_FINAL = {
    "unauthorized": "log in with `skopeo login`",
    "authentication required": "log in with `skopeo login`",
    "denied": "log in with `skopeo login` as a user who may write there",
    "no space left": "free space on the disk",
    "manifest unknown": "check the name and the tag",
    "name unknown": "check the name",
    "no such host": "check the name of the registry, and the network",
}
"""Words of errors that another try does not help against, and what to do."""

_MESSAGE = re.compile(r'level=fatal msg="((?:[^"\\]|\\.)*)"')
_LONGEST = 1500
"""Characters of skopeo's output that an error shows."""


def copy(
    source: str,
    destination: str,
    *,
    size: int = 0,
    folder: Path | None = None,
    options: Iterable[str] = ("--preserve-digests",),
    tell: Tell = say,
) -> None:
    """Copy an image of about `size` bytes, unchanged; a fault of a registry is tried again. The names are skopeo's.

    Relative paths in the names begin at `folder`. Other `options` allow changes, which a Docker needs.

    Raises:
        Unreachable: with skopeo's own error, after four tries or for an error that another try does not help against.
    """
    require_skopeo()
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", *_plain_http(source, destination), *options, source, destination]
    for pause in (*PAUSES, None):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, errors="replace", cwd=folder
        )
        with process, _progress(process.pid, size, tell):
            _, output = process.communicate()
        if process.returncode == 0:
            return
        message = (_MESSAGE.findall(output) or [output.strip()])[-1].replace('\\"', '"')[-_LONGEST:]
        advice = next((f"; {todo}" for words, todo in _FINAL.items() if words in message), "")
        if pause is None or advice:
            raise Unreachable(f"copying {source} to {destination}: {message}{advice}")
        time.sleep(pause)


def _progress(pid: int, size: int, tell: Tell) -> AbstractContextManager[object]:
    """Show how many bytes skopeo has written to files and sockets, which only Linux counts."""
    counters = Path(f"/proc/{pid}/io")

    def written() -> int:
        try:
            return int(re.findall(r"^wchar: (\d+)", counters.read_text(encoding="ascii"), re.MULTILINE)[0])
        except (OSError, IndexError):  # the process has ended
            return size

    return Progress(size, "copying", tell=tell, measure=written) if counters.exists() else nullcontext()


def _plain_http(source: str, destination: str) -> list[str]:
    """Return the options that let skopeo speak plain HTTP, on loopback only, as Docker does."""
    ends = (("--src-tls-verify=false", source), ("--dest-tls-verify=false", destination))
    return [option for option, name in ends if name.startswith("docker://") and is_loopback(name)]
