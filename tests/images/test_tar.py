"""The tar writer's rules, by number (images/tar.py), and the two golden digests."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images.build_errors import BadSource, DigestMismatch, UnsafePath
from images.digest import Digest
from images.entries import LayerEntry, data_entry, folder, with_parents
from images.image import ContainerConfig, NewLayer, append
from images.tar import EPOCH, header, tar_size, write_tar
from tests.images.entry_strategies import PATHS, SETTINGS, entries_of, file_sets
from tests.images.small_world import base


def tar_of(entries: list[LayerEntry]) -> bytes:
    out = io.BytesIO()
    write_tar(entries, out.write, "a law")
    return out.getvalue()


@SETTINGS
@given(files=file_sets(), seed=st.integers(0, 1000))
def test_rule_1_any_order_of_the_entries_gives_the_same_bytes(files: dict[str, bytes], seed: int) -> None:
    entries = with_parents(entries_of(files))
    shuffled = list(entries)
    random.Random(seed).shuffle(shuffled)
    assert tar_of(entries) == tar_of(shuffled)


@SETTINGS
@given(files=file_sets())
def test_rules_1_to_4_pythons_tarfile_reads_what_was_written(files: dict[str, bytes]) -> None:
    executable = frozenset(list(files)[::2])
    data = tar_of(with_parents(entries_of(files, executable)))
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = tar.getmembers()
        read = {member.name: tar.extractfile(member).read() for member in members if member.isfile()}  # type: ignore[union-attr]
    assert read == files
    names = [member.name.encode() for member in members]
    assert names == sorted(names)
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (EPOCH, 0, 0, "", "")
        assert member.mode == (0o755 if member.isdir() or member.name in executable else 0o644)
        assert member.isdir() or member.isreg()


@SETTINGS
@given(path=PATHS)
def test_rule_5_a_path_has_a_pax_record_exactly_when_the_header_cannot_hold_it(path: str) -> None:
    written = header(data_entry(path, b""))
    cuts = [cut for cut in range(len(path)) if path[cut] == "/" and cut <= 155 and len(path) - cut - 1 <= 100]
    fits = path.isascii() and (len(path) <= 100 or bool(cuts))
    assert (len(written) == 512) == fits
    with tarfile.open(fileobj=io.BytesIO(written + bytes(1024)), mode="r:") as tar:
        [member] = tar.getmembers()
    assert member.name == path
    assert set(member.pax_headers) == (set() if fits else {"path"})


@pytest.mark.parametrize("size", [8**11 - 1, 8**11, 8**12])
def test_rule_5_a_size_of_8_gib_has_a_pax_record(size: int) -> None:
    written = header(LayerEntry(path="shard", size=size, open=io.BytesIO))
    with tarfile.open(fileobj=io.BytesIO(written), mode="r:") as tar:
        member = tar.next()
    assert member is not None
    assert member.size == size
    assert ("size" in member.pax_headers) == (size >= 8**11)


@SETTINGS
@given(files=file_sets())
def test_rule_6_the_size_is_known_before_a_byte_is_written(files: dict[str, bytes]) -> None:
    entries = with_parents(entries_of(files))
    assert len(tar_of(entries)) == tar_size(entries)


@SETTINGS
@given(data=st.binary(min_size=1, max_size=3000), where=st.integers(0, 10**6), kind=st.sampled_from(["changed", "cut", "grown"]))
def test_rule_7_a_content_that_is_not_the_pinned_one_is_found_by_name(data: bytes, where: int, kind: str) -> None:
    position = where % len(data)
    other = {
        "changed": data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :],
        "cut": data[:position],
        "grown": data + b"x",
    }[kind]
    entry = LayerEntry(path="models/shard", size=len(data), digest=Digest.of(data), open=lambda: io.BytesIO(other), source="org/name")
    with pytest.raises((BadSource, DigestMismatch), match="org/name: models/shard: got"):
        tar_of([entry])


def test_rule_7_memory_does_not_grow_with_the_content(tmp_path: Path) -> None:
    import tracemalloc

    size = 64 << 20
    (tmp_path / "shard").write_bytes(bytes(size))
    entry = LayerEntry(path="shard", size=size, open=lambda: (tmp_path / "shard").open("rb", buffering=0))
    tracemalloc.start()
    try:
        write_tar([entry], len, "a law")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("paths", "complaint"),
    [
        (["a", "a"], "comes twice"),
        (["a", "a/b"], "'a' is a file"),
        (["Lib/x", "lib/y"], "differs only in case"),
        (["\u00e9", "e\u0301"], "differs only in case or composition"),
    ],
)
def test_paths_that_cannot_stand_together_are_refused(paths: list[str], complaint: str) -> None:
    with pytest.raises(UnsafePath, match=complaint):
        tar_of([data_entry(path, b"") for path in paths])


def test_the_bytes_of_a_layer_are_these_for_all_time() -> None:
    entries = [
        folder("worker"),
        data_entry("worker/a.txt", b"hello\n"),
        LayerEntry(path="worker/run", size=2, executable=True, open=lambda: io.BytesIO(b"#!")),
        data_entry("worker/" + "n" * 120, b""),
        data_entry("worker/größe", b"\x00" * 513),
        data_entry("/".join(["d" * 60] * 3), b"split"),
    ]
    data = tar_of(entries)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (8704, "16558e6832fef696b73306e9e39cfd11a5f5e85fb205655ebc8b875621cb842a")


def test_the_digest_of_a_small_image_is_this_for_all_time() -> None:
    data = tar_of([data_entry("worker/lib/__main__.py", b"print('worker')\n")])
    layer = NewLayer(digest=Digest.of(data), size=len(data), title="worker")
    settings = ContainerConfig(
        entrypoint=["/usr/bin/python3.10", "/worker/lib"],
        directory="/worker",
        environment={"ENGINE": "cpu"},
        labels={"org.opencontainers.image.licenses": "Apache-2.0"},
    )
    image = append(base("registry.example/base:1"), [layer], settings)
    assert str(image.digest) == "sha256:2677489d7d0b5bb1c30407657b3d7960a4278c985fa3344de750df7e13d278f5"
