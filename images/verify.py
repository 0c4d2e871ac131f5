"""Verify an image's layout with a reader of its own, and list everything that is wrong with it.

It shares nothing with the code that writes images but `Digest`: tars are read by Python's tarfile, the lock as plain JSON, and every rule
is written here a second time. It checks every digest, size and diff_id; that the base's layers are the lock's, in order; the format of our
tars (order, times, owners, modes, types, paths, padding); that no file is in two layers; that a baked model's files are the lock's; that no
variable and no file of the worker looks like a secret; the limits of RunPod and of Docker.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from images.arguments import Command, Key, file_named
from images.build_errors import BrokenLayout
from images.digest import Digest, file_digest

__all__ = ["COMMAND", "verify"]

_LOCK = Path(__file__).with_name("images.lock.json")
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_TAR = "application/vnd.oci.image.layer.v1.tar"
_EPOCH = 315532800
_START = "worker/lib/__main__.py"
_SETTINGS = "local_model_args.json"
_MOST_LAYERS, _MOST_BYTES = 127, 80 * 10**9
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|CREDENTIAL")
_TOKEN = re.compile(
    rb"\b(?:(?:hf|rpa)_[A-Za-z0-9]{30}|sk-[\w-]{20}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22}|glpat-[\w-]{20}|AKIA[0-9A-Z]{16}|AIza[\w-]{35})"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""The form of keys of Hugging Face, RunPod, OpenAI, GitHub, GitLab, AWS and Google, and of private keys in PEM."""

_OURS = re.compile(r"worker/lib/(__main__\.py|(handler|checkpoint|cpu_engine)/.*)|local_model_args\.json")
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_WHITEOUT = re.compile(r"\.wh\.(\.wh\.\.opq|(?!\.wh\.).+)")


@dataclass(slots=True)
class _Layers:
    """The content of our layers, as far as they have been read."""

    problems: list[str]
    files: dict[str, str] = field(default_factory=dict)
    """Each file's path, and the layer it is in."""
    wanted: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 that files must have, in hexadecimal, by path."""
    settings: dict[str, Any] = field(default_factory=dict)


def verify(folder: Path, lock: Path = _LOCK) -> Digest:
    """Return the digest of the image in an OCI layout.

    Raises:
        BrokenLayout: with every mismatch that was found.
    """
    problems: list[str] = []
    digest = _verify(folder, lock, problems)
    if problems or digest is None:
        raise BrokenLayout(str(folder), problems)
    return digest


def _verify(folder: Path, lock: Path, problems: list[str]) -> Digest | None:
    if not folder.is_dir():
        problems.append("no such folder; expected an OCI layout, which `ci/just build-image` writes")
        return None
    version = _json(folder / "oci-layout", problems).get("imageLayoutVersion")
    _same("oci-layout: imageLayoutVersion", version, "1.0.0", problems)
    manifests = _json(folder / "index.json", problems).get("manifests")
    if not isinstance(manifests, list) or len(manifests) != 1:
        problems.append(f"index.json: got {len(manifests or [])} images, expected one; build it again")
        return None
    descriptor = manifests[0]
    _same("index.json: mediaType", descriptor.get("mediaType"), _MANIFEST, problems)
    manifest = _document(folder, descriptor, "index.json: manifest", problems)
    config = _document(folder, manifest.get("config") or {}, "manifest: config", problems)
    if manifest and config:
        _check_image(folder, manifest, config, _json(lock, problems), problems)
    try:
        return Digest.parse(str(descriptor.get("digest")))
    except ValueError as error:
        problems.append(f"index.json: digest: {error}")
        return None


def _check_image(folder: Path, manifest: dict[str, Any], config: dict[str, Any], lock: dict[str, Any], problems: list[str]) -> None:
    _same("manifest: mediaType", manifest.get("mediaType"), _MANIFEST, problems)
    _same("manifest: config: mediaType", (manifest.get("config") or {}).get("mediaType"), _CONFIG, problems)
    layers = manifest.get("layers") or []
    diff_ids = (config.get("rootfs") or {}).get("diff_ids") or []
    _same("config: diff_ids", len(diff_ids), len(layers), problems)
    history = [entry for entry in config.get("history") or [] if not entry.get("empty_layer")]
    _same("config: history: entries of layers", len(history), len(layers), problems)
    container = config.get("config") or {}
    base = _base(container.get("Labels") or {}, lock, problems)
    below = _check_base(base, layers, diff_ids, problems)
    _check_variables(base, container.get("Env") or [], problems)
    found = _Layers(problems, wanted=_pinned(lock))
    for number, layer in enumerate(layers[below:], below):
        diff_id = diff_ids[number] if number < len(diff_ids) else None
        _check_layer(folder, layer, diff_id, f"layer {number}", found)
    _check_whole(found, lock)
    if len(layers) > _MOST_LAYERS:
        problems.append(f"manifest: got {len(layers)} layers, expected at most {_MOST_LAYERS}")
    total = sum(layer.get("size", 0) for layer in layers)
    if total > _MOST_BYTES:
        problems.append(f"manifest: got {total} bytes in all, expected at most {_MOST_BYTES}, which RunPod takes")


def _base(labels: dict[str, str], lock: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return the lock's base with the name and digest of the labels."""
    name, digest = (labels.get(f"org.opencontainers.image.base.{what}") for what in ("name", "digest"))
    for base in lock.get("bases") or []:
        if base.get("reference") == name:
            _same(f"config: label base.digest of {name}", digest, base["manifest"]["digest"], problems)
            return dict(base)
    problems.append(f"config: label base.name: got {name!r}, expected one of the lock's bases")
    return {}


