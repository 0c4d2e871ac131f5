"""From wheels to entries: unpacked as an installer would, checked against the lock and against their own RECORD.

PyPA's `installer` decides where each file goes; `_Destination` only notes it, so that contents are read when the layer is written and never
kept. No script of a wheel runs, and no bytecode is compiled: it would tie the bytes to the builder's own Python.

What is refused: bytes that are not the pinned ones, a wheel for another Python or platform, files that RECORD does not know or knows
otherwise, paths that leave the root, links, names that come twice or differ in case only.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from images.digest import Digest, file_digest
from images.entries import Entry, check_path, text_entry
from images.install_paths import Place
from images.lock import File

__all__ = ["check_tags", "wheel_entries"]

_ELF_PLATFORM = re.compile(r"(manylinux(1|2010|2014|_\d+_\d+)|linux)_x86_64")
_LARGEST_SCRIPT = 1 << 20


def check_tags(name: str, python: str) -> None:
    """See that a wheel of that file name runs on Python `python` (such as 3.10) on Linux with glibc and x86-64.

    Raises:
        BadSource: with what its name says and what was expected.
    """
    try:
        tags = parse_wheel_filename(name).tag.split("-")
        interpreters, abis, platforms = (tag.split(".") for tag in tags)
    except ValueError:
        raise BadSource(f"{name}: got no wheel's name, expected NAME-VERSION-PYTHON-ABI-PLATFORM.whl") from None
    major, minor = (int(number) for number in python.split("."))
    own, older = f"cp{major}{minor}", {f"cp{major}{number}" for number in range(2, minor + 1)}
    generic = {f"py{major}", *(f"py{major}{number}" for number in range(minor + 1))}
    fits = (own in interpreters and {own, "none"} & set(abis)) or ("abi3" in abis and older & set(interpreters))
    if not (fits or ("none" in abis and generic & set(interpreters))):
        raise BadSource(f"{name}: a wheel for Python {tags[0]} ({tags[1]}), expected one for {own} or py{major}")
    if not any(platform == "any" or _ELF_PLATFORM.fullmatch(platform) for platform in platforms):
        raise BadSource(f"{name}: a wheel for {tags[2]}, expected one for any platform or for linux_x86_64")


@contextmanager
def wheel_entries(wheels: Iterable[tuple[File, Path]], place: Place) -> Iterator[list[Entry]]:
    """Give the entries of wheels, each with the file that should hold it; their contents can be read until the context ends.

    Raises:
        DigestMismatch: when a file does not hold the pinned bytes.
        UnsafePath, BadSource: for what the module's text says.
    """
    with ExitStack() as stack:
        found: list[Entry] = []
        for file, path in wheels:
            check_tags(file.name, place.python)
            got, size = file_digest(path)
            if (got, size) != (file.digest, file.size):
                expected = f"{file.digest} and {file.size} bytes"
                raise DigestMismatch(f"{file.name}: got {got} and {size} bytes at {path}, expected {expected}; {FETCH_AGAIN}")
            found += _unpacked(file, stack.enter_context(_opened(file, path)), place)
        yield found


@contextmanager
def _opened(file: File, path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise BadSource(f"{file.name}: not a wheel ({error})") from None
    with archive:
        archive.filename = file.name  # the cache names files by their digest; installer reads the distribution's name from this one
        yield archive


def _unpacked(file: File, archive: zipfile.ZipFile, place: Place) -> list[Entry]:
    _check_members(file, archive)
    try:
        source = WheelFile(archive)
        source.validate_record(validate_contents=False)
        destination = _Destination(place=place, archive=archive, record=_record(source), name=file.name)
        install(source, destination, {})
    except (InstallerError, ValueError, KeyError, AssertionError, zipfile.BadZipFile, configparser.Error) as error:
        said = "; ".join(getattr(error, "issues", [str(error) or type(error).__name__]))
        raise BadSource(f"{file.name}: not a wheel that can be unpacked: {said}") from None
    for entry in destination.entries:
        top = entry.path.removeprefix(place.packages + "/").split("/", 1)[0]
        if top in place.reserved:
            raise UnsafePath(f"{file.name}: got the top-level name {top!r}, which is the worker's own")
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
    """Return what RECORD says of each file; all but RECORD itself must have a SHA-256."""
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
    """Notes where `installer` puts each file of one wheel, without reading what it holds."""

    place: Place
    archive: zipfile.ZipFile
    record: Mapping[str, RecordEntry]
    name: str
    entries: list[Entry] = field(default_factory=list)

    def write_script(self, name: str, module: str, attr: str, section: Any) -> RecordEntry:
        """Note a script that an entry point asks for."""
        name, data = Script(name, module, attr, section).generate(self.place.interpreter, "posix")
        return self._note("scripts", check_path(name, self.name), data, executable=True)

    def write_file(self, scheme: Any, path: Any, stream: BinaryIO, is_executable: bool) -> RecordEntry:
        """Note a file of the archive; only scripts are read, whose first line changes."""
        member = str(cast("Any", stream).name)
        recorded, folder = self.record[member], self.place.folder(scheme)
        if folder is not None and scheme == "scripts":
            with fix_shebang(io.BytesIO(self._script(member, recorded)), self.place.interpreter) as fixed:
                return self._note(scheme, str(path), fixed.read(), executable=True)
        if folder is not None:
            where = str(PurePosixPath(folder, str(path)))
            content = _member(self.archive, member, self.name)
            size, digest = recorded.size or 0, _digest(recorded)
            self.entries.append(Entry(path=where, size=size, executable=is_executable, digest=digest, open=content, source=self.name))
        return RecordEntry(str(path), recorded.hash_, recorded.size)

    def finalize_installation(self, scheme: Any, record_file_path: Any, records: Any) -> None:  # noqa: ARG002  # installer's signature
        """Note the RECORD of what is installed, which is not that of the wheel."""
        taken = [(kind, entry) for kind, entry in records if self.place.folder(kind) is not None]
        with construct_record_file(taken, prefix_for_scheme=self._prefix) as stream:
            self.entries.append(text_entry(f"{self.place.packages}/{record_file_path}", stream.read()))

    def _script(self, member: str, recorded: RecordEntry) -> bytes:
        info = self.archive.getinfo(member)
        data = self.archive.read(info) if info.file_size <= _LARGEST_SCRIPT else b""
        if not recorded.validate_stream(io.BytesIO(data)):
            raise DigestMismatch(f"{self.name}: {member}: got {info.file_size} bytes that RECORD does not know")
        return data

    def _note(self, scheme: str, path: str, data: bytes, *, executable: bool) -> RecordEntry:
        folder = self.place.folder(scheme)
        digest = Digest.of(data)
        if folder is not None:
            entry = text_entry(str(PurePosixPath(folder, path)), data)
            self.entries.append(Entry(path=entry.path, size=entry.size, executable=executable, digest=digest, open=entry.open))
        encoded = base64.urlsafe_b64encode(bytes.fromhex(digest.hex)).decode().rstrip("=")
        return RecordEntry(path, Hash("sha256", encoded), len(data))

    def _prefix(self, scheme: Any) -> str | None:
        """Return what stands before a path in RECORD: nothing for packages, the way out of them for the rest."""
        if scheme in ("purelib", "platlib"):
            return None
        up = "../" * len(PurePosixPath(self.place.packages).relative_to(self.place.prefix).parts)
        inside = PurePosixPath(self.place.folder(scheme) or "").relative_to(self.place.prefix)
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
