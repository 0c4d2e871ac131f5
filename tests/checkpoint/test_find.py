"""Where weights are looked for, in which order, and what is passed over."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint.find import Places, Source, Weights, find_cached, find_weights
from checkpoint.unavailable import ModelUnavailable
from tests.checkpoint.checkpoints import write_checkpoint
from tests.twins.model_hub import Fault, ModelHub

NAME = "Org/Model-7B"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def wanted(name: str = NAME, revision: str = "", *, endpoint: str = "", hub: str = "huggingface") -> Source:
    return Source(name=name, revision=revision, endpoint=endpoint, hub=hub)


def places(root: Path, **others: Path | None) -> Places:
    found: Any = {"baked": root / "models", "cached": root / "cached", "volume": root / "volume", "home": root / "home"}
    return Places(**found | others)


def put(cache: Path, *, name: str = "models--Org--Model-7B", commit: str = COMMIT, revision: str = "main", seed: int = 0) -> Path:
    """Put a whole checkpoint into a Hugging Face cache."""
    snapshot = write_checkpoint(cache / name / "snapshots" / commit, seed=seed)
    (cache / name / "refs").mkdir(exist_ok=True)
    (cache / name / "refs" / revision).write_text(commit)
    return snapshot


def test_a_directory_is_served_as_it_is(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = find_weights(wanted(str(model), "v1"), places(tmp_path))
    assert found == Weights(model=str(model), directory=model, origin="directory")
    assert "MODEL_REVISION=v1 says nothing about a directory" in caplog.text


def test_a_directory_that_is_not_whole_names_what_is_missing(model: Path, tmp_path: Path) -> None:
    (model / "model-00002-of-00003.safetensors").unlink()
    (model / "model-00003-of-00003.safetensors").write_bytes(b"")
    expected = "the directory holds no whole checkpoint: model-00002-of-00003.safetensors: missing; model-00003-of-00003.safetensors: not"
    with pytest.raises(ModelUnavailable, match=expected):
        find_weights(wanted(str(model)), places(tmp_path))


@pytest.mark.parametrize(
    "source", ["/nowhere/model", "./model", "~/model", "model", "org/model/more", "org/", "a b/c", "~nobody-has-this-name/model"]
)
def test_what_is_neither_a_directory_nor_a_name_is_told(source: str, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"^MODEL: got .*, which is no directory here and no repository name"):
        find_weights(wanted(source), places(tmp_path))


def test_a_directory_that_cannot_be_looked_at_is_told_with_the_systems_reason() -> None:
    with pytest.raises(ModelUnavailable, match=r"^MODEL=/nn*: cannot be read \(.*File name too long"):
        find_weights(wanted("/" + "n" * 300))


def test_a_home_written_with_a_tilde_is_the_users_own_and_every_byte_comes_once(
    hub: ModelHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, model)
    (tmp_path / "user").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path / "user")
    found = find_weights(wanted(endpoint=hub.url), places(tmp_path, home=Path("~/hf")))
    assert found.directory is not None
    assert found.directory.is_relative_to(tmp_path / "user" / "hf" / "hub")
    assert [path.name for path in (tmp_path / "user").iterdir()] == ["hf"]
    for path in model.glob("*.safetensors"):
        assert hub.received(path.name) == path.stat().st_size
    assert find_weights(wanted(endpoint=hub.url), places(tmp_path, home=Path("~/hf"))).origin == "disk"


def test_the_image_comes_before_the_platforms_cache_and_that_before_the_hub(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    hub.add(NAME, model)
    there = places(tmp_path)
    baked, cached = put(there.baked), put(there.cached, name="models--org--model-7b")
    assert find_weights(wanted(endpoint=hub.url), there) == Weights(model=str(baked), directory=baked, origin="image")
    shutil.rmtree(there.baked)
    assert find_weights(wanted(endpoint=hub.url), there).origin == "RunPod's cache"
    assert find_weights(wanted(endpoint=hub.url), there).directory == cached
    assert hub.requests == [], "neither asks the hub"
    shutil.rmtree(there.cached)
    assert find_weights(wanted(endpoint=hub.url), there).origin == "download"
    assert find_weights(wanted(endpoint=hub.url), there).origin == "disk"


def test_a_place_with_a_part_of_the_model_is_passed_over_by_name(
    hub: ModelHub, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add(NAME, model)
    there = places(tmp_path)
    (put(there.baked) / "model-00001-of-00003.safetensors").unlink()
    cut = put(there.cached) / "model-00003-of-00003.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert find_weights(wanted(endpoint=hub.url), there).origin == "download"
    assert "is passed over, it is not whole: model-00001-of-00003.safetensors: missing" in caplog.text
    assert "model-00003-of-00003.safetensors: 38" in caplog.text


def test_the_revision_is_honoured_in_every_place(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    first = hub.add(NAME, model)
    second = hub.add(NAME, write_checkpoint(tmp_path / "next", seed=5), revision="v2")
    there = places(tmp_path)
    put(there.baked, commit="a" * 40)
    put(there.cached, commit="b" * 40, revision="v3")
    for revision, commit in (("", "a" * 40), ("main", "a" * 40), ("v3", "b" * 40), ("bbbbbbb", "b" * 40), ("v2", second), (first, first)):
        found = find_weights(wanted(revision=revision, endpoint=hub.url), there)
        assert found.directory is not None
        assert found.directory.name == commit, revision
    with pytest.raises(ModelUnavailable, match="no such revision"):
        find_weights(wanted(revision="v4", endpoint=hub.url), there)


def test_a_commit_that_is_here_needs_no_hub_and_a_branch_that_is_here_survives_its_absence(
    hub: ModelHub, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commit = hub.add(NAME, model)
    there = places(tmp_path)
    found = find_weights(wanted(endpoint=hub.url), there)
    asked = len(hub.requests)
    assert find_weights(wanted(revision=commit, endpoint=hub.url), there).directory == found.directory
    assert len(hub.requests) == asked
    with ModelHub() as gone:
        pass
    assert find_weights(wanted(endpoint=gone.url), there) == Weights(model=found.model, directory=found.directory, origin="disk")
    assert "cannot be reached" in caplog.text
    assert f"serving the copy in {found.directory}" in caplog.text


@pytest.mark.parametrize("folder", ["elsewhere", "~/elsewhere"])
def test_a_whole_copy_in_hf_hub_cache_is_found_beside_a_volume_and_before_hf_home(
    folder: str, hub: ModelHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add(NAME, model)
    (tmp_path / "volume").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    snapshot = put(tmp_path / "elsewhere", commit=commit)
    named = Path(folder) if folder.startswith("~") else tmp_path / folder
    found = find_weights(wanted(revision=commit), places(tmp_path, hub_cache=named))
    assert found == Weights(model=str(snapshot), directory=snapshot, origin="disk")
    assert not hub.requests


@pytest.mark.parametrize(("variable", "place"), [("HF_HUB_CACHE", "hub_cache"), ("HF_HOME", "home")])
def test_a_cache_in_a_home_that_does_not_exist_is_named_with_its_variable(variable: str, place: str, tmp_path: Path) -> None:
    folder = "~nobody-has-this-name/hf"
    with pytest.raises(ModelUnavailable, match=f"^{variable}: got '{folder}', expected a folder: there is no such home$"):
        find_weights(wanted(), places(tmp_path, **{place: Path(folder)}))


def test_downloads_go_to_hf_hub_cache_else_to_home_else_to_the_volume_else_to_the_librarys_own_folder(
    hub: ModelHub, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add(NAME, model)
    caplog.set_level(logging.INFO)
    volume = tmp_path / "volume"
    volume.mkdir()
    for there, expected in (
        (places(tmp_path, hub_cache=tmp_path / "cache"), "cache"),
        (places(tmp_path), "home/hub"),
        (places(tmp_path, home=None), "volume/huggingface/hub"),
    ):
        found = find_weights(wanted(endpoint=hub.url), there)
        assert found.directory is not None
        assert found.directory.is_relative_to(tmp_path / expected)
    from huggingface_hub.constants import HF_HUB_CACHE

    from checkpoint.find import _own_cache

    assert _own_cache(Places(volume=tmp_path / "none")) == Path(HF_HUB_CACHE)


def test_what_another_worker_is_busy_writing_is_not_taken_for_whole(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    commit = hub.add(NAME, model)
    there = places(tmp_path)
    found = find_weights(wanted(endpoint=hub.url), there)
    assert found.directory is not None
    (found.directory / "tokenizer.json").unlink()
    cache = tmp_path / "home" / "hub"
    assert find_cached(cache, NAME, commit) is None
    assert find_cached(cache, NAME, "main") is None
    hub.faults["tokenizer.json"] = Fault()
    assert find_weights(wanted(revision=commit, endpoint=hub.url), there).directory == found.directory
    assert find_cached(cache, NAME, commit) == found.directory


@pytest.mark.parametrize(("source", "value"), [("modelscope", "MODELSCOPE"), ("aistudio", "AISTUDIO")])
def test_other_hubs_are_left_to_the_engine(tmp_path: Path, source: str, value: str) -> None:
    found = find_weights(wanted(hub=source), places(tmp_path))
    assert found == Weights(model=NAME, directory=None, origin="engine", variables={"FD_MODEL_SOURCE": value})
    (tmp_path / "volume").mkdir()
    found = find_weights(wanted(hub=source), places(tmp_path))
    assert found.variables["FD_MODEL_CACHE"] == str(tmp_path / "volume" / source)


def test_a_cache_that_cannot_be_read_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "models--Org--Model-7B" / "snapshots").mkdir(parents=True)
    (tmp_path / "models--Org--Model-7B" / "refs" / "main").mkdir(parents=True)
    assert find_cached(tmp_path, NAME, "") is None
    assert find_cached(tmp_path, NAME, "x" * 5000) is None
    assert "cannot be read, so it is passed over" in caplog.text


def test_without_a_reference_only_a_single_snapshot_is_taken(tmp_path: Path) -> None:
    snapshot = put(tmp_path)
    shutil.rmtree(tmp_path / "models--Org--Model-7B" / "refs")
    assert find_cached(tmp_path, NAME, "") == snapshot
    put(tmp_path, commit="f" * 40, revision="v2")
    assert find_cached(tmp_path, NAME, "") is None
    assert find_cached(tmp_path, NAME, "012345") is None, "six digits are too few to name a commit"


@given(st.lists(st.booleans(), min_size=len(NAME), max_size=len(NAME)), st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_change_of_case_is_found_and_the_exact_name_wins(
    tmp_path_factory: pytest.TempPathFactory, upper: list[bool], exact: bool
) -> None:
    """ "Case-insensitive search: the directory may be lower-cased"."""
    cache = tmp_path_factory.mktemp("law")
    cased = "".join(letter.upper() if up else letter.lower() for letter, up in zip(NAME, upper, strict=True))
    found = put(cache, name="models--" + cased.replace("/", "--"))
    if exact:
        found = put(cache)
    assert find_cached(cache, NAME, "") == found
    assert find_cached(cache, "Org/Model-7C", "") is None
    shutil.rmtree(cache)
