from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from handler.fastdeploy.describe import canonical, describe_parser
from handler.fastdeploy.flags import ONLY_EXTRA, OWN, RELEASES, differences, flag_table, variable_names
from handler.fastdeploy.installed import check_installed, installed_version
from handler.settings import TABLE
from tests import ROOT
from tests.handler.fastdeploy.parser_from_table import build
from tests.handler.fastdeploy.stand_in import TABLES, entries, install

FLAGS = {"2.3": 96, "2.4": 104, "2.5": 109, "2.6": 116}


@pytest.mark.parametrize("release", RELEASES)
def test_a_table_is_in_canonical_form_and_holds_every_flag_of_its_release(release: str) -> None:
    text = (TABLES / f"{release}.json").read_text(encoding="utf-8")
    assert text == canonical(release, entries(release))
    assert json.loads(text)["release"] == release
    assert len(flag_table(release)) == FLAGS[release]


@pytest.mark.parametrize("release", RELEASES)
def test_a_parser_built_from_a_table_is_described_by_the_same_table(release: str) -> None:
    assert describe_parser(build(entries(release), argparse.ArgumentParser())) == entries(release)


@pytest.mark.parametrize("release", RELEASES)
def test_a_destination_is_the_one_that_argparse_derives(release: str) -> None:
    parsed = vars(build(entries(release), argparse.ArgumentParser()).parse_args([]))
    assert parsed == {dest: parsed[dest] for dest in flag_table(release)}


def test_the_flags_that_releases_share_differ_where_they_were_seen_to() -> None:
    def default(release: str, dest: str) -> object:
        return flag_table(release)[dest].default

    assert [default(release, "metrics_port") for release in RELEASES] == [8001, None, None, None]
    assert [default(release, "workers") for release in RELEASES] == [1, 1, 1, 4]
    assert [flag_table(release)["enable_overlap_schedule"].action for release in ("2.5", "2.6")] == ["true", "optional"]
    assert [dest for dest in flag_table("2.3") if dest not in flag_table("2.4")] == ["innode_prefill_ports"]
    assert not [dest for older, newer in (("2.4", "2.5"), ("2.5", "2.6")) for dest in flag_table(older) if dest not in flag_table(newer)]


def test_a_variable_of_the_worker_that_is_named_like_a_flag_is_never_read_as_one() -> None:
    flags = {dest.upper() for release in RELEASES for dest in flag_table(release)}
    workers = {name for variable in TABLE for name in (variable.name, *variable.aliases)}
    assert {name.lower() for name in flags & workers} <= OWN.keys() | ONLY_EXTRA.keys()
    assert not variable_names() & {dest.upper() for dest in (*OWN, *ONLY_EXTRA)}


def test_every_other_flag_is_reachable_by_its_name() -> None:
    flags = {dest for release in RELEASES for dest in flag_table(release)}
    assert {dest.upper() for dest in flags} - variable_names() == {dest.upper() for dest in (*OWN, *ONLY_EXTRA)} - {"CONFIG"}


def test_variables_that_containers_carry_are_not_read() -> None:
    common = "PATH HOME HOST HOSTNAME PORT USER LANG PWD MODEL REVISION WORKERS CONFIG API_KEY CUDA_VERSION NVIDIA_VISIBLE_DEVICES"
    assert not variable_names() & set(common.split())


def test_the_check_is_content_with_the_release_that_the_table_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path, "2.5")))
    assert installed_version(sys.executable) == "2.5.1"
    assert check_installed("2.5", sys.executable) == []


def test_the_check_names_every_flag_that_came_went_or_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = [entry for entry in entries("2.4") if entry["options"] != ["--ips"]]
    next(entry for entry in changed if entry["options"] == ["--block-size"])["default"] = 128
    (tmp_path / "2.4.json").write_text(canonical("2.4", [*changed, {"options": ["--brand-new"], "type": "int"}]))
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path, "2.4", tables=tmp_path)))
    assert [problem.partition(":")[0] for problem in check_installed("2.4", sys.executable)] == ["--block-size", "--brand-new", "--ips"]
    assert check_installed("2.3", sys.executable)[0] == "installed is FastDeploy 2.4, expected 2.3"


def test_the_check_says_why_there_was_nothing_to_compare(tmp_path: Path) -> None:
    (lines,) = check_installed("2.5", sys.executable)
    assert lines.startswith(f"{sys.executable}: FastDeploy's parser could not be asked: ModuleNotFoundError")
    missing = str(tmp_path / "python3")
    (lines,) = check_installed("2.5", missing)
    assert lines.startswith(f"{missing}: FastDeploy's parser could not be asked")
    assert "No such file" in lines
    assert installed_version(sys.executable) == installed_version(missing) == ""


def test_a_package_that_does_not_tell_its_version_is_still_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path, "2.5")))
    (tmp_path / "fastdeploy" / "version.txt").unlink()
    assert installed_version(sys.executable) == "unknown"


@pytest.mark.parametrize("release", RELEASES)
def test_the_dump_script_writes_the_table_that_is_kept_here(release: str, tmp_path: Path) -> None:
    path = os.pathsep.join([str(install(tmp_path / "site", release)), str(ROOT)])
    subprocess.run([sys.executable, "-m", "ci.dump_flags", str(tmp_path)], check=True, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path)
    assert (tmp_path / f"{release}.json").read_bytes() == (TABLES / f"{release}.json").read_bytes()


def test_a_table_agrees_with_its_own_description_only() -> None:
    described = {release: {"release": release, "flags": entries(release)} for release in RELEASES}
    for release in RELEASES:
        assert [other for other in RELEASES if not differences(release, described[other])] == [release]


def test_a_type_without_a_name_is_a_list_only_if_it_splits_at_commas() -> None:
    """Rule: FastDeploy reads --cache-queue-port by a lambda that makes numbers, and any other lambda is described by its name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--numbers", type=lambda text: [int(part) for part in text.split(",")] if text else None)
    parser.add_argument("--texts", type=lambda text: text.split(","))
    parser.add_argument("--one", type=lambda text: int(text) + 1)
    parser.add_argument("--same", type=lambda text: text)
    types = {flag["options"][0]: flag["type"] for flag in describe_parser(parser)}
    assert types == {"--numbers": "list", "--texts": "list", "--one": "<lambda>", "--same": "<lambda>"}
