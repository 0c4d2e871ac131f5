"""Wheels from a package index, through pip: its resolver chooses, on any machine, for CPython on linux/amd64."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urldefrag

from checkpoint.progress import Progress
from images.build_errors import BadSource, ImageError, Silent, Unreachable
from images.context import Tell, say

__all__ = ["download_wheels", "locked_requirements", "wheel_address"]

_GLIBC = 35
"""The newest glibc 2.x whose wheels are taken: that of Ubuntu 22.04, the base of FastDeploy's images; Debian 12 has 2.36."""

_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(_GLIBC, 4, -1)),
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
)
_INDEX_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX")
_LONGEST = 1500
"""Characters of pip's output that an error shows."""

_BROKEN = re.compile(r"connection broken by '(.*)':")
_SYSTEM_ERROR = re.compile(r"\[Errno -?\d+\] ([\w ]+)")


def locked_requirements(text: str, python: str) -> Iterator[str]:
    """Yield the requirements of a lock file that apply to a Python such as 3.10, without their markers: "NAME==VERSION --hash=...".

    pip evaluates markers for the Python that it runs on, which may be another one.
    """
    from packaging.markers import Marker

    target = {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    for line in text.replace("\\\n", " ").splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        hashes = [word for word in words if word.startswith("--hash=")]
        requirement, _, marker = " ".join(word for word in words if word not in hashes).partition(";")
        if not marker.strip() or Marker(marker).evaluate(dict(target)):
            yield " ".join([requirement.strip(), *hashes])


def download_wheels(requirements: Iterable[str], folder: Path, python: str, size: int = 0, tell: Tell = say) -> None:
    """Download the wheels of requirements with hashes, and none of their dependencies, into `folder`, from the user's own index.

    `size` is that of all wheels in bytes where it is known, for the progress.

    Raises:
        Unreachable: with pip's own error; one wheel that cannot be had stops all.
    """
    with tempfile.TemporaryDirectory(prefix="images-", dir=folder.parent) as temporary:
        listed = Path(temporary, "requirements.txt")
        listed.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
        environment = {**os.environ, "TMPDIR": temporary}  # where pip keeps a wheel until it is whole

        def received() -> int:
            return _size_of_wheels(Path(temporary), folder)

        with Progress(size, "wheels", tell=tell, measure=received):
            _pip(["download", "--require-hashes", "--requirement", str(listed), "--dest", str(folder), *_for(python)], environment)


def _size_of_wheels(*folders: Path) -> int:
    """Return the bytes of the wheels in folders from which pip may take files and folders away meanwhile.

    pip keeps its own copy of a wheel that it has put into the other folder, so a name counts once.
    """
    sizes: dict[str, int] = {}
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                if name.endswith(".whl"):
                    with contextlib.suppress(FileNotFoundError):
                        sizes[name] = Path(place, name).stat().st_size
    return sum(sizes.values())


def wheel_address(index: str, project: str, version: str, python: str) -> str:
    """Return the address of the wheel that pip takes from the index at `index`, and from no other.

    Where the index serves metadata apart from the wheels, no wheel is downloaded.

    Raises:
        Unreachable: with pip's own error, such as the versions that the index has.
        BadSource: when pip finds no wheel.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _INDEX_VARIABLES}
    with tempfile.TemporaryDirectory(prefix="images-") as folder:
        report = Path(folder, "report.json")
        options = [
            "--dry-run",
            "--ignore-installed",
            "--target",
            str(Path(folder, "target")),
            "--index-url",
            index,
            "--report",
            str(report),
        ]
        command = ["install", *options, f"{project}=={version}", *_for(python)]
        try:
            _pip([*command, "--use-feature=fast-deps"], environment)
        except Silent:
            raise
        except Unreachable:  # fast-deps needs HEAD and ranges, which some servers lack
            _pip(command, environment)
        [found] = json.loads(report.read_text(encoding="utf-8"))["install"]
    url = urldefrag(str(found["download_info"]["url"])).url
    if not url.endswith(".whl"):
        raise BadSource(f"{index}: got {url}, expected a wheel of {project} {version}")
    return url


def _for(python: str) -> list[str]:
    platforms = [f"--platform={platform}" for platform in _PLATFORMS]
    return ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]


def _pip(arguments: list[str], environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *arguments]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False, errors="replace")
    if done.returncode:
        raise _error(f"pip {arguments[0]}", done.stderr, done.returncode)


def _error(command: str, output: str, code: int) -> ImageError:
    """Return what pip's output means."""
    broken = _BROKEN.findall(output)
    if "No space left on device" in output:
        return ImageError(f"{command}: no space left on the disk of the cache; free space, or name another folder with cache=")
    if broken and "DO NOT MATCH THE HASHES" not in output:
        # pip says then that there is no matching version, which is wrong.
        reason = (_SYSTEM_ERROR.findall(broken[-1]) or [broken[-1]])[-1]
        return Silent(f"{command}: the package index does not answer ({reason[:200]}); check the network, the proxy and PIP_INDEX_URL")
    lines = output.strip().splitlines()
    # The lines after the first error belong to it, such as the name and the digests of a wheel that is not the pinned one.
    first = next((number for number, line in enumerate(lines) if line.startswith("ERROR:")), 0)
    errors = lines[first:] or [f"exit code {code}"]
    return Unreachable(f"{command}: " + "\n  ".join(errors)[-_LONGEST:])
