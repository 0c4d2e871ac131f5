r"""Write a layer: entries in, the bytes of a tar out, a function of the entries alone.

A layer's digest is the digest of these bytes. Python's tarfile keeps the format but not the bytes: its versions differ in what they write
into fields without a meaning for a file, and in when they add a PAX record. The header is small, so it is written here in full, after
POSIX.1-1988 (ustar) and POSIX.1-2001 (PAX):

    offset  size  field      content
         0   100  name       the path, or its end where it has to be split; a folder's ends with /
       100     8  mode       0000644, 0000755
       108     8  uid        0000000
       116     8  gid        0000000
       124    12  size       bytes of content, in octal
       136    12  mtime      EPOCH
       148     8  checksum   sum of all bytes of the header, with these eight as blanks; six digits, NUL, blank
       156     1  type       0 a file, 5 a folder, x a PAX record for the entry that follows
       157   100  linkname   empty: there are no links
       257     8  magic      ustar NUL 00
       265    80  owner      empty: two names of 32 bytes, and two device numbers of 8
       345   155  prefix     the path's beginning, where it was split at a /
       500    12  padding    NULs

 1. Entries come in the order of their paths' bytes, each path once (`entries.ordered`).
 2. Every time is EPOCH, every owner and group is 0 and has no name.
 3. A folder's mode is 755; a file's is 755 for a program and 644 for any other file, whatever the umask.
 4. A number is written in octal with leading zeros and one NUL at its end.
 5. A path of ASCII that fits name, or prefix and name when split at its last possible /, has no PAX record. Any other path, and a size of
    8 GiB or more, has one, with nothing else in it: records "LENGTH key=value\n", path before size.
 6. Content is padded with NULs to the next 512 bytes; two blocks of NULs end the file, and nothing follows.
 7. Content is read and written in pieces of at most CHUNK bytes, so memory does not grow with it. It is hashed on the way, large files in
    another thread, and an entry whose size or digest is not the pinned one is an error with its name.
 8. Nothing is compressed: versions of a compressor write different bytes, and weights do not shrink. So a layer's digest is its diff_id.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from images.build_errors import FETCH_AGAIN, BadSource, DigestMismatch
from images.digest import CHUNK
from images.entries import LayerEntry, ordered

__all__ = ["EPOCH", "Write", "tar_size", "write_tar"]

EPOCH = 315532800
"""1980-01-01T00:00:00Z, the oldest time that a zip file can hold, so that the files of an image can be packed again."""

_BLOCK = 512
_LARGEST = 8**11
"""The smallest size that does not fit the header's eleven octal digits."""

_QUEUE = 4
"""Pieces that may wait for the thread which hashes them, while the disk is faster."""

Write = Callable[[bytes | memoryview], object]


def write_tar(entries: Iterable[LayerEntry], write: Write, source: str) -> None:
    """Write the tar of `entries` through `write`; errors call the layer `source`.

    Raises:
        UnsafePath: when the paths cannot be in one layer (`entries.ordered`).
        DigestMismatch, BadSource: when a content is not the pinned one; what was written so far is useless then.
    """
    with ThreadPoolExecutor(max_workers=1) as hasher:
        for entry in ordered(entries, source):
            write(header(entry))
            if entry.open is not None:
                _copy(entry, write, hasher)
                write(bytes(-entry.size % _BLOCK))
    write(bytes(2 * _BLOCK))


def tar_size(entries: Iterable[LayerEntry]) -> int:
    """Return the size in bytes of the tar of `entries`."""
    return sum(len(header(entry)) + entry.size + -entry.size % _BLOCK for entry in entries) + 2 * _BLOCK


def header(entry: LayerEntry) -> bytes:
    """Return what precedes the entry's content: its header, after a PAX record where rule 5 asks for one."""
    path = entry.path.encode() + (b"/" if entry.open is None else b"")
    split = _split(path)
    kind, mode = (b"5", 0o755) if entry.open is None else (b"0", 0o755 if entry.executable else 0o644)
    records = b"" if split else _record(b"path", path)
    size = entry.size
    if size >= _LARGEST:
        records, size = records + _record(b"size", b"%d" % size), 0
    prefix, name = split or (b"", path[:100])
    return (_pax(records) if records else b"") + _block(prefix, name, mode, size, kind)


def _split(path: bytes) -> tuple[bytes, bytes] | None:
    """Return the prefix and the name that write `path`, or None when it does not fit them."""
    if not path.isascii():
        return None
    if len(path) <= 100:
        return b"", path
    cut = path.rfind(b"/", 0, min(len(path) - 1, 156))
    name = path[cut + 1 :]
    return (path[:cut], name) if cut > 0 and len(name) <= 100 else None


def _block(prefix: bytes, name: bytes, mode: int, size: int, kind: bytes) -> bytes:
    start = name.ljust(100, b"\0") + b"%07o\0" % mode + b"%07o\0" % 0 * 2 + b"%011o\0" % size + b"%011o\0" % EPOCH
    end = kind + bytes(100) + b"ustar\x0000" + bytes(80) + prefix.ljust(155, b"\0") + bytes(12)
    checksum = sum(start) + 8 * ord(" ") + sum(end)
    return start + b"%06o\0 " % checksum + end


def _pax(records: bytes) -> bytes:
    return _block(b"", b"././@PaxHeader", 0o644, len(records), b"x") + records + bytes(-len(records) % _BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    r"""Return "LENGTH key=value\n", where LENGTH counts itself."""
    length = rest = len(key) + len(value) + 3
    while rest + len(b"%d" % length) != length:
        length = rest + len(b"%d" % length)
    return b"%d %s=%s\n" % (length, key, value)


def _copy(entry: LayerEntry, write: Write, hasher: Executor) -> None:
    """Write the content of an entry, and check that it is the pinned one; `hasher` hashes what is more than one piece."""
    assert entry.open is not None  # noqa: S101  # for the type checker: a folder has no content
    sha, size = hashlib.sha256(), 0
    queue: deque[Future[None]] = deque()
    with entry.open() as stream:
        while (piece := stream.read(CHUNK)) and (size := size + len(piece)) <= entry.size:
            if entry.size <= CHUNK:
                sha.update(piece)
            else:
                queue.append(hasher.submit(sha.update, piece))
            if len(queue) > _QUEUE:
                queue.popleft().result()
            write(piece)
    for hashed in queue:
        hashed.result()
    what = f"{entry.source or 'the builder'}: {entry.path}"
    if size != entry.size:
        raise BadSource(f"{what}: got {'more' if size > entry.size else size} bytes, expected {entry.size}; {FETCH_AGAIN}")
    if entry.digest and sha.hexdigest() != entry.digest.hex:
        raise DigestMismatch(f"{what}: got sha256:{sha.hexdigest()}, expected {entry.digest}; {FETCH_AGAIN}")