def _check_base(base: dict[str, Any], layers: list[Any], diff_ids: list[Any], problems: list[str]) -> int:
    """Check that the image begins with the base's layers, and return how many those are."""
    known = base.get("layers") or []
    for number, (layer, expected) in enumerate(zip(layers, known)):  # noqa: B905  # Python 3.10; lengths are compared below
        _same(f"layer {number}: digest (of the base)", layer.get("digest"), expected["digest"], problems)
        _same(f"layer {number}: size (of the base)", layer.get("size"), expected["size"], problems)
        _same(f"layer {number}: diff_id (of the base)", diff_ids[number : number + 1], [expected["diff_id"]], problems)
    if len(layers) <= len(known):
        problems.append(f"manifest: got {len(layers)} layers, expected more than the {len(known)} of the base")
    return len(known)


def _check_variables(base: dict[str, Any], variables: list[str], problems: list[str]) -> None:
    config = json.loads(base["config"]["text"]) if base else {}
    known = {text.partition("=")[0] for text in (config.get("config") or {}).get("Env") or []}
    ours = dict(text.partition("=")[::2] for text in variables if text.partition("=")[0] not in known)
    secret = [name for name in sorted(ours) if _SECRET.search(name) or _TOKEN.search(ours[name].encode())]
    problems += [f"config: Env: {name} looks like a secret, which no image may hold" for name in secret]


def _check_layer(folder: Path, layer: dict[str, Any], diff_id: str | None, where: str, found: _Layers) -> None:
    problems = found.problems
    _same(f"{where}: mediaType", layer.get("mediaType"), _TAR, problems)
    _same(f"{where}: diff_id", diff_id, layer.get("digest"), problems)
    path = _blob(folder, layer, where, problems)
    if path is None:
        return
    try:
        with tarfile.open(path, "r:", errorlevel=2) as tar:
            _check_tar(tar, path, where, found)
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError) as error:
        problems.append(f"{where}: cannot be read ({error})")


