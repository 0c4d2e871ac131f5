"""Downloads against a loopback hub, through the real huggingface_hub: whole or absent, resumed, checked, and every failure explained."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from checkpoint import http_client
from checkpoint.files import damage
from checkpoint.hub import Hub, _explained, download, list_files
from checkpoint.progress import Progress, duration_text, progress_text, size_text
from checkpoint.unavailable import ModelUnavailable
from tests.checkpoint.checkpoints import write_checkpoint
from tests.twins.model_hub import Fault, ModelHub

NAME = "org/Model-7B"
SHARD = "model-00002-of-00003.safetensors"
BIG_ROWS = 200_000
"""Rows that make a file of 25.6 MB."""

BLOCK = 10 << 20
"""Bytes after which a connection is cut, less than the file has."""


def fetch(hub: ModelHub, cache: Path, *, name: str = NAME, revision: str = "", token: str = "") -> Path:
    where = Hub(endpoint=hub.url, token=token)
    return download(list_files(name, revision, where), cache, where)


def start(hub: ModelHub, home: Path, *, revision: str = "", stderr: int = subprocess.PIPE, **variables: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "RUNPOD_"))}
    command = [sys.executable, "-m", "tests.checkpoint.fetch", NAME, revision, str(home)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment | hub.environment() | variables, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, error = process.communicate(timeout=50)
    return process.returncode, output.strip(), error


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def same_files(left: Path, right: Path) -> bool:
    names = sorted(path.name for path in left.iterdir())
    return names == sorted(path.name for path in right.iterdir()) and all(
        (left / name).read_bytes() == (right / name).read_bytes() for name in names
    )


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.name.endswith((".partial", ".incomplete", ".tmp")))


def test_a_repository_arrives_whole_in_the_hubs_own_layout_and_only_once(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(bytes(50_000))
    (model / "README.md").write_text("not needed")
    commit = hub.add(NAME, model)
    snapshot = fetch(hub, tmp_path / "hub", token="hf_good")
    assert snapshot == tmp_path / "hub" / "models--org--Model-7B" / "snapshots" / commit
    (model / "pytorch_model.bin").unlink()
    (model / "README.md").unlink()
    assert same_files(snapshot, model)
    assert (snapshot.parent.parent / "refs" / "main").read_text() == commit
    assert leftovers(tmp_path) == []
    contents = [request for request in hub.requests if request.path.startswith("/content/")]
    assert len(contents) == 3, "one for each large file, and none for the second format"
    assert not any(request.token for request in contents), "the token stays with the hub"
    before = len(hub.requests)
    assert fetch(hub, tmp_path / "hub") == snapshot
    assert {request.path for request in hub.requests[before:]} == {f"/api/models/{NAME}"}


def test_another_program_that_knows_the_hub_finds_what_was_downloaded(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    hub.add(NAME, model)
    snapshot = fetch(hub, tmp_path / "hub")
    assert snapshot_download(NAME, cache_dir=tmp_path / "hub", local_files_only=True) == str(snapshot)


def test_every_revision_is_its_own_snapshot_and_a_moved_branch_costs_only_what_changed(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    first = hub.add(NAME, model)
    hub.repositories[NAME].revisions["v1"] = first
    assert fetch(hub, tmp_path).name == first
    other = write_checkpoint(tmp_path / "other", seed=7)
    shutil.copy(model / SHARD, other / SHARD)
    second = hub.add(NAME, other)
    assert fetch(hub, tmp_path).name == second != first
    assert hub.received(SHARD) == (model / SHARD).stat().st_size, "the shard that both have came once"
    assert fetch(hub, tmp_path, revision="v1").name == first
    assert fetch(hub, tmp_path, revision=first).name == first
    references = tmp_path / "models--org--Model-7B" / "refs"
    assert {path.name: path.read_text() for path in references.iterdir()} == {"main": second, "v1": first}


def test_more_files_than_one_page_lists_all_arrive(hub: ModelHub, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", shards=70, rows=100)
    hub.add(NAME, model)
    assert same_files(fetch(hub, tmp_path / "hub"), model)


def test_a_connection_that_breaks_mid_file_goes_on_where_it_broke(hub: ModelHub, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", shards=1, rows=BIG_ROWS)
    hub.add(NAME, model)
    hub.faults["model.safetensors"] = Fault(drop_after=BLOCK + 1000)
    snapshot = fetch(hub, tmp_path / "hub")
    assert same_files(snapshot, model)
    assert [request.range for request in hub.requests if request.path.startswith("/content/")] == [
        "",
        f"bytes={BLOCK + 1000}-",
    ]


def test_a_connection_that_is_reset_again_and_again_is_asked_for_the_rest_and_given_up_only_without_progress(
    hub: ModelHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_checkpoint(tmp_path / "model", shards=1, rows=BIG_ROWS)
    hub.add(NAME, model)
    hub.faults["model.safetensors"] = Fault(drop_after=0, reset=True, times=99)
    with pytest.raises(ModelUnavailable, match="cannot be reached"):
        fetch(hub, tmp_path / "hub")
    assert caplog.text.count("asking for the rest from byte 0") == len(http_client.PAUSES)
    hub.faults["model.safetensors"] = Fault(drop_after=BLOCK + 1000, reset=True, times=2)
    assert same_files(fetch(hub, tmp_path / "hub"), model)


def test_a_server_that_ignores_the_range_sends_all_again_and_the_file_is_whole(hub: ModelHub, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", shards=1, rows=BIG_ROWS)
    hub.add(NAME, model)
    where = Hub(endpoint=hub.url)
    listing = list_files(NAME, "", where)
    (large,) = (file for file in listing.files if file.sha256)
    blobs = tmp_path / "hub" / "models--org--Model-7B" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{large.sha256}.partial").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    hub.faults["model.safetensors"] = Fault(ignore_range=True)
    assert same_files(download(listing, tmp_path / "hub", where), model)
    assert hub.received("model.safetensors") == large.size


@pytest.mark.parametrize("kept", [b"wrong", b"x" * 60_000], ids=["shorter", "longer"])
def test_a_partial_file_with_wrong_bytes_is_found_and_fetched_anew(hub: ModelHub, model: Path, tmp_path: Path, kept: bytes) -> None:
    hub.add(NAME, model)
    where = Hub(endpoint=hub.url)
    listing = list_files(NAME, "", where)
    blobs = tmp_path / "hub" / "models--org--Model-7B" / "blobs"
    blobs.mkdir(parents=True)
    for file in listing.files:
        if file.sha256:
            (blobs / f"{file.sha256}.partial").write_bytes(kept)
    assert same_files(download(listing, tmp_path / "hub", where), model)
    assert leftovers(tmp_path) == []


def test_damage_on_the_way_is_found_retried_once_and_then_told(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    hub.add(NAME, model)
    hub.faults[SHARD] = Fault(wrong=True)
    assert same_files(fetch(hub, tmp_path / "once"), model)
    hub.faults[SHARD] = Fault(wrong=True, times=2)
    with pytest.raises(ModelUnavailable, match=f"^MODEL={NAME}: {SHARD} arrives damaged"):
        fetch(hub, tmp_path / "twice")
    assert not list((tmp_path / "twice").rglob("refs/*"))
    assert same_files(fetch(hub, tmp_path / "twice"), model)


def test_a_worker_killed_mid_download_leaves_nothing_that_looks_whole_and_the_next_asks_for_the_rest(hub: ModelHub, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", shards=1, rows=BIG_ROWS)
    size = (model / "model.safetensors").stat().st_size
    hub.add(NAME, model)
    hub.faults["model.safetensors"] = Fault(bytes_per_second=15_000_000)
    first = start(hub, tmp_path / "home")
    wait_until(lambda: any(path.stat().st_size >= BLOCK for path in tmp_path.rglob("*.partial")))
    first.kill()
    finish(first)
    assert [path.name for path in tmp_path.rglob("model.safetensors")] == ["model.safetensors"], "only the hub's own"
    assert not list((tmp_path / "home").rglob("refs/*"))
    code, found, error = finish(start(hub, tmp_path / "home"))
    assert code == 0, error
    assert same_files(Path(found), model)
    last = [request for request in hub.requests if request.path.startswith("/content/")][-1]
    kept = int(last.range.removeprefix("bytes=").removesuffix("-"))
    assert kept >= BLOCK
    assert last.sent == size - kept
    assert leftovers(tmp_path) == []


def test_two_workers_on_one_volume_both_end_whole_and_every_byte_comes_once(hub: ModelHub, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", rows=40_000)
    hub.add(NAME, model)
    for path in model.glob("*.safetensors"):
        hub.faults[path.name] = Fault(bytes_per_second=6_000_000)
    workers = [start(hub, tmp_path / "volume") for _ in range(2)]
    results = [finish(worker) for worker in workers]
    assert [code for code, _, _ in results] == [0, 0], results
    (found,) = {output for _, output, _ in results}
    assert same_files(Path(found), model)
    for path in model.glob("*.safetensors"):
        assert hub.received(path.name) == path.stat().st_size
    assert leftovers(tmp_path) == []


def test_an_interrupt_ends_the_download_at_once_and_keeps_what_came(hub: ModelHub, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", shards=1, rows=BIG_ROWS)
    hub.add(NAME, model)
    hub.faults["model.safetensors"] = Fault(bytes_per_second=8_000_000)
    process = start(hub, tmp_path / "home")
    wait_until(lambda: any(path.stat().st_size >= BLOCK for path in tmp_path.rglob("*.partial")))
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert finish(process)[0] != 0
    assert time.monotonic() - began < 3
    assert len(leftovers(tmp_path)) == 1


@pytest.mark.parametrize(
    ("token", "kind", "revision", "expected"),
    [
        ("", "gated", "", "is gated: accept its terms at .*/org/Model-7B, then set HF_TOKEN"),
        ("hf_other", "gated", "", "is gated: accept its terms at .*/org/Model-7B with the account that HF_TOKEN belongs to"),
        ("", "private", "", "no such repository, or it is private: check the name, or set HF_TOKEN"),
        ("hf_other", "private", "", "no such repository, or HF_TOKEN may not see it"),
        ("hf_bad", "public", "", "does not know the token: set HF_TOKEN to a valid one"),
        ("", "public", "v9", "no such revision: set MODEL_REVISION to a branch, tag or full commit"),
    ],
)
def test_every_refusal_of_the_hub_is_one_sentence_with_the_variable_to_set(
    hub: ModelHub, model: Path, token: str, kind: str, revision: str, expected: str
) -> None:
    hub.add(NAME, model)
    repository = hub.repositories[NAME]
    repository.private, repository.gated, repository.allowed = kind == "private", kind == "gated", {"hf_good"}
    cache = model.parent / "hub"
    with pytest.raises(ModelUnavailable, match=expected) as raised:
        fetch(hub, cache, token=token, revision=revision)
    said = str(raised.value)
    assert said.startswith(f"MODEL={NAME}" + (f" at MODEL_REVISION={revision}" if revision else "") + ": ")
    assert "\n" not in said
    assert not token or token not in said
    if token != "hf_bad" and not revision:
        assert fetch(hub, cache, token="hf_good").is_dir()


@pytest.mark.parametrize(("status", "expected"), [(403, "give HF_TOKEN read access"), (500, "answered 500"), (404, "answered 404")])
def test_a_status_in_the_middle_is_told(hub: ModelHub, model: Path, tmp_path: Path, status: int, expected: str) -> None:
    hub.add(NAME, model)
    hub.faults[SHARD] = Fault(status=status, times=99)
    with pytest.raises(ModelUnavailable, match=expected):
        fetch(hub, tmp_path)
    del hub.faults[SHARD]
    assert same_files(fetch(hub, tmp_path), model), "what came before is kept, and the next try finishes"


def test_a_repository_without_weights_or_config_is_told_before_anything_large_is_fetched(hub: ModelHub, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model-q4.gguf").write_bytes(bytes(100_000))
    hub.add(NAME, tmp_path / "gguf")
    with pytest.raises(ModelUnavailable, match=r"no checkpoint that an engine here reads; .*got files of the kinds \.gguf: choose"):
        fetch(hub, tmp_path / "hub")
    assert hub.received("model-q4.gguf") == 0


def test_a_repository_that_lacks_a_shard_of_its_own_index_is_told_by_the_shards_name(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    (model / SHARD).unlink()
    hub.add(NAME, model)
    with pytest.raises(ModelUnavailable, match=f"the repository holds no whole checkpoint: {SHARD}: missing"):
        fetch(hub, tmp_path)


def test_a_hub_that_is_not_there_names_the_address_and_the_network(tmp_path: Path) -> None:
    with ModelHub() as gone:
        pass
    with pytest.raises(ModelUnavailable, match=f"{gone.url} cannot be reached .*check the network, or HF_ENDPOINT"):
        fetch(gone, tmp_path)


@pytest.mark.parametrize(
    "body", [b"<html>log in</html>", b"\xff\xfe", b"[]", b"{}", b'"a text"', b'{"id": "org/Model-7B", "siblings": [{}]}']
)
def test_an_address_that_answers_and_is_no_hub_is_told(tmp_path: Path, body: bytes) -> None:
    class Portal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Portal) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        where = Hub(endpoint=f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(
            ModelUnavailable, match=rf"^MODEL={NAME}: {where.endpoint} does not answer as a hub does \(.+\): check HF_ENDPOINT"
        ):
            download(list_files(NAME, "", where), tmp_path, where)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("endpoint", "token", "expected"),
    [
        ("https://hub.example.com:port", "", "HF_ENDPOINT: got 'https://hub.example.com:port', expected the address of a hub"),
        ("https://me:hf_hidden@hub.example.com/x", "", "HF_ENDPOINT: got 'https://hub.example.com/x' with a user name, expected none"),
        ("ftp://me:hf_hidden@hub.example.com/x", "", "HF_ENDPOINT: got 'ftp://hub.example.com/x', expected the address of a hub"),
        ("http://127.0.0.999", "", "http://127.0.0.999 cannot be reached .*check the network, or HF_ENDPOINT"),
        ("http://127.0.0.1:9", "hf_hidden\nhf_other", "HF_TOKEN: got .*, expected printable ASCII"),
        ("http://127.0.0.1:9", "hf_hidden…", "HF_TOKEN: got .*, expected printable ASCII"),
    ],
)
def test_what_no_request_can_be_made_of_is_told_to_those_who_read_no_settings(endpoint: str, token: str, expected: str) -> None:
    with pytest.raises(ModelUnavailable, match=expected) as raised:
        list_files(NAME, "", Hub(endpoint=endpoint, token=token))
    assert "hf_hidden" not in str(raised.value)


def test_a_name_that_no_repository_can_have_is_told(tmp_path: Path) -> None:
    with ModelHub() as hub, pytest.raises(ModelUnavailable, match="no name of a repository, expected org/name"):
        fetch(hub, tmp_path, name="org/name--of--nothing")


def test_too_small_a_disk_is_told_before_the_first_byte(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    hub.add(NAME, model)
    hub.claim(NAME, SHARD, 10**15)
    with pytest.raises(ModelUnavailable, match=r"1000000\.0 GB are still to be downloaded, and .* has .* free.*set HF_HOME"):
        fetch(hub, tmp_path)
    assert hub.received(SHARD) == 0


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "no space left on the disk of /cache: enlarge"),
        (errno.EDQUOT, "no space left"),
        (errno.EROFS, "/cache cannot be written .*: set HF_HOME"),
        (errno.EACCES, "/cache cannot be written"),
        (errno.EIO, "the download failed: .*Input/output error"),
    ],
)
def test_errors_of_the_disk_are_explained(number: int, expected: str) -> None:
    with pytest.raises(ModelUnavailable, match=expected), _explained(NAME, "", Hub(), Path("/cache")):
        raise OSError(number, os.strerror(number))


def test_an_outage_between_the_listing_and_the_small_files_is_told_by_its_cause() -> None:
    import httpx2
    from huggingface_hub.errors import LocalEntryNotFoundError

    with pytest.raises(ModelUnavailable, match=r"https://huggingface.co cannot be reached \(refused\)"), _explained(NAME, "", Hub()):
        raise LocalEntryNotFoundError("long text") from httpx2.ConnectError("refused")
    with pytest.raises(ModelUnavailable, match="the download failed: long text"), _explained(NAME, "", Hub()):
        raise LocalEntryNotFoundError("long text")


def test_offline_is_told_with_the_variable_that_forbids(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    hub.add(NAME, model)
    code, _, error = finish(start(hub, tmp_path, HF_HUB_OFFLINE="1"))
    assert code == 1
    assert "HF_HUB_OFFLINE forbids asking the hub: unset it" in error
    assert finish(start(hub, tmp_path))[0] == 0
    code, found, error = finish(start(hub, tmp_path, HF_HUB_OFFLINE="1"))
    assert code == 0, error
    assert damage(Path(found)) == []


def test_no_log_shows_the_token_or_the_addresses_of_contents(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    hub.add(NAME, model)
    hub.faults[SHARD] = Fault(wrong=True)
    code, _, error = finish(start(hub, tmp_path, HF_TOKEN="hf_good"))
    assert code == 0
    assert "downloading 3 files, 116 kB, of org/Model-7B at commit" in error
    assert "received 154 kB in" in error, "one shard came twice"
    assert "hf_good" not in error
    assert "/content/" not in error


def test_a_terminal_gets_one_line_that_is_rewritten_and_cleared(hub: ModelHub, tmp_path: Path) -> None:
    hub.add(NAME, write_checkpoint(tmp_path / "model", shards=1, rows=BIG_ROWS))
    hub.faults["model.safetensors"] = Fault(bytes_per_second=20_000_000)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = start(hub, tmp_path, stderr=theirs)
    os.close(theirs)
    assert process.wait(30) == 0
    assert process.stdout is not None
    process.stdout.close()
    said = b""
    with contextlib.suppress(OSError):  # what a terminal answers after its last writer has closed it
        while block := os.read(ours, 65536):
            said += block
    os.close(ours)
    lines = re.findall(rb"\r(weights: [^\r]*)\x1b\[K", said)
    assert lines
    assert all(re.fullmatch(rb"weights: \d+ [kM]?B of 26 MB \(\d+%\), .*(left|waiting)", line) for line in lines), lines
    assert b"\r\x1b[KINFO checkpoint.hub: received 26 MB in" in said


def test_elsewhere_a_line_tells_bytes_rate_and_time_left_every_few_seconds() -> None:
    lines: list[str] = []
    with Progress(4_000_000_000, "weights", tell=lines.append, interval=0.1) as progress:
        progress.add(1_000_000_000, received=False)
        progress.add(500_000_000)
        wait_until(lambda: len(lines) >= 3)
    assert re.fullmatch(r"weights: 1\.5 GB of 4\.0 GB \(38%\), [\d.]+ GB/s, \d s left", lines[0])
    assert lines[-1].endswith("0 B/s, waiting"), "the rate is that of the last seconds"
    assert re.fullmatch(r"500 MB in \d s, [\d.]+ [GM]B/s", progress.summary)


def test_what_another_program_receives_is_measured() -> None:
    lines: list[str] = []
    with Progress(0, "copying", tell=lines.append, measure=lambda: 5_000_000, interval=0.01):
        wait_until(lambda: bool(lines))
    assert lines[0].startswith("copying: 5 MB, ")


def test_numbers_are_written_for_people() -> None:
    assert [size_text(size) for size in (0, 999, 999_499, 1_500_000, 12_345_678_901)] == ["0 B", "999 B", "999 kB", "2 MB", "12.3 GB"]
    assert [duration_text(seconds) for seconds in (0.4, 59.4, 61, 3600)] == ["0 s", "59 s", "1 min 1 s", "60 min 0 s"]
    assert progress_text(250, 1000, 10) == "250 B of 1 kB (25%), 10 B/s, 1 min 15 s left"
    assert progress_text(250, 0, 10) == "250 B, 10 B/s"


def test_config_json_is_looked_at_before_any_large_file_is_fetched(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    """Rule: a checkpoint that is of no use costs its config.json, not its weights."""
    hub.add(NAME, model)

    class Useless(Exception):
        pass

    def accept(config: Mapping[str, Any]) -> None:
        assert config["architectures"] == ["Qwen3ForCausalLM"]
        raise Useless

    where = Hub(endpoint=hub.url)
    with pytest.raises(Useless):
        download(list_files(NAME, "", where), tmp_path / "hub", where, accept)
    assert not [one.path for one in hub.requests if one.path.endswith(".safetensors")]
    assert same_files(fetch(hub, tmp_path / "hub"), model), "what is accepted later is fetched as if nothing had been"
    assert len([one for one in hub.requests if one.path.endswith("config.json") and one.method == "GET"]) == 1


def test_a_config_json_that_is_none_is_one_sentence(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    (model / "config.json").write_text("[" * 100_000)
    hub.add(NAME, model)
    with pytest.raises(ModelUnavailable, match=f"^MODEL={NAME}: .*config.json: cannot be read"):
        fetch(hub, tmp_path / "hub")
