"""Inputs come whole or not at all, from wherever they still are; the rules are those of images/download.py."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint import http_client
from images.build_errors import DigestMismatch, ImageError, Unreachable
from images.cache import Cache
from images.digest import Digest
from images.download import Input, Location, download_input, on_hub, on_web, pin
from tests.images.made import ROOT
from tests.twins.model_hub import Fault, ModelHub

NAME, FILE = "some/model", "model.safetensors"
CONTENT = random.Random(1).randbytes(3 << 20)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(http_client, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ModelHub]:
    """A hub with one large file."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / FILE).write_bytes(CONTENT)
    with ModelHub(tokens=("hf_secret",)) as running:
        running.add(NAME, tmp_path / "model")
        yield running


def place(hub: ModelHub, token: str = "") -> Location:
    """Where the hub has the file."""
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token}
    return on_hub(NAME, hub.repositories[NAME].revisions["main"], FILE, environment)


def wanted(*places: Location) -> Input:
    """The file, as a lock pins it."""
    return Input(name=f"{NAME}/{FILE}", size=len(CONTENT), digest=Digest.of(CONTENT), locations=places)


def test_a_connection_that_breaks_off_is_taken_up_where_it_was(hub: ModelHub, tmp_path: Path) -> None:
    hub.faults[FILE] = Fault(times=3, drop_after=1 << 20)
    assert download_input(wanted(place(hub)), Cache(tmp_path / "cache")).read_bytes() == CONTENT
    assert hub.received(FILE) < len(CONTENT) * 1.2


def test_a_server_without_ranges_is_read_from_its_beginning_again(hub: ModelHub, tmp_path: Path) -> None:
    hub.faults[FILE] = Fault(times=2, drop_after=2 << 20, ignore_range=True)
    assert download_input(wanted(place(hub)), Cache(tmp_path / "cache")).read_bytes() == CONTENT


def test_rule_2_a_killed_fetch_is_taken_up_by_the_next_one(hub: ModelHub, tmp_path: Path) -> None:
    hub.faults[FILE] = Fault(bytes_per_second=1 << 20)
    code = f"""
import sys
from pathlib import Path
from images.cache import Cache
from images.digest import Digest
from images.download import Input, download_input, on_web
places = (on_web({f"{hub.url}/{NAME}/resolve/main/{FILE}"!r}),)
wanted = Input(name="x", size={len(CONTENT)}, digest=Digest({Digest.of(CONTENT).hex!r}), locations=places)
download_input(wanted, Cache(Path({str(tmp_path)!r}, "cache")))
"""
    part = tmp_path / "cache" / "sha256" / f"{Digest.of(CONTENT).hex}.part"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        while not (part.exists() and part.stat().st_size):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    have = part.stat().st_size
    assert 0 < have < len(CONTENT)
    assert not part.with_suffix("").exists()
    assert download_input(wanted(place(hub)), Cache(tmp_path / "cache")).read_bytes() == CONTENT
    assert f"bytes={have}-" in {request.range for request in hub.requests}


def test_rule_1_wrong_bytes_never_have_the_final_name(hub: ModelHub, tmp_path: Path) -> None:
    hub.faults[FILE] = Fault(times=9, wrong=True)
    with pytest.raises(DigestMismatch, match=str(Digest.of(CONTENT))):
        download_input(wanted(place(hub)), Cache(tmp_path / "cache"))
    assert [path.name for path in (tmp_path / "cache" / "sha256").iterdir()] == []


def test_rule_3_a_later_place_has_what_the_first_one_lost_or_changed(hub: ModelHub, tmp_path: Path) -> None:
    gone = on_web(f"{hub.url}/{NAME}/resolve/main/no-such-file")
    away = on_web("http://127.0.0.1:9/nobody/listens/here")
    hub.faults[FILE] = Fault(wrong=True)
    changed = place(hub)
    assert download_input(wanted(gone, away, changed, place(hub)), Cache(tmp_path / "cache")).read_bytes() == CONTENT


def test_what_is_nowhere_is_named_with_what_every_place_said(hub: ModelHub, tmp_path: Path) -> None:
    gone = on_web(f"{hub.url}/{NAME}/resolve/main/no-such-file")
    away = on_web("http://127.0.0.1:9/nobody/listens/here")
    with pytest.raises(Unreachable) as raised:
        download_input(wanted(gone, away), Cache(tmp_path / "cache"))
    assert all(words in str(raised.value) for words in (f"{NAME}/{FILE}", "404", "nobody/listens/here", "refused"))


def test_a_host_that_did_not_answer_is_not_waited_for_again(hub: ModelHub, tmp_path: Path) -> None:
    cache, silent = Cache(tmp_path / "cache"), set[str]()
    away = on_web("http://127.0.0.1:9/nobody/listens/here")
    download_input(wanted(away, place(hub)), cache, silent=silent)
    assert silent == {"127.0.0.1:9"}
    other = Input(name="other", size=1, digest=Digest.of(b"x"), locations=(away,))
    with pytest.raises(Unreachable, match="did not answer before"):
        download_input(other, cache, silent=silent)


def test_a_file_that_is_there_is_not_asked_for(hub: ModelHub, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    download_input(wanted(place(hub)), cache)
    hub.requests.clear()
    download_input(wanted(place(hub)), cache)
    assert hub.requests == []


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(hub: ModelHub, tmp_path: Path) -> None:
    hub.repositories[NAME].private = True
    with pytest.raises(Unreachable, match=r"40[134]"):
        download_input(wanted(place(hub)), Cache(tmp_path / "cache"))
    hub.repositories[NAME].allowed.add("hf_secret")
    hub.requests.clear()
    download_input(wanted(place(hub, token="hf_secret")), Cache(tmp_path / "cache"))
    tokens = {request.path.split("/")[1]: request.token for request in hub.requests}
    assert tokens == {"some": "hf_secret", "content": ""}


def test_a_file_without_a_known_digest_is_hashed_on_arrival(hub: ModelHub, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    hub.faults[FILE] = Fault(drop_after=1 << 20)
    digest = pin(place(hub), len(CONTENT), cache)
    assert digest == Digest.of(CONTENT)
    assert cache.has(digest, len(CONTENT))


def test_nothing_is_pinned_of_two_files(hub: ModelHub, tmp_path: Path) -> None:
    """Of what an earlier try received of an address nothing tells that it still has the same file."""
    cache = Cache(tmp_path / "cache")
    part = cache.root / "sha256" / f"{Digest.of(place(hub).name.encode()).hex}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"another file's beginning")
    assert pin(place(hub), len(CONTENT), cache) == Digest.of(CONTENT)


def test_a_disk_that_cannot_be_written_is_named(hub: ModelHub, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(ImageError, match=r"cache: .*/cache: cannot be written \(File too large\); free space, or name another"):
            download_input(wanted(place(hub)), Cache(tmp_path / "cache"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match=r"cache: .*/file: cannot be written"):
        download_input(wanted(place(hub)), Cache(tmp_path / "file"))


def test_an_endpoint_may_end_with_a_slash() -> None:
    assert on_hub(NAME, "c0ffee", FILE, {"HF_ENDPOINT": "https://hub.example/"}).name == f"https://hub.example/{NAME}/resolve/c0ffee/{FILE}"


def test_only_addresses_of_the_web_are_asked(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="https://"):
        download_input(wanted(on_web(f"file://{os.path.abspath(__file__)}")), Cache(tmp_path / "cache"))  # noqa: PTH100
