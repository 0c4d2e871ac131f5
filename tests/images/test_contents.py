"""What an image is made of: its layers are disjoint and complete, the environment tells the worker the truth, the impossible is refused."""

from __future__ import annotations

import errno
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.settings import read_settings
from images import contents
from images.build import build_image
from images.build_errors import BadSource, Missing, TooLarge, UnknownChoice, Unlocked, UnsafePath
from images.contents import ImageSpec, check_spec, plan_image
from images.digest import Digest
from images.gpu_types import read_gpu_types
from images.layout import OciLayout
from images.lock_entries import LockedModel, ModelFile, Packages
from images.model_layers import LARGE, groups, model_entries
from images.releases import read_releases
from images.tar import tar_size, write_tar
from images.worker_layers import TOGETHER, worker_entries, worker_groups
from tests.images.entry_strategies import SETTINGS, file_sets
from tests.images.small_world import MODEL, World, base, blob, make_world, manifest_of

SIZES = st.integers(0, 100) | st.integers(1 << 20, 6 << 30)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def layers(folder: Path) -> list[dict[str, bytes | None]]:
    """The layers that a layout holds, bottom first: each path and its content, None for a folder."""
    found = []
    for layer in manifest_of(folder)["layers"]:  # type: ignore[attr-defined]
        if not (folder / "blobs" / "sha256" / layer["digest"][7:]).exists():
            continue
        with tarfile.open(fileobj=io.BytesIO(blob(folder, layer["digest"]))) as tar:
            found.append({member.name: tar.extractfile(member).read() if member.isfile() else None for member in tar})  # type: ignore[union-attr]
    return found


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = manifest_of(folder)["config"]  # type: ignore[assignment]
    return dict(json.loads(blob(folder, config["digest"])))


@pytest.mark.parametrize(
    ("architecture", "model"), [("cpu", ""), ("cpu", "org/name"), ("sm89", ""), ("sm89", "org/name"), ("sm86", "org/name")]
)
def test_layers_are_disjoint_and_their_union_is_the_input(world: World, architecture: str, model: str) -> None:
    folder, _ = world.build("out", architecture, model)
    files = [path for layer in layers(folder) for path, data in layer.items() if data is not None]
    assert len(files) == len(set(files))
    whole = {path: data for layer in layers(folder) for path, data in layer.items() if data is not None}
    for path in world.handler.rglob("*.py"):
        assert whole[f"worker/lib/handler/{path.relative_to(world.handler)}"] == path.read_bytes()
    assert "worker/lib/handler/notes.txt" not in whole
    assert whole["worker/lib/other.py"] == b"x = 1\n"
    snapshot = f"models/models--org--name/snapshots/{COMMIT}"
    baked = {path.removeprefix(snapshot + "/"): data for path, data in whole.items() if path.startswith(snapshot)}
    assert baked == (MODEL if model else {})


@SETTINGS
@given(sizes=st.lists(SIZES, max_size=30))
def test_a_models_files_share_layers_evenly_and_each_has_its_place(sizes: list[int]) -> None:
    files = tuple(ModelFile(path=f"shard-{number:03}", size=size, digest=Digest.of(b"")) for number, size in enumerate(sizes))
    files += (ModelFile(path="config.json", size=10, digest=Digest.of(b"")),)
    model = LockedModel(repository="org/name", revision="main", commit=COMMIT, files=files)
    parts = groups(model)
    assert sorted(file.path for part in parts for file in part) == sorted(file.path for file in files)
    assert all(len(part) == 1 for part in parts if any(file.size >= LARGE for file in part))
    shared = [sum(file.size for file in part) for part in parts if part[0].size < LARGE]
    largest = max(file.size for file in files if file.size < LARGE)
    assert max(shared) - min(shared) <= largest
    assert groups(replace(model, files=tuple(reversed(files)))) == parts, "the order of the listing does not show"


