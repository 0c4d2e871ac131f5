"""Wheels as entries of a layer: unpacked as an installer does, checked against the lock and against their own RECORD.

PyPA's `installer` decides where each file goes; `_Destination` notes that, so contents are read when the layer is written and never kept.
No script of a wheel runs, and no bytecode is compiled: it would depend on the builder's own Python.

Refused are bytes that are not the pinned ones, a wheel for another Python or platform, files that RECORD lacks or describes otherwise,
paths that leave the root, links, and names that come twice or differ in case only.
"""

from __future__ import annotations

import base64
import configparser
import csv
import io
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from installer import install
from installer.destinations import WheelDestination
from installer.exceptions import InstallerError
from installer.records import Hash, RecordEntry
from installer.scripts import Script
from installer.sources import WheelFile
from installer.utils import construct_record_file, fix_shebang, parse_wheel_filename

from images.build_errors import FETCH_AGAIN, BadSource, DigestMismatch, UnsafePath
from images.digest import Count, Digest, file_digest
from images.entries import LayerEntry, check_path, data_entry, opaque_whiteout, whiteout, with_parents
from images.lock_entries import File

__all__ = ["InstallPaths", "check_tags", "owned_paths", "replacing", "wheel_entries"]

_ELF_PLATFORM = re.compile(r"(manylinux(1|2010|2014|_\d+_\d+)|linux)_x86_64")
_LARGEST_SCRIPT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallPaths:
    """Where wheels are installed in an image: paths relative to the root, without a leading /."""

    packages: str
    """The folder of modules and packages."""
    python: str
    """The version that imports them, such as 3.10."""
    prefix: str = ""
    """The folder of scripts and data (bin, share); empty means that a wheel's scripts and data are left out."""
    interpreter: str = ""
    """The Python that scripts name in their first line."""
    reserved: Collection[str] = ()
    """Top-level names that no wheel may have."""

    def folder(self, scheme: str) -> str | None:
        """Return the folder of one of the wheel format's schemes, or None where its files are left out."""
        if scheme in ("purelib", "platlib"):
            return self.packages
        names = {"scripts": "bin", "data": "", "headers": f"include/python{self.python}"}
        return str(PurePosixPath(self.prefix, names[scheme])) if self.prefix else None


def check_tags(name: str, python: str) -> None:
    """Check by its file name that a wheel runs on Python `python` (such as 3.10) on Linux with glibc and x86-64.

    Raises:
        BadSource: with what its name says and what was expected.
    """
    try:
        tags = parse_wheel_filename(name).tag.split("-")
        interpreters, abis, platforms = (tag.split(".") for tag in tags)
    except ValueError:
        raise BadSource(f"{name}: not the name of a wheel, expected NAME-VERSION-PYTHON-ABI-PLATFORM.whl") from None
    major, minor = (int(number) for number in python.split("."))
    own, older = f"cp{major}{minor}", {f"cp{major}{number}" for number in range(2, minor + 1)}
    generic = {f"py{major}", *(f"py{major}{number}" for number in range(minor + 1))}
    fits = (own in interpreters and {own, "none"} & set(abis)) or ("abi3" in abis and older & set(interpreters))
    if not (fits or ("none" in abis and generic & set(interpreters))):
        raise BadSource(f"{name}: a wheel for Python {tags[0]} ({tags[1]}), expected one for {own} or py{major}")
    if not any(platform == "any" or _ELF_PLATFORM.fullmatch(platform) for platform in platforms):
        raise BadSource(f"{name}: a wheel for {tags[2]}, expected one for any platform or for linux_x86_64")


@contextmanager
def wheel_entries(wheels: Iterable[tuple[File, Path]], paths: InstallPaths, count: Count | None = None) -> Iterator[list[LayerEntry]]:
    """Yield the entries of wheels, given with the files that hold them; contents can be read until the context ends.

    Each file is hashed first, and `count` gets the number of bytes.

    Raises:
        DigestMismatch: when a file does not hold the pinned bytes.
        UnsafePath, BadSource: when a wheel is refused, as the module's docstring lists.
    """
    with ExitStack() as stack:
        found: list[LayerEntry] = []
        for file, path in wheels:
            check_tags(file.name, paths.python)
            got, size = file_digest(path, count)
            if (got, size) != (file.digest, file.size):
                expected = f"{file.digest} and {file.size} bytes"
                raise DigestMismatch(f"{file.name}: got {got} and {size} bytes at {path}, expected {expected}; {FETCH_AGAIN}")
            found += _unpacked(file, stack.enter_context(_opened(file, path)), paths)
        yield found


