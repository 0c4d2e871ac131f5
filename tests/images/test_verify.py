"""Whatever is wrong with a layout, the independent reader says so, all of it in one run, by name."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images.build_errors import BrokenLayout
from images.digest import Digest, canonical_json
from images.tar import EPOCH
from images.verify import verify
from tests.images.entry_strategies import SETTINGS
from tests.images.small_world import World, blob, make_world, manifest_of


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("world"))
    world.build("out", "sm89", "org/name")
    return world


@pytest.fixture
def copy(built: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built.root / "out", tmp_path / "copy"))


def problems(folder: Path, built: World) -> str:
    with pytest.raises(BrokenLayout) as raised:
        verify(folder, built.lock_file)
    return "\n".join(raised.value.problems)


def layer_list(folder: Path) -> list[dict[str, Any]]:
    layers: Any = manifest_of(folder)["layers"]
    return list(layers)


def put(folder: Path, data: bytes) -> dict[str, Any]:
    digest = Digest.of(data)
    (folder / "blobs" / "sha256" / digest.hex).write_bytes(data)
    return {"digest": str(digest), "size": len(data)}


def rewrite(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change manifest and config, and make every digest fit again: what is wrong then is only what the change made wrong."""
    manifest: dict[str, Any] = dict(manifest_of(folder))
    config = json.loads(blob(folder, manifest["config"]["digest"]))
    change(manifest, config)
    manifest["config"] |= put(folder, canonical_json(config))
    descriptor = {"mediaType": "application/vnd.oci.image.manifest.v1+json", **put(folder, canonical_json(manifest))}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))


def replace_layer(folder: Path, number: int, data: bytes) -> None:
    def change(manifest: dict[str, Any], config: dict[str, Any]) -> None:
        manifest["layers"][number] |= put(folder, data)
        config["rootfs"]["diff_ids"][number] = manifest["layers"][number]["digest"]

    rewrite(folder, change)


def test_a_whole_layout_has_nothing_wrong(built: World) -> None:
    index = json.loads((built.root / "out" / "index.json").read_text())
    assert str(verify(built.root / "out", built.lock_file)) == index["manifests"][0]["digest"]


@SETTINGS
@given(which=st.integers(0, 100), where=st.integers(0, 10**6), cut=st.booleans())
def test_a_blob_that_was_cut_short_or_tampered_with_is_found_by_name(
    built: World, tmp_path_factory: pytest.TempPathFactory, which: int, where: int, cut: bool
) -> None:
    folder = Path(shutil.copytree(built.root / "out", tmp_path_factory.mktemp("tampered") / "out"))
    blobs = sorted((folder / "blobs" / "sha256").iterdir())
    path = blobs[which % len(blobs)]
    data = bytearray(path.read_bytes())
    position = where % len(data)
    if cut:
        del data[position:]
    else:
        data[position] ^= 0x20
    path.write_bytes(data)
    assert path.name in problems(folder, built)


def test_a_blob_that_is_missing_is_found_by_name(copy: Path, built: World) -> None:
    for path in sorted((copy / "blobs" / "sha256").iterdir()):
        kept = path.read_bytes()
        path.unlink()
        assert path.name in problems(copy, built)
        path.write_bytes(kept)


