"""What an engine left is removed by its ports, and nothing of a neighbour's; logs of dead workers go, those of living ones stay."""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.fastdeploy import cleanup
from handler.fastdeploy.cleanup import QUEUES, Cleanup, LogFolder
from handler.fastdeploy.flags import RELEASES
from tests.handler.fastdeploy.starts import engine

NAMES = (
    "{}.socket router_{}.ipc fd_task_queue_{}.sock fd_lock_gpu_cache_lock.{} response_{}_w77.pull get_save_output_rank0_{}.socket "
    "worker_ready_signal.{} loaded_model_signal.{} get_profile_block_num.{} model_weights_status.{} kv_cache_status.{} "
    "prefix_tree_status.{} cache_task_inflight.{} cache_task_is_paused.{} need_block_num_signal.{} exist_tasks_intra_signal.{} "
    "local_experts_token_stats.{}_dp0_tp1"
).split()
"""As FastDeploy 2.3 to 2.6 write them, {} being a port of the HTTP server or of a queue."""

CREATE = 0o1000


def cleared(folder: Path, ports: list[int]) -> set[str]:
    """Return what is left in a folder once an engine with these ports is cleared."""
    found = Cleanup(release="2.3", folder=folder, queues=folder / "none")
    found.expect(ports)
    found.clear()
    return {path.name for path in folder.iterdir()}


PORTS = st.integers(1024, 65535)


@given(st.lists(PORTS, unique=True, min_size=2, max_size=6), st.data())
def test_every_file_that_bears_a_port_of_the_start_goes_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, ports: list[int], data: st.DataObject
) -> None:
    """Rule: FastDeploy names what it makes in shared memory by its ports, and an engine's ports are its own."""
    ours = data.draw(st.sets(st.sampled_from(ports), min_size=1, max_size=len(ports) - 1))
    folder = tmp_path_factory.mktemp("shm")
    written = {name.format(port): port for port in ports for name in data.draw(st.lists(st.sampled_from(NAMES), min_size=1))}
    others = {"psm_mine", "processor_cache.ipc", f"x{min(ours)}0.socket"}
    for name in (*written, *others):
        (folder / name).touch()
    assert cleared(folder, sorted(ours)) == {name for name, port in written.items() if port not in ours} | others


@pytest.mark.parametrize("release", RELEASES)
def test_an_engine_expects_the_ports_of_each_of_its_starts(release: str) -> None:
    """Rule: a restart takes new ports, and what the start before left must go as well."""
    prepared = engine({"CONTROLLER_PORT": "9100", "DATA_PARALLEL_SIZE": "2"}, release=release, count=2)
    words = prepared.command(40001) + prepared.command(40002)
    named = {int(port) for word in words for port in word.split(",") if port.isdecimal() and 9000 < int(port) < 65536}
    assert named - prepared.cleanup.ports == set()
    assert {40001, 40002, 9100} < prepared.cleanup.ports
    prepared.clear()
    assert not prepared.cleanup.ports, "another engine may have them next"


def test_a_machine_without_shared_memory_or_queues_has_nothing_to_clean(tmp_path: Path) -> None:
    nothing = Cleanup(release="2.3", folder=tmp_path / "none", queues=tmp_path / "none")
    nothing.expect([9000])
    nothing.clear()


# --- queues


@pytest.fixture
def queue() -> Iterator[Callable[[int, str], int]]:
    """Return the way to make the queue that FastDeploy makes for a port: by C's ftok, or by the sum of its own custom_ftok."""
    libc = ctypes.CDLL(None)
    made = []

    def make(port: int, release: str) -> int:
        if release in ("2.3", "2.4"):
            key = libc.ftok(b"/dev/shm", port)
        else:
            stat = cleanup.SHARED_MEMORY.stat()
            key = ((stat.st_dev & 0x0F) << 28) | ((stat.st_ino & 0xFF) << 20) | (port & 0xFFFFF)
        made.append(libc.msgget(ctypes.c_int(key), CREATE | 0o600))
        assert made[-1] >= 0, os.strerror(ctypes.get_errno())
        return int(made[-1])

    yield make
    for number in made:
        libc.msgctl(number, 0, None)


def queues() -> set[int]:
    return {int(line.split()[1]) for line in QUEUES.read_text().splitlines()[1:]}


@pytest.mark.parametrize("release", RELEASES)
def test_only_the_queue_of_the_starts_own_port_is_removed(release: str, queue: Callable[[int, str], int]) -> None:
    ours, other = queue(41001, release), queue(41002, release)
    ending = Cleanup(release=release, folder=Path("/nonexistent"))
    ending.expect([41001])
    ending.clear()
    assert ours not in queues()
    assert other in queues()