@contextmanager
def _opened(file: File, path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise BadSource(f"{file.name}: not a wheel ({error})") from None
    with archive:
        archive.filename = file.name  # the cache names files by their digest, and installer reads the distribution's name from the file's
        yield archive


def _unpacked(file: File, archive: zipfile.ZipFile, paths: InstallPaths) -> list[LayerEntry]:
    _check_members(file, archive)
    try:
        source = WheelFile(archive)
        source.validate_record(validate_contents=False)
        destination = _Destination(paths=paths, archive=archive, record=_record(source), name=file.name)
        install(source, destination, {})
    except (InstallerError, ValueError, KeyError, AssertionError, zipfile.BadZipFile, configparser.Error) as error:
        reason = "; ".join(getattr(error, "issues", [str(error) or type(error).__name__]))
        raise BadSource(f"{file.name}: not a wheel that can be unpacked: {reason}") from None
    for entry in destination.entries:
        top = entry.path.removeprefix(paths.packages + "/").split("/", 1)[0]
        if top in paths.reserved:
            raise UnsafePath(f"{file.name}: got the top-level name {top!r}, which the worker itself has")
    return destination.entries


def _check_members(file: File, archive: zipfile.ZipFile) -> None:
    [(name, times)] = Counter(info.filename for info in archive.infolist()).most_common(1) or [("", 0)]
    if times > 1:
        raise UnsafePath(f"{file.name}: the path {name!r} comes twice")
    for info in archive.infolist():
        path = check_path(info.filename.removesuffix("/"), file.name)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UnsafePath(f"{file.name}: {path!r} is a link or a device, expected plain files")
        parts = path.split("/")
        if parts[0].endswith(".data") and not info.is_dir() and len(parts) < 3:
            raise UnsafePath(f"{file.name}: got {path!r}, expected files of {parts[0]} in a folder for their kind")


def _record(source: WheelFile) -> Mapping[str, RecordEntry]:
    """Return RECORD's row of each file; all but RECORD itself must have a SHA-256."""
    rows = csv.reader(io.StringIO(source.read_dist_info("RECORD")))
    found = {row[0]: RecordEntry.from_elements(*row) for row in rows if row}
    without = sorted(path for path, entry in found.items() if not path.endswith(".dist-info/RECORD") and not _is_pinned(entry))
    if without:
        raise ValueError(f"RECORD: {without[0]}: expected a sha256 and a size")
    return found


def _is_pinned(entry: RecordEntry) -> bool:
    return entry.hash_ is not None and entry.hash_.name == "sha256" and entry.size is not None


@dataclass
class _Destination(WheelDestination):
    """Notes where `installer` puts each file of one wheel, without reading its content."""

    paths: InstallPaths
    archive: zipfile.ZipFile
    record: Mapping[str, RecordEntry]
    name: str
    entries: list[LayerEntry] = field(default_factory=list)

    def write_script(self, name: str, module: str, attr: str, section: Any) -> RecordEntry:
        """Note the script of an entry point."""
        name, data = Script(name, module, attr, section).generate(self.paths.interpreter, "posix")
        return self._note("scripts", check_path(name, self.name), data, executable=True)

    def write_file(self, scheme: Any, path: Any, stream: BinaryIO, is_executable: bool) -> RecordEntry:
        """Note a file of the archive; only a script is read, since its first line changes."""
        member = str(cast("Any", stream).name)
        recorded, folder = self.record[member], self.paths.folder(scheme)
        if folder is not None and scheme == "scripts":
            with fix_shebang(io.BytesIO(self._script(member, recorded)), self.paths.interpreter) as fixed:
                return self._note(scheme, str(path), fixed.read(), executable=True)
        if folder is not None:
            where = str(PurePosixPath(folder, str(path)))
            content = _member(self.archive, member, self.name)
            size, digest = recorded.size or 0, _digest(recorded)
            self.entries.append(LayerEntry(path=where, size=size, executable=is_executable, digest=digest, open=content, source=self.name))
        return RecordEntry(str(path), recorded.hash_, recorded.size)

    def finalize_installation(self, scheme: Any, record_file_path: Any, records: Any) -> None:  # noqa: ARG002  # installer's signature
        """Note the RECORD of what is installed, which differs from the wheel's."""
        taken = [(kind, entry) for kind, entry in records if self.paths.folder(kind) is not None]
        with construct_record_file(taken, prefix_for_scheme=self._prefix) as stream:
            self.entries.append(data_entry(f"{self.paths.packages}/{record_file_path}", stream.read()))

    def _script(self, member: str, recorded: RecordEntry) -> bytes:
        info = self.archive.getinfo(member)
        data = self.archive.read(info) if info.file_size <= _LARGEST_SCRIPT else b""
        if not recorded.validate_stream(io.BytesIO(data)):
            raise DigestMismatch(f"{self.name}: {member}: got {info.file_size} bytes, expected those of RECORD")
        return data

    def _note(self, scheme: str, path: str, data: bytes, *, executable: bool) -> RecordEntry:
        folder = self.paths.folder(scheme)
        digest = Digest.of(data)
        if folder is not None:
            entry = data_entry(str(PurePosixPath(folder, path)), data)
            self.entries.append(LayerEntry(path=entry.path, size=entry.size, executable=executable, digest=digest, open=entry.open))
        encoded = base64.urlsafe_b64encode(bytes.fromhex(digest.hex)).decode().rstrip("=")
        return RecordEntry(path, Hash("sha256", encoded), len(data))

    def _prefix(self, scheme: Any) -> str | None:
        """Return the prefix of a path in RECORD: none for packages, the way up from them for the rest."""
        if scheme in ("purelib", "platlib"):
            return None
        up = "../" * len(PurePosixPath(self.paths.packages).relative_to(self.paths.prefix).parts)
        inside = PurePosixPath(self.paths.folder(scheme) or "").relative_to(self.paths.prefix)
        return f"{up}{inside}/" if str(inside) != "." else up


def _digest(recorded: RecordEntry) -> Digest:
    value = recorded.hash_.value if recorded.hash_ else ""
    return Digest(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex())


def _member(archive: zipfile.ZipFile, name: str, wheel: str) -> Callable[[], AbstractContextManager[BinaryIO]]:
    @contextmanager
    def opened() -> Iterator[BinaryIO]:
        try:
            with archive.open(name) as stream:
                yield cast("BinaryIO", stream)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise BadSource(f"{wheel}: {name}: cannot be unpacked ({error})") from None

    return opened


def replacing(entries: Iterable[LayerEntry], old: Iterable[str], paths: InstallPaths) -> list[LayerEntry]:
    """Return the entries of a wheel, their folders, and the whiteouts that hide the distribution it replaces.

    `old` are the absolute paths to hide (`Replaced.paths`). A folder that the wheel has too becomes opaque, a file that it has too needs no
    whiteout, and anything else gets one.
    """
    found = with_parents(entries, above=paths.packages)
    folders = {entry.path for entry in found if entry.open is None}
    files = {entry.path for entry in found if entry.open is not None}
    gone = sorted({path.strip("/") for path in old} - files)
    return found + [opaque_whiteout(path) if path in folders else whiteout(path) for path in gone]


def owned_paths(record: str, site_packages: str, shared: Collection[str] = ("__pycache__", "bin")) -> tuple[str, ...]:
    """Return what belongs to an installed distribution: absolute paths of its own folders, and of its single files elsewhere.

    `record` is the text of its RECORD, `site_packages` the absolute folder that RECORD's paths start from, and `shared` the folders there
    that several distributions use.
    """
    found = set()
    for row in csv.reader(io.StringIO(record)):
        if not row:
            continue
        absolute = PurePosixPath(site_packages, row[0])
        parts: list[str] = []
        for part in absolute.parts[1:]:
            parts = parts[:-1] if part == ".." else [*parts, part]
        path = "/" + "/".join(parts)
        inside = path.removeprefix(site_packages + "/")
        top = inside.split("/", 1)[0]
        found.add(path if inside == path or top in shared else f"{site_packages}/{top}")
    return tuple(sorted(found))