def member(name: str, data: bytes = b"", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), EPOCH, 0o644
    for field, value in changes.items():
        setattr(info, field, value)
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes], end: bytes = bytes(1024)) -> bytes:
    return b"".join(info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512) for info, data in members) + end


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (tar(member("b"), member("a")), "a: comes after b"),
        (tar(member("a"), member("a")), "a: comes after a"),
        (tar(member("a", mtime=1)), "a: mtime: got 1"),
        (tar(member("a", uid=1000)), "a: owner: got 1000:0"),
        (tar(member("a", uname="root")), "a: owner: got 0:0 root"),
        (tar(member("a", mode=0o600)), "a: mode: got 600"),
        (tar(member("a", mode=0o4755)), "a: mode: got 4755"),
        (tar(member("d", type=tarfile.DIRTYPE, mode=0o700)), "d: mode: got 700"),
        (tar(member("a", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "a: got an entry of type"),
        (tar(member("a", type=tarfile.CHRTYPE)), "a: got an entry of type"),
        (tar(member("a", pax_headers={"comment": "x"})), "a: PAX: got comment"),
        (tar(member("../a")), "../a: an unsafe path"),
        (tar(member("/a")), "/a: an unsafe path"),
        (tar(member("a\u202etxt")), "has invisible characters"),
        (tar(member("a\u200bb")), "has invisible characters"),
        (tar(member("a\nb")), "has invisible characters"),
        (tar(member("local_model_args.json", b"[" * 100_000)), "cannot be read"),
        (tar(member(".wh.a", b"x")), ".wh.a: a whiteout with a content, or of no name"),
        (tar(member(".wh.d/a")), "a whiteout with a content, or of no name"),
        (tar(member("a"), end=bytes(512)), "after the last entry, expected two empty blocks"),
        (tar(member("a"), end=bytes(10240)), "got 10240 bytes after the last entry"),
        (tar(member("worker/lib/other.py")), "worker/lib/other.py: is in layer"),
        (b"\x1f\x8b compressed", "cannot be read"),
    ],
)
def test_a_layer_that_breaks_a_rule_is_found_by_the_rule(copy: Path, built: World, data: bytes, complaint: str) -> None:
    replace_layer(copy, len(layer_list(copy)) - 1, data)
    assert complaint in problems(copy, built)


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(manifest: dict[str, Any], config: dict[str, Any]) -> None:
        holder: Any = {"manifest": manifest, "config": config}
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value

    return change


OTHER = str(Digest.of(b"other"))
BASE_NAME, BASE_DIGEST = (f"org.opencontainers.image.base.{name}" for name in ("name", "digest"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_set("config", "rootfs", "diff_ids", 4, value=OTHER), "layer 4: diff_id: got"),
        (_set("config", "rootfs", "diff_ids", 0, value=OTHER), "layer 0: diff_id (of the base)"),
        (_set("manifest", "layers", 0, "digest", value=OTHER), "layer 0: digest (of the base)"),
        (_set("manifest", "layers", 1, "size", value=11), "layer 1: size (of the base)"),
        (_set("manifest", "layers", 4, "size", value=11), "layer 4: size: got"),
        (_set("manifest", "layers", 4, "mediaType", value="application/vnd.oci.image.layer.v1.tar+gzip"), "layer 4: mediaType"),
        (_set("manifest", "layers", 4, "digest", value="md5:0"), "layer 4: digest: got 'md5:0'"),
        (_set("manifest", "mediaType", value="text/plain"), "manifest: mediaType: got text/plain"),
        (_set("config", "history", value=[]), "config: history: entries of layers: got 0"),
        (_set("config", "config", "Labels", value={}), "label base.name: got None"),
        (_set("config", "config", "Labels", BASE_DIGEST, value=OTHER), "label base.digest"),
        (_set("config", "config", "Env", value=["HF_TOKEN=hf_x"]), "Env: HF_TOKEN looks like a secret"),
        (_set("config", "config", "Env", value=["NOTE=hf_" + "a" * 34]), "Env: NOTE looks like a secret"),
    ],
)
def test_a_manifest_or_config_that_lies_is_found(copy: Path, built: World, change: Callable[..., None], complaint: str) -> None:
    rewrite(copy, change)
    assert complaint in problems(copy, built)


def key(*parts: str) -> bytes:
    """A made-up key, put together here so that no file holds one."""
    return "".join(parts).encode()


@pytest.mark.parametrize(
    "secret",
    [
        key("hf", "_", "aB3" * 12),
        key("rpa", "_", "A1B2C3D4E5" * 4),
        key("sk", "-", "proj-", "aB3_" * 10),
        key("gh", "p_", "aB3" * 12),
        key("github", "_pat_", "aB3" * 20),
        key("glpat", "-", "aB3-" * 6),
        key("AK", "IA", "ABCDEFGH12345678"),
        key("AI", "za", "aB3_-" * 7),
        key("-----BEGIN RSA ", "PRIVATE KEY-----"),
    ],
    ids=lambda secret: secret.decode()[:6],
)
@pytest.mark.parametrize("name", ["worker/lib/handler/notes.json", "worker/lib/checkpoint/x.py", "local_model_args.json"])
def test_what_looks_like_a_key_in_a_file_of_ours_is_found_and_not_shown(secret: bytes, name: str, copy: Path, built: World) -> None:
    content = b'{"key": "' + secret + b'"}'
    replace_layer(copy, len(layer_list(copy)) - 1, tar(member(name, content)))
    said = problems(copy, built)
    assert f"{name}: holds what looks like a secret ({secret.decode()[:4]}...), which no image may hold" in said
    assert secret.decode() not in said