def test_a_queue_whose_short_key_a_living_engine_shares_stays(queue: Callable[[int, str], int]) -> None:
    """Rule: keys of 2.3 and 2.4 hold 8 bits of a port, so two engines may have one; who used it last tells whether it is needed."""
    shared = queue(41001, "2.3")
    assert queue(41001 + 256, "2.3") == shared
    message = ctypes.create_string_buffer(b"\1" + bytes(15))
    assert ctypes.CDLL(None).msgsnd(shared, message, 8, 0) == 0
    ending = Cleanup(release="2.3", folder=Path("/nonexistent"))
    ending.expect([41001])
    ending.clear()
    assert shared in queues(), "this process, which lives, has sent the last message"


@pytest.mark.parametrize("text", ["", "key msqid\n"])
def test_a_table_of_queues_that_tells_nothing_is_no_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "msg").write_text(text)
    nothing = Cleanup(release="2.3", folder=tmp_path, queues=tmp_path / "msg")
    nothing.expect([9000])
    nothing.clear()


# --- logs


def test_logs_are_private_and_go_at_the_end_and_a_new_start_has_them_again(tmp_path: Path) -> None:
    logs = LogFolder(tmp_path)
    for _ in range(2):
        logs.make()
        logs.make()
        assert logs.path.stat().st_mode & 0o777 == 0o700
        (logs.path / "api_server.log").write_text("prompt")
        logs.remove()
        assert not list(tmp_path.iterdir())
    logs.remove()


def test_the_logs_of_a_worker_that_was_killed_go_at_the_next_start_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    code = "import sys, pathlib; from handler.fastdeploy.cleanup import LogFolder; logs = LogFolder(pathlib.Path(sys.argv[1])); logs.make()"
    code += "; (logs.path / 'api_server.log').touch(); print(logs.path, flush=True); sys.stdin.read()"
    arguments = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        left = Path(worker.stdout.readline().strip())
        LogFolder(tmp_path)
        assert (left / "api_server.log").exists(), "its worker lives"
        worker.kill()
        worker.wait()
    LogFolder(tmp_path)
    assert not left.exists()


def test_only_folders_with_the_names_of_log_folders_are_taken_for_them(tmp_path: Path) -> None:
    others = {"fastdeploy", "fastdeploy-1", f"fastdeploy-{'g' * 16}", f"fastdeploy-{'a' * 16}x"}
    for name in others:
        (tmp_path / name).mkdir()
    target = tmp_path / "elsewhere"
    target.mkdir()
    (tmp_path / f"fastdeploy-{'b' * 16}").symlink_to(target)
    (tmp_path / f"fastdeploy-{'c' * 16}").touch()
    LogFolder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == others | {"elsewhere", f"fastdeploy-{'b' * 16}", f"fastdeploy-{'c' * 16}"}
    LogFolder(tmp_path / "none")


def test_a_folder_that_another_start_removed_before_it_was_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs, lock = LogFolder(tmp_path), fcntl.flock

    def late(folder: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        logs.path.rmdir()
        lock(folder, how)

    monkeypatch.setattr(fcntl, "flock", late)
    logs.make()
    LogFolder(tmp_path)
    assert logs.path.is_dir(), "made, and locked"
    logs.remove()


def test_the_folder_of_another_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / f"fastdeploy-{'d' * 16}"
    folder.mkdir()
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    LogFolder(tmp_path)
    assert folder.is_dir()


def test_a_loggers_file_is_emptied_once_it_is_too_large_and_its_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "MOST_LOGGED", 1 << 16)
    logs = LogFolder(tmp_path)
    logs.make()
    small, followed = logs.path / "fastdeploy.log", logs.path / "launch_worker.log"
    small.write_text("x")
    followed.write_bytes(b"x" * (1 << 17))
    with (logs.path / "api_server.log").open("ab", buffering=0) as writer:
        writer.write(b"x" * (1 << 17))
        logs.bound()
        writer.write(b"next")
    assert (logs.path / "api_server.log").read_bytes() == b"next"
    assert (small.read_text(), followed.stat().st_size) == ("x", 1 << 17)
    logs.remove()


def test_an_engine_has_its_logs_from_its_start_to_its_end_and_leaves_those_that_the_operator_wanted(tmp_path: Path) -> None:
    prepared = engine({"FD_LOG_DIR": ""})
    folder = Path(prepared.variables()["FD_LOG_DIR"])
    assert not folder.exists()
    prepared.log_files()
    assert folder.is_dir()
    prepared.bound_logs()
    prepared.clear()
    assert not folder.exists()
    wanted = engine({"FD_LOG_DIR": str(tmp_path)})
    wanted.log_files()
    wanted.bound_logs()
    wanted.clear()
    assert tmp_path.is_dir()
