"""Wheels are unpacked as their RECORD says, hide what they replace, and cannot write anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images.build_errors import BadSource, DigestMismatch, ImageError, UnsafePath
from images.digest import Digest
from images.entries import LayerEntry, check_path
from images.lock_entries import File
from images.tar import write_tar
from images.wheels import InstallPaths, check_tags, owned_paths, replacing, wheel_entries
from tests.images.entry_strategies import SETTINGS, file_sets
from tests.images.small_world import OLD, SITE, wheel

WORKER = InstallPaths(packages="worker/lib", python="3.10", reserved=("handler", "__main__.py"))
ENGINE = InstallPaths(packages=SITE, python="3.10", prefix="usr/local", interpreter="/usr/bin/python3.10")


@contextmanager
def unpacked(folder: Path, data: bytes, place: InstallPaths, name: str = "thing-1.0-py3-none-any.whl") -> Iterator[list[LayerEntry]]:
    path = folder / "wheel"
    path.write_bytes(data)
    with wheel_entries([(File(name=name, size=len(data), digest=Digest.of(data)), path)], place) as entries:
        yield entries


def contents(entries: list[LayerEntry]) -> dict[str, bytes]:
    found = {}
    for entry in entries:
        if entry.open is not None:
            with entry.open() as stream:
                found[entry.path] = stream.read()
    return found


@SETTINGS
@given(files=file_sets())
def test_what_is_unpacked_is_what_the_wheel_holds(tmp_path: Path, files: dict[str, bytes]) -> None:
    inside = {f"thing/{path}": data for path, data in files.items()}
    with unpacked(tmp_path, wheel(inside), WORKER) as entries:
        found = contents(entries)
    assert {path.removeprefix("worker/lib/"): data for path, data in found.items() if ".dist-info" not in path} == inside


def test_the_workers_tree_has_packages_and_metadata_and_nothing_to_call(tmp_path: Path) -> None:
    data = wheel({"thing/__init__.py": b"", "thing-1.0.data/data/share/man.1": b"m"}, scripts="thing = thing:main")
    with unpacked(tmp_path, data, WORKER) as entries:
        found = contents(entries)
    info = "worker/lib/thing-1.0.dist-info"
    assert sorted(found) == [
        f"{info}/METADATA",
        f"{info}/RECORD",
        f"{info}/WHEEL",
        f"{info}/entry_points.txt",
        "worker/lib/thing/__init__.py",
    ]
    assert b"bin/" not in found[f"{info}/RECORD"]
    assert b"share" not in found[f"{info}/RECORD"]


def test_an_engines_scripts_begin_with_its_interpreter(tmp_path: Path) -> None:
    data = wheel(
        {"thing/__init__.py": b"", "thing-1.0.data/scripts/run": b"#!python\nprint(1)\n", "thing-1.0.data/data/share/thing.txt": b"t"},
        scripts="thing = thing:main",
    )
    with unpacked(tmp_path, data, ENGINE) as entries:
        found = contents(entries)
        programs = {entry.path for entry in entries if entry.executable}
    assert found["usr/local/bin/run"] == b"#!/usr/bin/python3.10\nprint(1)\n"
    assert found["usr/local/bin/thing"].startswith(b"#!/usr/bin/python3.10\n")
    assert programs == {"usr/local/bin/run", "usr/local/bin/thing"}
    assert found["usr/local/share/thing.txt"] == b"t"
    record = found[f"{SITE}/thing-1.0.dist-info/RECORD"].decode()
    assert "../../../bin/thing,sha256=" in record
    assert "../../../share/thing.txt,sha256=" in record


def test_nothing_of_the_old_build_stays_visible(tmp_path: Path) -> None:
    data = wheel(
        {"fastdeploy/new.py": b"", "old_helper.py": b"new"}, name="fastdeploy_gpu", version="2.3.0", scripts="fd-new = fastdeploy:main"
    )
    with unpacked(tmp_path, data, ENGINE, "fastdeploy_gpu-2.3.0-py3-none-any.whl") as entries:
        paths = {entry.path: entry for entry in replacing(entries, (*OLD, f"/{SITE}/fastdeploy_gpu-2.3.0.post1.dist-info"), ENGINE)}
    assert f"{SITE}/fastdeploy/.wh..wh..opq" in paths
    assert f"{SITE}/fastdeploy_gpu-2.3.0.dist-info/.wh..wh..opq" in paths
    assert f"{SITE}/.wh.fastdeploy_gpu-2.3.0.post1.dist-info" in paths
    assert "usr/local/bin/.wh.fastdeploy" in paths
    assert f"{SITE}/.wh.old_helper.py" not in paths, "the wheel brings its own"
    folders = {path for path, entry in paths.items() if entry.open is None}
    assert SITE not in folders, "a folder of the base keeps the base's mode"
    assert "usr/local/bin" not in folders
    assert f"{SITE}/fastdeploy" in folders


def test_what_an_installed_distribution_owns_is_read_from_its_record() -> None:
    record = (
        "../../../bin/fastdeploy,,\nfastdeploy/__init__.py,sha256=x,1\nfastdeploy/ops/a.so,,\nfastdeploy_gpu-2.3.0.dist-info/RECORD,,\n"
        "old_helper.py,,\n__pycache__/old_helper.cpython-310.pyc,,\n"
    )
    assert owned_paths(record, f"/{SITE}") == (
        "/usr/local/bin/fastdeploy",
        f"/{SITE}/__pycache__/old_helper.cpython-310.pyc",
        f"/{SITE}/fastdeploy",
        f"/{SITE}/fastdeploy_gpu-2.3.0.dist-info",
        f"/{SITE}/old_helper.py",
    )


def write(folder: Path, data: bytes) -> None:
    """Make a layer of the wheel, and throw it away."""
    with unpacked(folder, data, WORKER) as entries:
        write_tar(entries, len, "packages")


UNSAFE = ["../out", "a/../../out", "/etc/passwd", "a//b", "./a", "a/.", "a\\b", "a\nb", ".wh.a", "a/.wh..wh..opq", "n" * 256, ""]


@pytest.mark.parametrize("path", UNSAFE)
def test_a_path_that_leaves_its_root_or_hides_files_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafePath, match="expected a plain relative path"):
        check_path(path, "here")
    if path:
        with pytest.raises(UnsafePath, match=r"thing-1\.0"), unpacked(tmp_path, wheel({path: b"x"}), WORKER):
            raise AssertionError("unpacked")


@SETTINGS
@given(path=st.text(alphabet="ab./\\\n\x00é", max_size=12))
def test_a_path_that_is_taken_stays_below_its_root(path: str) -> None:
    root = Path("/somewhere/root")
    try:
        taken = check_path(path, "here")
    except UnsafePath:
        return
    assert (root / taken).is_relative_to(root)
    assert ".." not in (root / taken).parts
    assert str(root / taken) == f"{root}/{taken}"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (wheel({"a.py": b"x"}, twice=["a.py"]), "comes twice"),
        (wheel({"a.py": b"x"}, links=["a.py"]), "a link or a device"),
        (wheel({"thing-1.0.data": b"x"}), "in a folder for their kind"),
        (wheel({"thing-1.0.data/purelib": b"x"}), "in a folder for their kind"),
        (wheel({"thing-1.0.data/other/x": b"x"}), "not contained in a valid .data subdirectory"),
        (wheel({"a.py": b"x"}, record={"a.py": b"y"}), "a.py: got sha256:"),
        (wheel({"a.py": b"x", "b.py": b"y"}, record={"a.py": b"x"}), "not mentioned in RECORD"),
        (wheel({"a.py": b"x"}, name="another"), "doesn't match wheel filename"),
        (wheel({"a.py": b"x"}, scripts="broken"), "not a wheel that can be unpacked"),
        (wheel({"handler/x.py": b""}), "which the worker itself has"),
        (wheel({"__main__.py": b""}), "which the worker itself has"),
        (b"not a zip", "not a wheel"),
        (wheel({"a.py": b"x"})[:-30], "not a wheel"),
    ],
)
def test_a_wheel_that_is_not_what_it_says_is_refused_by_name(data: bytes, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=complaint) as raised:
        write(tmp_path, data)
    assert "thing-1.0-py3-none-any.whl" in str(raised.value)


def test_names_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafePath, match="differs only in case"):
        write(tmp_path, wheel({"Thing/a.py": b"", "thing/b.py": b""}))


@SETTINGS
@given(where=st.integers(0, 10**6), cut=st.booleans())
def test_a_wheel_that_was_cut_short_or_tampered_with_is_found_by_name(tmp_path: Path, where: int, cut: bool) -> None:
    data = wheel({"thing/__init__.py": b"x = 1\n" * 50})
    position = where % len(data)
    other = data[:position] if cut else data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]
    path = tmp_path / "wheel"
    path.write_bytes(other)
    file = File(name="thing-1.0-py3-none-any.whl", size=len(data), digest=Digest.of(data))
    with pytest.raises(DigestMismatch, match=r"thing-1\.0-py3-none-any\.whl: got sha256:"), wheel_entries([(file, path)], WORKER):
        raise AssertionError("unpacked")


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("a-1-py3-none-any.whl", True),
        ("a-1-py2.py3-none-any.whl", True),
        ("a-1-cp310-cp310-manylinux_2_28_x86_64.whl", True),
        ("a-1-cp310-cp310-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("a-1-cp37-abi3-manylinux_2_28_x86_64.whl", True),
        ("a-1-1build-cp310-none-linux_x86_64.whl", True),
        ("a-1-cp311-cp311-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp311-abi3-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp310-cp310-musllinux_1_2_x86_64.whl", False),
        ("a-1-cp310-cp310-manylinux_2_28_aarch64.whl", False),
        ("a-1-cp310-cp310-win_amd64.whl", False),
        ("a-1-cp310-cp310-macosx_11_0_arm64.whl", False),
        ("a-1-py2-none-any.whl", False),
        ("a-1-py38-none-any.whl", True),
        ("a-1-py311-none-any.whl", False),
        ("a-1.tar.gz", False),
    ],
)
def test_a_wheel_for_another_python_or_platform_is_refused(name: str, fits: bool) -> None:
    if fits:
        check_tags(name, "3.10")
        return
    with pytest.raises(BadSource, match="expected"):
        check_tags(name, "3.10")


def test_a_member_that_cannot_be_read_is_found_by_name(tmp_path: Path) -> None:
    data = bytearray(wheel({"thing/big.bin": bytes(range(256)) * 40}))
    start = data.index(b"thing/big.bin") + len("thing/big.bin") + 20
    data[start : start + 8] = b"\xff" * 8
    with pytest.raises(BadSource, match=r"thing/big\.bin"):
        write(tmp_path, bytes(data))