@pytest.mark.parametrize("content", [b"hf_transfer", b"a task-list, risk-free", b'"sk-" + key', b"HF_TOKEN", b"hf_" + b"x" * 20])
def test_a_word_that_only_begins_like_a_key_is_none(content: bytes, copy: Path, built: World) -> None:
    replace_layer(copy, len(layer_list(copy)) - 1, tar(member("worker/lib/handler/x.py", content)))
    verify(copy, built.lock_file)


def test_our_own_files_hold_nothing_that_looks_like_a_key() -> None:
    from images.verify import _TOKEN
    from images.worker_layers import PACKAGES, TREE

    for name in PACKAGES["cpu"]:
        for path in (TREE / name).rglob("*"):
            if path.suffix in (".py", ".json"):
                assert not _TOKEN.search(path.read_bytes()), path


def test_layers_in_another_order_are_found(copy: Path, built: World) -> None:
    def swap(manifest: dict[str, Any], config: dict[str, Any]) -> None:
        for entries in (manifest["layers"], config["rootfs"]["diff_ids"]):
            entries[0], entries[1] = entries[1], entries[0]

    rewrite(copy, swap)
    assert "layer 0: digest (of the base)" in problems(copy, built)


def test_a_layer_that_is_left_out_is_found(copy: Path, built: World) -> None:
    def drop(manifest: dict[str, Any], config: dict[str, Any]) -> None:
        paths = [index for index, layer in enumerate(manifest["layers"]) if index > 2 and b"safetensors" in blob(copy, layer["digest"])]
        for entries in (manifest["layers"], config["rootfs"]["diff_ids"], config["history"]):
            del entries[paths[0]]

    rewrite(copy, drop)
    assert "no layer has models/models--org--name/snapshots/" in problems(copy, built)


def test_a_models_file_that_is_not_the_locks_is_found(copy: Path, built: World) -> None:
    layers = list(enumerate(layer_list(copy)))
    number = next(number for number, layer in layers[3:] if b"model-00001-of-00002.safetensors" in blob(copy, layer["digest"]))
    data = blob(copy, layers[number][1]["digest"])
    replace_layer(copy, number, data.replace(b"oneoneone", b"twotwotwo", 1))
    assert "model-00001-of-00002.safetensors: sha256: got" in problems(copy, built)


def test_too_many_layers_and_too_many_bytes_are_found(copy: Path, built: World) -> None:
    def grow(manifest: dict[str, Any], config: dict[str, Any]) -> None:
        manifest["layers"] += [manifest["layers"][-1]] * 120
        config["rootfs"]["diff_ids"] += [config["rootfs"]["diff_ids"][-1]] * 120
        config["history"] += [{}] * 120
        manifest["layers"][0]["size"] = 81 * 10**9

    rewrite(copy, grow)
    said = problems(copy, built)
    assert "layers, expected at most 127" in said
    assert "expected at most 80000000000" in said


def test_all_mismatches_are_said_in_one_run(copy: Path, built: World) -> None:
    (copy / "oci-layout").unlink()
    rewrite(copy, _set("config", "config", "Env", value=["API_KEY=x"]))
    replace_layer(copy, 3, tar(member("b", mtime=2), member("a", uid=7)))
    said = problems(copy, built)
    for part in ("oci-layout: cannot be read", "API_KEY looks like a secret", "b: mtime: got 2", "a: owner: got 7:0", "a: comes after b"):
        assert part in said


@pytest.mark.parametrize("text", ["", "{", "[]", '{"manifests": []}', '{"manifests": [{}, {}]}', '{"manifests": [{"digest": "x"}]}'])
def test_an_index_that_is_none_is_found(copy: Path, built: World, text: str) -> None:
    (copy / "index.json").write_text(text)
    assert "index.json" in problems(copy, built)


def test_pythons_tarfile_agrees_that_our_layers_are_tars(built: World) -> None:
    for layer in layer_list(built.root / "out")[3:]:
        with tarfile.open(fileobj=io.BytesIO(blob(built.root / "out", layer["digest"]))) as opened:
            assert opened.getmembers()
