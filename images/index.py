"""Ask a package index for wheels, through pip: its own resolver chooses, whatever machine this is, for CPython on linux/amd64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urldefrag

from images.build_errors import BadSource, Unreachable

__all__ = ["download_wheels", "locked_requirements", "wheel_address"]

_GLIBC = 35
"""The newest 2.x whose wheels are taken: that of Ubuntu 22.04, from which FastDeploy's images are made; Debian 12 has 2.36."""

_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(_GLIBC, 4, -1)),
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
)
_INDEX_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX")
_LAST_WORDS = 1500


def locked_requirements(text: str, python: str) -> Iterator[str]:
    """Yield the requirements of a lock file that hold for a Python such as 3.10, without their markers: "NAME==VERSION --hash=...".

    pip would judge the markers by the Python that it runs on.
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


def download_wheels(requirements: Iterable[str], folder: Path, python: str) -> None:
    """Bring the wheels of requirements with hashes, and of nothing they depend on, into `folder`, from the user's own index.

    Raises:
        Unreachable: with pip's last words; one wheel that cannot be had stops all.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in requirements)
        file.flush()
        _pip(["download", "--require-hashes", "--requirement", file.name, "--dest", str(folder), *_for(python)], os.environ)


def wheel_address(index: str, project: str, version: str, python: str) -> str:
    """Return the address of the wheel that pip would take from the index at `index`, and from no other.

    Where the index lets pip read the metadata alone, nothing else is downloaded.

    Raises:
        Unreachable: with pip's last words, such as the versions that there are.
        BadSource: when pip found no wheel.
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
        except Unreachable:  # fast-deps asks with HEAD and for ranges, which not every server knows
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
        lines = done.stderr.strip().splitlines()
        # What follows the first error belongs to it, such as the name and the digests of a wheel that is not the pinned one.
        first = next((number for number, line in enumerate(lines) if line.startswith("ERROR:")), 0)
        errors = lines[first:] or [f"exit code {done.returncode}"]
        raise Unreachable(f"pip {arguments[0]}: " + "\n  ".join(errors)[-_LAST_WORDS:])
