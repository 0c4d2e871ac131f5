"""The lock: written and read back it is the same, and whatever is wrong with it is said with its place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images.build_errors import InvalidFile, Unlocked
from images.digest import Digest
from images.lock import LOCK, Lock, read_lock, requirements_digest, write_lock
from images.lock_entries import EngineWheel, File, LockedModel, ModelFile, Packages, Replaced
from images.releases import read_releases
from tests.images.entry_strategies import SETTINGS
from tests.images.small_world import base, make_world

DIGESTS = st.binary(max_size=4).map(Digest.of)
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
FILES = st.builds(
    File, name=NAMES, size=st.integers(0, 10**12), digest=DIGESTS, url=st.just("") | NAMES.map("https://host.example/{}".format)
)
MIRRORS = st.lists(NAMES.map(lambda name: f"registry.example:5000/{name}"), max_size=2).map(tuple)
COMMITS = st.integers(0, 16**40 - 1).map(lambda number: f"{number:040x}")
BASES = st.builds(
    lambda name, count, mirrors: replace(
        base(f"registry.example/{name}:1", [Replaced(name="fastdeploy-gpu", version="1", paths=("/a/b",))], layers=count), mirrors=mirrors
    ),
    NAMES,
    st.integers(1, 3),
    MIRRORS,
)
LOCKS = st.builds(
    Lock,
    bases=st.lists(BASES, max_size=3, unique_by=lambda entry: entry.reference).map(tuple),
    wheels=st.lists(
        st.builds(EngineWheel, release=NAMES, cuda=NAMES, architectures=st.just(("sm86", "sm89")), file=FILES, mirrors=MIRRORS),
        max_size=3,
        unique_by=lambda entry: (entry.release, entry.cuda),
    ).map(tuple),
    packages=st.lists(
        st.builds(
            Packages,
            engine=st.sampled_from(["cpu", "fastdeploy"]),
            python=st.sampled_from(["3.10", "3.11"]),
            requirements=DIGESTS,
            wheels=st.lists(FILES, max_size=3).map(tuple),
        ),
        max_size=4,
        unique_by=lambda entry: (entry.engine, entry.python),
    ).map(tuple),
    models=st.lists(
        st.builds(
            LockedModel,
            repository=NAMES.map(lambda name: f"org/{name}"),
            revision=st.sampled_from(["main", "v1.0", "feature/x"]),
            commit=COMMITS,
            files=st.lists(st.builds(ModelFile, path=NAMES, size=st.integers(0, 10**12), digest=DIGESTS), max_size=3).map(tuple),
            mirrors=MIRRORS,
        ),
        max_size=3,
        unique_by=lambda entry: entry.repository,
    ).map(tuple),
)


@SETTINGS
@given(lock=LOCKS)
def test_a_lock_that_is_written_and_read_is_the_same(lock: Lock) -> None:
    text = lock.text()
    again = Lock.parse(text)
    assert again.text() == text
    assert again.having() == lock.having()


@SETTINGS
@given(lock=LOCKS, data=st.data())
def test_the_order_of_entries_does_not_show(lock: Lock, data: st.DataObject) -> None:
    shuffled = replace(
        lock,
        bases=tuple(data.draw(st.permutations(lock.bases))),
        wheels=tuple(data.draw(st.permutations(lock.wheels))),
        models=tuple(data.draw(st.permutations(lock.models))),
    )
    assert shuffled.text() == lock.text()


@SETTINGS
@given(version=st.none() | st.integers() | st.text(max_size=3) | st.booleans())
def test_an_unknown_version_is_refused(version: Any) -> None:
    value = {**json.loads(Lock().text()), "version": version}
    if version == 1 and not isinstance(version, bool):
        Lock.parse(json.dumps(value))
        return
    with pytest.raises(InvalidFile, match=r"version: got .*, expected 1"):
        Lock.parse(json.dumps(value))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a JSON value, by the keys that lead there."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in places(item, (*path, key)))]


@SETTINGS
@given(lock=LOCKS, where=st.integers(0, 10**6), wrong=st.sampled_from([None, 1.5, True, [], {"unknown": 1}, -1]))
def test_a_value_of_the_wrong_kind_is_said_with_its_place(lock: Lock, where: int, wrong: Any) -> None:
    value = json.loads(lock.text())
    every = [place for place in places(value) if place]
    place = every[where % len(every)]
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    if type(holder[place[-1]]) is type(wrong):
        return
    holder[place[-1]] = wrong
    with pytest.raises(InvalidFile) as raised:
        Lock.parse(json.dumps(value))
    keys = [key for key in place if isinstance(key, str)]
    assert any(keys[-1] in problem for problem in raised.value.problems)


def test_every_problem_is_found_before_the_first_is_reported(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    value = json.loads(world.lock.text())
    value["bases"][0]["layers"][0]["size"] = "ten"
    value["models"][0]["files"][1]["digest"] = "sha256:00"
    value["wheels"][0]["file"]["nmae"] = "x"
    with pytest.raises(InvalidFile) as raised:
        Lock.parse(json.dumps(value))
    assert sorted(problem.split(": ")[0] for problem in raised.value.problems) == [
        "bases[0].layers[0].size",
        "models[0].files[1].digest",
        "wheels[0].file.nmae",
    ]


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (
            ("wheels", 0, "file", "url"),
            "file:///etc/passwd",
            r"wheels\[0\]\.file\.url: got 'file:///etc/passwd', expected an address of http",
        ),
        (
            ("wheels", 0, "file", "url"),
            "https://me:hidden@index.example/x.whl",
            r"url: got .*, expected an address of http or https without",
        ),
        (("wheels", 0, "file", "name"), "../../x.whl", r"name: got '\.\./\.\./x\.whl', expected the name of a file"),
        (
            ("models", 0, "files", 0, "path"),
            "../../etc/passwd",
            r"models\[0\]\.files\[0\]\.path: got '\.\./\.\./etc/passwd', expected a relative",
        ),
        (("models", 0, "repository"), "../..", r"repository: got '\.\./\.\.', expected org/name"),
        (("models", 0, "revision"), "../../main", r"revision: got '\.\./\.\./main', expected a branch"),
        (("models", 0, "commit"), "../../main", r"commit: got '\.\./\.\./main', expected 40"),
        (
            ("models", 0, "mirrors"),
            ["registry.example/../../x"],
            r"mirrors: got 'registry\.example/\.\./\.\./x', expected registry/repository",
        ),
        (("packages", 0, "python"), "../3.10", r"python: got '\.\./3\.10', expected a version"),
        (
            ("bases", 0, "reference"),
            "registry.example/../../x:1",
            r"base: got 'registry\.example/\.\./\.\./x:1', expected registry/repository:tag",
        ),
        (("bases", 0, "reference"), "file:///x:1", r"base: got 'file:///x:1', expected registry/repository:tag"),
    ],
)
def test_no_row_names_a_path_or_an_address_outside_of_where_it_belongs(
    place: tuple[Any, ...], value: Any, complaint: str, tmp_path: Path
) -> None:
    text = json.loads(make_world(tmp_path).lock.text())
    holder = text
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    with pytest.raises(InvalidFile, match=complaint):
        Lock.parse(json.dumps(text))


def test_a_lock_that_is_nested_too_deeply_is_one_sentence(tmp_path: Path) -> None:
    for text in ("[" * 100_000, '{"version": 1, "bases": ' + "[" * 100_000):
        path = tmp_path / "lock.json"
        path.write_text(text)
        with pytest.raises(
            InvalidFile,
            match=r"lock\.json: cannot be read as JSON \(JSON nested too deeply\); remove the file and run `ci/just lock` again",
        ):
            read_lock(path)


def test_a_base_whose_text_was_changed_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    value = json.loads(world.lock.text())
    value["bases"][0]["config"]["text"] = value["bases"][0]["config"]["text"].replace("amd64", "arm64")
    with pytest.raises(InvalidFile, match=r"bases\[0\]\.config\.digest: got sha256:.*, expected sha256:"):
        Lock.parse(json.dumps(value))


def test_what_is_not_pinned_is_named_with_the_command_that_pins_it(tmp_path: Path) -> None:
    target, now = read_releases().target("sm89"), Digest.of(b"requirements")
    with pytest.raises(Unlocked) as raised:
        Lock().pinned(target, now, "org/name")
    said = str(raised.value)
    assert said.startswith(f"the base {target.base}: not in the lock; FastDeploy 2.3.0 for sm86 and sm89: not in the lock; the worker's")
    assert said.endswith("the model org/name: not in the lock; pin with `ci/just lock arch=sm89 release=2.3.0 cuda=12.6 model=org/name`")
    with pytest.raises(Unlocked, match=r"pin with `ci/just lock arch=sm89 lock=mine.json`$"):
        Lock().pinned(target, now, words="arch=sm89 lock=mine.json")
    lock = make_world(tmp_path).lock
    with pytest.raises(Unlocked, match=r"^the worker's packages .*: locked from requirements sha256:.*, which are now sha256:.*; pin with"):
        lock.pinned(target, now)
    with pytest.raises(Unlocked, match=r"^the model org/name: locked at revision main, expected v2; pin with"):
        lock.pinned(target, requirements_digest(target), "org/name", "v2")
    found = lock.pinned(target, requirements_digest(target), "org/name", "main")
    assert found.entries == (lock.base(target), lock.wheels[0], found.packages, lock.models[0])


def test_the_lock_that_is_shipped_is_canonical_and_invents_nothing() -> None:
    lock = read_lock()
    assert lock.text() == LOCK.read_text()
    assert not lock.bases
    assert not lock.wheels
    assert not lock.models
    releases = read_releases()
    for architecture in ("cpu", "sm89"):
        target = releases.target(architecture)
        assert lock.packages_for(target, requirements_digest(target)).wheels


def test_a_lock_is_written_at_once_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    write_lock(path, Lock())
    with pytest.raises(OSError, match="No such file"):
        write_lock(tmp_path / "missing" / "lock.json", Lock())
    assert [entry.name for entry in tmp_path.iterdir()] == ["lock.json"]
    assert read_lock(path) == Lock()