@SETTINGS
@given(files=file_sets())
def test_the_workers_files_share_small_layers_by_their_names_alone(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tree = tmp_path_factory.mktemp("tree")
    source = tree / "handler"
    source.mkdir()
    (source / "__main__.py").write_bytes(b"")
    for path, data in files.items():
        place = source / "f" / f"{path}.py"
        if max(len(part.encode()) for part in place.parts) > 255:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    try:
        entries = worker_entries("cpu", tree)
    except UnsafePath:
        return
    parts = worker_groups(entries)
    inside = [[entry.path for entry in part if entry.open is not None] for part in parts]
    assert [path for part in inside for path in part] == [entry.path for entry in entries]
    assert all(len(part) <= TOGETHER for part in inside)


@pytest.mark.parametrize("place", ["handler/secret.py", "handler/folder", "checkpoint"])
def test_a_symbolic_link_is_not_followed_into_the_image(world: World, tmp_path: Path, place: str) -> None:
    """Its target may be a file of the builder's own machine, such as one with a key."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "key.json").write_text('{"key": "value"}')
    target = tmp_path / "elsewhere" / "key.json" if place.endswith(".py") else tmp_path / "elsewhere"
    link = world.handler.parent / place
    link.symlink_to(target)
    try:
        with pytest.raises(UnsafePath, match=f"{place}: a symbolic link, expected files and folders"):
            worker_entries("cpu", world.handler.parent)
    finally:
        link.unlink()


def test_an_editors_lock_on_a_file_is_no_file_of_the_worker(world: World) -> None:
    link = world.handler / ".#job.py"
    link.symlink_to("somebody@host.1234")
    try:
        assert not [entry.path for entry in worker_entries("cpu", world.handler.parent) if "#" in entry.path]
    finally:
        link.unlink()


def test_a_file_that_cannot_be_read_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def broken(path: Path) -> bytes:
        if path.name == "part3.py":
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(BadSource, match=r"part3\.py: cannot be read \(Input/output error\)"):
        worker_entries("cpu", world.handler.parent)


def test_an_edit_of_the_worker_changes_one_layer_of_less_than_100_kb(world: World) -> None:
    entries = worker_entries("cpu")
    sizes = [tar_size(part) for part in worker_groups(entries)]
    assert max(sizes) < 100_000, sizes
    before = manifest_of(world.build()[0])["layers"]
    (world.handler / "part3.py").write_text("number = 'three'\n")
    after = manifest_of(world.build()[0])["layers"]
    assert isinstance(before, list)
    assert isinstance(after, list)
    assert len([1 for old, new in zip(before, after, strict=True) if old != new]) == 1


def test_the_engine_is_told_what_the_image_covers(world: World, tmp_path: Path) -> None:
    folder, _ = world.build("out", "sm89", "org/name", "wint4")
    container = config_of(folder)["config"]
    variables = dict(text.split("=", 1) for text in container["Env"])
    assert container["Entrypoint"] == ["/usr/bin/python3.10", "-I", "-S", "-B", "/worker/lib"]
    assert "Cmd" not in container
    assert variables["PATH"] == "/usr/bin:/bin"
    assert not {"PYTHONPATH", "PYTHONHOME"} & set(variables), "the engine's interpreter must not see the worker's packages"
    baked = tmp_path / "local_model_args.json"
    baked.write_bytes(next(data for layer in layers(folder) for path, data in layer.items() if path == baked.name and data))
    settings = read_settings(variables, baked=baked, engine_names=["QUANTIZATION"])
    assert (settings.engine.kind, settings.engine.release, settings.engine.python) == ("fastdeploy", "2.3", "/usr/bin/python3.10")
    assert (settings.engine.image_architectures, settings.engine.image_cuda) == ("86,89", "12.6")
    assert (settings.model.source, settings.model.revision, settings.model.baked) == ("org/name", COMMIT, "/models")
    assert settings.texts["QUANTIZATION"] == "wint4"
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_a_baked_model_is_found_by_the_worker(world: World, tmp_path: Path) -> None:
    from checkpoint.find import find_cached

    folder, _ = world.build("out", "cpu", "org/name")
    root = tmp_path / "root"
    for layer in layers(folder):
        for path, data in layer.items():
            if data is None:
                (root / path).mkdir(parents=True, exist_ok=True)
            else:
                (root / path).write_bytes(data)
    snapshot = root / "models" / "models--org--name" / "snapshots" / COMMIT
    assert sorted(path.name for path in snapshot.iterdir()) == sorted(MODEL)
    assert (root / "models" / "models--org--name" / "refs" / "main").read_text() == COMMIT
    assert find_cached(root / "models", "org/name", COMMIT) is None, "these bytes are no weights, and the worker says so"


def test_labels_and_history_say_where_it_comes_from(world: World) -> None:
    folder, _ = world.build("out", "sm89")
    config = config_of(folder)
    prefix = "org.opencontainers.image."
    told = {name.removeprefix(prefix): value for name, value in config["config"]["Labels"].items() if name.startswith(prefix)}
    locked = world.lock.base(world.target("sm89"))
    assert told.pop("version")
    assert told == {
        "base.digest": str(locked.manifest.digest),
        "base.name": locked.reference,
        "licenses": "Apache-2.0",
        "revision": "c0ffee",
    }
    assert config["config"]["Labels"]["a"] == "b", "the base's own labels stay"
    assert len(config["history"]) == len(config["rootfs"]["diff_ids"])
    assert [entry["created_by"] for entry in config["history"][:3]] == ["vendor"] * 3


@pytest.mark.parametrize(
    ("architecture", "model", "quantization", "complaint"),
    [
        ("sm89", "", "wint4", "quantization: got 'wint4' without a model"),
        ("sm89", "org/name", "wint44", "did you mean wint4"),
        ("cpu", "org/name", "wint4", "the CPU engine has none"),
    ],
)
def test_what_does_not_go_together_is_refused(world: World, architecture: str, model: str, quantization: str, complaint: str) -> None:
    with pytest.raises(UnknownChoice, match=complaint):
        world.plan(architecture, model, quantization)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"user": "1000:"}, "user: got '1000:', expected a number or a name of the image"),
        ({"user": "a b"}, "user: got 'a b'"),
        ({"user": "root\nENV=1"}, "user: got "),
        ({"revision": "main"}, "revision: got 'main' without a model"),
    ],
)
def test_a_user_or_a_revision_that_cannot_be_is_refused(world: World, changes: dict[str, str], complaint: str) -> None:
    with pytest.raises(UnknownChoice, match=complaint):
        check_spec(ImageSpec(target=world.target("cpu"), **changes))


def test_the_user_of_a_container_is_the_bases_unless_one_is_named(world: World) -> None:
    assert "User" not in config_of(world.build()[0])["config"]
    plan = plan_image(ImageSpec(target=world.target("cpu"), user="1000:1000"), world.releases, world.lock, world.cache)
    build_image(plan, OciLayout(world.root / "with-user"), world.cache)
    assert config_of(world.root / "with-user")["config"]["User"] == "1000:1000"


def test_a_missing_input_is_named_with_the_command_that_brings_it(world: World) -> None:
    digest = world.lock.model("org/name").files[1].digest
    world.cache.path(digest).unlink()
    with pytest.raises(Missing, match=r"model-00001-of-00002.safetensors: got nothing .*python -m images fetch arch=cpu model=org/name"):
        world.build("out", "cpu", "org/name")
    world.cache.path(digest).write_bytes(b"cut short")
    with pytest.raises(Missing, match="got 9 bytes"):
        world.build("out", "cpu", "org/name")


def test_a_model_that_is_not_pinned_stops_the_plan(world: World) -> None:
    with pytest.raises(Unlocked, match=r"the model org/other: .*ci/just lock arch=cpu model=org/other"):
        world.plan("cpu", "org/other")


def test_a_base_without_the_old_build_is_refused_where_it_is_to_be_replaced(world: World) -> None:
    world.having(base(world.target("sm89").base))
    with pytest.raises(BadSource, match=r"no FastDeploy in /usr/local/lib/python3.10/dist-packages"):
        world.plan("sm89")


@pytest.mark.parametrize(
    ("count", "size", "complaint"), [(127, 1, "layers: got 130"), (3, 80 * 10**9, "size: got 240.0 GB, expected at most 80")]
)
def test_an_image_that_no_registry_or_runpod_takes_is_refused(world: World, count: int, size: int, complaint: str) -> None:
    world.having(base(world.target("cpu").base, layers=count, size=size))
    with pytest.raises(TooLarge, match=complaint):
        world.plan()


def test_a_base_for_another_platform_is_refused(world: World) -> None:
    world.having(base(world.target("cpu").base, architecture="arm64"))
    with pytest.raises(BadSource, match="got an image for linux/arm64, expected linux/amd64"):
        world.build()


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a//b", "a\\b", "a/./b"])
def test_the_lock_holds_no_path_that_leaves_its_folder(path: str) -> None:
    with pytest.raises(ValueError, match="path: got "):
        ModelFile(path=path, size=1, digest=Digest.of(b"x"))


@pytest.mark.parametrize("path", [".wh.x", "a\u202etxt.json", "a\u200bb", "a\nb", "a\u2028b"])
def test_a_models_path_that_hides_files_or_looks_like_another_is_refused(path: str, tmp_path: Path) -> None:
    file = ModelFile(path=path, size=1, digest=Digest.of(b"x"))
    model = LockedModel(repository="org/name", revision="main", commit=COMMIT, files=(file,))
    with pytest.raises(UnsafePath, match="org/name at 0123456789ab: got the path"):
        write_tar(model_entries(model, model.files, lambda _: tmp_path), len, "model")


def test_a_model_without_a_config_is_refused() -> None:
    model = LockedModel(repository="org/name", revision="main", commit=COMMIT, files=())
    with pytest.raises(BadSource, match=r"got no config.json"):
        groups(model)


def test_two_wheels_with_one_file_are_refused(world: World) -> None:
    from tests.images.small_world import wheel

    target = world.target("cpu")
    old = next(entry for entry in world.lock.packages if entry.engine == "cpu")
    rival = world.file("rival-1.0-py3-none-any.whl", wheel({"other.py": b"y = 2\n"}, name="rival"))
    world.having(Packages(engine="cpu", python=target.python, requirements=old.requirements, wheels=(*old.wheels, rival)))
    with pytest.raises(UnsafePath, match=r"worker/lib/other\.py' comes twice"):
        world.build()


def test_every_combination_that_exists_can_be_asked_for_and_no_other() -> None:
    releases = read_releases()
    for target in releases.targets():
        assert releases.target(target.architecture, target.release, target.cuda) == target
        assert target.architecture == "cpu" or target.architecture in target.covers
    for asked in [("sm91",), ("sm89", "2.6.0"), ("sm89", "2.3.0", "12.9"), ("cpu", "2.3.0"), ("", "")]:
        with pytest.raises(UnknownChoice, match=r"expected one of|leave"):
            releases.target(*asked)


def test_every_gpu_pool_has_gpus_and_the_pools_of_a_kind_do_not_mix_what_an_image_splits() -> None:
    releases, gpus = read_releases(), read_gpu_types()
    split = {target.covers for target in releases.targets() if target.release == "2.3.0"}
    for pool in {gpu.pool for gpu in gpus if gpu.pool}:
        architectures = {gpu.architecture for gpu in gpus if gpu.pool == pool}
        served = [covers for covers in split if architectures & set(covers)]
        assert len(served) <= 1, (pool, architectures)
    assert contents.LAYERS == 127
