"""Make the miniature's builds: as a wheel, and as the tree that an installed wheel leaves behind."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["SITE", "engine_files", "installed_tree", "tar_of", "wheel"]

SITE = "usr/local/lib/python3.11/dist-packages"
"""Where Debian's Python looks for what pip installs; FastDeploy's images have the same folder of Python 3.10."""

_PACKAGE = Path(__file__).with_name("package")


def engine_files(build: str, release: str = "2.3.0") -> dict[str, bytes]:
    """Return the files of the `fastdeploy` package; each build has kernels, and a module, that the other one lacks."""
    files = {f"fastdeploy/{path.relative_to(_PACKAGE)}": path.read_bytes() for path in _PACKAGE.rglob("*.py")}
    files["fastdeploy/build.txt"] = f"{build}\n".encode()
    files["fastdeploy/version.txt"] = f"fastdeploy version: {release}\n".encode()
    files[f"fastdeploy/ops/kernels_{build}.so"] = f"kernels of {build}\n".encode() * 1000
    files[f"fastdeploy/only_{build}.py"] = f'"""Only in {build}."""\n'.encode()
    return files


def wheel(folder: Path, name: str, version: str, files: Mapping[str, bytes], *, scripts: Mapping[str, str] | None = None) -> Path:
    """Write a wheel that holds `files` and makes `scripts` (name -> module:function), and return its path."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name_, data in with_metadata(name, version, files, scripts or {}).items():
            archive.writestr(zipfile.ZipInfo(name_), data)
    return path


def with_metadata(name: str, version: str, files: Mapping[str, bytes], scripts: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files with the dist-info folder of a wheel that holds them."""
    info = f"{name}-{version}.dist-info"
    every = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: miniature\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if scripts:
        lines = "".join(f"{script} = {target}\n" for script, target in scripts.items())
        every[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}".encode()
    rows = [f"{path},sha256={_record_hash(data)},{len(data)}" for path, data in every.items()]
    every[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    return every


def installed_tree(name: str, version: str, files: Mapping[str, bytes], scripts: Mapping[str, str]) -> dict[str, bytes]:
    """Return the paths and contents that pip's installation of such a wheel leaves in an image, console scripts among them."""
    every = with_metadata(name, version, files, scripts)
    info = f"{name}-{version}.dist-info"
    tree = {f"{SITE}/{path}": data for path, data in every.items()}
    for script, target in scripts.items():
        module, _, function = target.partition(":")
        tree[f"usr/local/bin/{script}"] = f"#!/usr/bin/python3\nfrom {module} import {function}\n{function}()\n".encode()
        tree[f"{SITE}/{info}/RECORD"] += f"../../../bin/{script},,\n".encode()
    tree[f"{SITE}/{info}/INSTALLER"] = b"pip\n"
    # pip compiles what it installs, and lists that as well.
    tree[f"{SITE}/fastdeploy/__pycache__/old.cpython-311.pyc"] = b"compiled\n"
    return tree


def tar_of(path: Path, tree: Mapping[str, bytes], *, executable: tuple[str, ...] = ("usr/local/bin/", "usr/bin/")) -> Path:
    """Write a tar file with the tree and the folders above it, and return its path."""
    folders = sorted({str(parent) for name in tree for parent in Path(name).parents} - {"."})
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for folder in folders:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1700000000
            tar.addfile(entry)
        for name, data in sorted(tree.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), 0o755 if name.startswith(executable) else 0o644, 1700000000
            tar.addfile(entry, io.BytesIO(data))
    return path


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