def _check_tar(tar: tarfile.TarFile, path: Path, where: str, found: _Layers) -> None:
    before, end, folders = b"", 0, set()
    for member in tar:
        name = member.name
        end = member.offset_data + -(-member.size // 512) * 512
        for problem in _form(member):
            found.problems.append(f"{where}: {name}: {problem}")
        if name.encode("utf-8", "surrogateescape") <= before:
            found.problems.append(
                f"{where}: {name}: comes after {before.decode('utf-8', 'replace')}, expected each path once, in the order of its bytes"
            )
        before = name.encode("utf-8", "surrogateescape")
        if member.isdir():
            folders.add(name)
            continue
        other = found.files.setdefault(name, where)
        if other != where:
            found.problems.append(f"{where}: {name}: is in {other} as well, expected each file in one layer")
        _check_content(tar, member, where, found)
    for name in sorted(folders & set(found.files)):
        found.problems.append(f"{where}: {name}: a folder, but {found.files[name]} has a file of that path")
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(1025)
    if rest != bytes(1024):
        found.problems.append(f"{where}: got {path.stat().st_size - end} bytes after the last entry, expected two empty blocks")


def _form(member: tarfile.TarInfo) -> Iterator[str]:
    """Yield what is wrong with an entry's header or path."""
    if not (member.isreg() or member.isdir()):
        yield f"got an entry of type {member.type!r}, expected a file or a folder"
    if int(member.mtime) != _EPOCH or "mtime" in member.pax_headers:
        yield f"mtime: got {member.mtime}, expected {_EPOCH}"
    if (member.uid, member.gid, member.uname, member.gname) != (0, 0, "", ""):
        yield f"owner: got {member.uid}:{member.gid} {member.uname}:{member.gname}, expected 0:0 without names"
    if member.mode not in ((0o755,) if member.isdir() else (0o644, 0o755)):
        yield f"mode: got {member.mode:o}, expected 755 or, for a file, 644"
    if set(member.pax_headers) - {"path", "size"}:
        yield f"PAX: got {', '.join(sorted(member.pax_headers))}, expected path or size where they are needed"
    if member.name.startswith("/") or {"", ".", ".."} & set(member.name.split("/")):
        yield "an unsafe path"
    if len(member.name.encode("utf-8", "surrogateescape")) > 4095 or any(
        unicodedata.category(letter) in _INVISIBLE for letter in member.name
    ):
        yield "a path that is too long, or has invisible characters"
    last = member.name.rpartition("/")[2]
    if any(part.startswith(".wh.") for part in member.name.split("/")) and not (_WHITEOUT.fullmatch(last) and not member.size):
        yield "a whiteout with a content, or of no name"


def _check_content(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str, found: _Layers) -> None:
    """Check a pinned file's content, search the worker's files for tokens, and keep the settings of a baked model."""
    wanted = found.wanted.get(member.name)
    ours = _OURS.fullmatch(member.name) is not None
    if wanted is None and not ours:
        return
    stream = tar.extractfile(member)
    assert stream is not None  # noqa: S101  # for the type checker: a file has a stream
    if ours:
        data = stream.read()
        if token := _TOKEN.search(data):
            begin = token.group()[:4].decode()
            found.problems.append(f"{where}: {member.name}: holds what looks like a secret ({begin}...), which no image may hold")
        if member.name == _SETTINGS:
            found.settings = dict(json.loads(data))
        return
    sha = hashlib.sha256()
    while piece := stream.read(1 << 20):
        sha.update(piece)
    _same(f"{where}: {member.name}: sha256", sha.hexdigest(), wanted, found.problems)


def _check_whole(found: _Layers, lock: dict[str, Any]) -> None:
    """Check that the worker is there, and every file of the model that the settings name."""
    if _START not in found.files:
        found.problems.append(f"no layer has {_START}, which the entrypoint runs")
    model = found.settings.get("MODEL")
    if model is None:
        return
    if model not in [entry.get("repository") for entry in lock.get("models") or []]:
        found.problems.append(f"{_SETTINGS}: MODEL: got {model!r}, expected one of the lock's models")
    folder = f"models/models--{str(model).replace('/', '--')}/"
    missing = sorted(path for path in found.wanted if path.startswith(folder) and path not in found.files)
    found.problems += [f"no layer has {path}, which the lock pins" for path in missing]


def _pinned(lock: dict[str, Any]) -> dict[str, str]:
    """Return the paths of the lock's model files in an image, and their SHA-256."""
    return {
        f"models/models--{model['repository'].replace('/', '--')}/snapshots/{model['commit']}/{file['path']}": file["digest"].partition(
            ":"
        )[2]
        for model in lock.get("models") or []
        for file in model["files"]
    }


def _document(folder: Path, descriptor: dict[str, Any], what: str, problems: list[str]) -> dict[str, Any]:
    path = _blob(folder, descriptor, what, problems)
    return _json(path, problems) if path else {}


def _blob(folder: Path, descriptor: dict[str, Any], what: str, problems: list[str]) -> Path | None:
    """Return the file of the blob that a descriptor names, or None where it cannot be read; a mismatch is a problem."""
    try:
        digest = Digest.parse(str(descriptor.get("digest")))
        path = folder / "blobs" / "sha256" / digest.hex
        got, size = file_digest(path)
    except ValueError as error:
        problems.append(f"{what}: digest: {error}")
        return None
    except OSError as error:
        problems.append(f"{what}: {descriptor.get('digest')}: cannot be read ({error.strerror}); build it again")
        return None
    _same(f"{what}: digest", str(got), str(digest), problems)
    _same(f"{what}: size", size, descriptor.get("size"), problems)
    return path


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name}: cannot be read ({error})")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name}: got {type(value).__name__}, expected an object")
        return {}
    return value


def _same(what: str, got: object, expected: object, problems: list[str]) -> None:
    if got != expected:
        problems.append(f"{what}: got {got}, expected {expected}")


def run(values: Mapping[str, str]) -> int:
    """Verify the layout that the arguments name, and print its digest as the last line."""
    print(verify(file_named(values["dir"]), file_named(values["lock"]) if values["lock"] else _LOCK))
    return 0


COMMAND = Command(
    name="verify",
    help="Check an image's layout against itself and the lock, and list every mismatch.",
    keys=(
        Key("dir", "The folder of the OCI layout.", required=True, bare=True),
        Key("lock", "Another file than images/images.lock.json."),
    ),
    run=run,
)
