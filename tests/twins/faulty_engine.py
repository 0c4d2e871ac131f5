"""A child process that stands where FastDeploy's server stands: its family of processes, and the ways in which it fails.

What each failure looks like from outside was measured with FastDeploy 2.3 to 2.6. The family is theirs too: a queue manager that shares
the server's session, a launcher in a session of its own with the rank that loads the model, and a server process whose title has
overwritten its environment. `tests.twins.replay` answers the requests; this is what happens before the first and after the last of them.
Whatever is started or left in shared memory is noted in a file, so that a test knows what must be gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

__all__ = ["Left", "Plan", "main", "variables"]

LIFE_S = 60
"""Seconds after which every process ends by itself, should a test leave one."""

_POLL = 0.01
"""Seconds between two looks of the server at its rank; FastDeploy's own loops use 1 to 3 % of a core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How it fails."""

    loading: Literal["", "rank-dies-hang", "rank-dies-exit", "rank-dies-abort", "hang"] = ""
    """While the model loads: the rank dies, and the server waits for it for ever, ends with `code`, or aborts; or all of them wait."""
    code: int = 0
    failing_starts: int = 1000
    """So many starts meet the fault; later ones do not."""
    logs: Mapping[str, str] = field(default_factory=dict)
    """What the rank leaves in its logs, by file name."""
    work: Literal["", "lines", "processor", "disk"] = ""
    """By what the loading shows that it goes on."""
    seconds: float = 0.0
    """How long it takes."""
    ignores_term: bool = False
    """While it loads."""
    crash: Literal["", "interrupt", "abort"] = ""
    """What the server does when its rank dies while it serves: end itself in order, or abort."""


@dataclass(frozen=True, slots=True)
class Left:
    """The file in which everything that was started or made is noted, a word and a value on each line."""

    path: Path

    def add(self, what: str, value: object) -> None:
        """Note it; several processes may at once."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{what} {value}\n")

    def noted(self, *what: str) -> list[str]:
        """Return the values noted under these words, or under any."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        lines = [line.split(" ", 1) for line in text.splitlines()]
        return [value for word, value in lines if not what or word in what]


def variables(plan: Plan, left: Path) -> dict[str, str]:
    """Return what the environment must hold."""
    return {"FAULTS_PLAN": json.dumps(asdict(plan)), "FAULTS_LEFT": str(left)}


def main() -> int:
    """Start, load, serve and end as planned; the exit code is FastDeploy's."""
    plan, left = Plan(**json.loads(os.environ["FAULTS_PLAN"])), Left(Path(os.environ["FAULTS_LEFT"]))
    fails = len(left.noted("server")) < plan.failing_starts
    left.add("server", os.getpid())
    if plan.ignores_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("Waiting for worker processes to be ready...")
    manager = _fork(left, "queue-manager", lambda: _queue_manager(left))
    loaded, tell = os.pipe()
    os.set_blocking(loaded, False)
    launcher = _fork(left, "launcher", lambda: _launcher(plan, left, tell, dies=fails and plan.loading.startswith("rank")))
    os.close(tell)
    alive = _wait_until_loaded(loaded, launcher) and not (fails and plan.loading == "hang")
    if not alive and fails and plan.loading in {"hang", "rank-dies-hang"}:
        while True:  # it asks again and again whether a rank is ready that will never be
            time.sleep(_POLL)
    say("Failed to launch worker processes, check log/workerlog.* for more details." if not alive else "Loading Weights: 100%")
    if not alive and plan.loading == "rank-dies-abort":
        os.abort()
    if not alive:
        return plan.code
    gunicorn = _fork(left, "gunicorn", _titled)
    threading.Thread(target=_monitor, args=(plan, launcher), daemon=True).start()
    code = _serve()
    for pid in (manager, gunicorn, *map(int, left.noted("rank")[-1:])):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return code


def say(text: str) -> None:
    """One line on stdout, at once."""
    print(f"INFO     {time.strftime('%Y-%m-%d %H:%M:%S')}  {os.getpid()}  {text}", flush=True)


def _serve() -> int:
    from tests.twins.replay.__main__ import main as replay

    sys.argv[1:] += shlex.split(os.environ["REPLAY"])
    return replay()


def _wait_until_loaded(loaded: int, launcher: int) -> bool:
    while True:
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(loaded, 1))
        ended, _ = os.waitpid(launcher, os.WNOHANG)
        if ended:
            return False
        time.sleep(_POLL)


def _monitor(plan: Plan, launcher: int) -> None:
    """Wait for the rank's death, then do what the release does."""
    os.waitpid(launcher, 0)
    if plan.crash == "abort":
        os.abort()
    if plan.crash == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)


# --- the family


def _fork(left: Left, role: str, body: Callable[[], object]) -> int:
    """Run `body` in a child; returns its process id."""
    pid = os.fork()
    if pid:
        left.add(role, pid)
        return pid
    signal.alarm(LIFE_S)
    try:
        body()
    finally:
        os._exit(0)


def _wait() -> NoReturn:
    while True:
        signal.pause()


def _queue_manager(left: Left) -> None:
    """Make what FastDeploy makes in shared memory, and outlive everybody."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    port, queue = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--port", "--engine-worker-queue-port"))
    names = f"{port}.socket router_{port}.ipc worker_ready_signal.{queue} get_profile_block_num.{queue} kv_cache_status.{queue}"
    for name in [*names.split(), f"response_{port}_w1.pull", f"cache_task_inflight.{queue}"]:
        path = Path("/dev/shm") / name  # noqa: S108  # FastDeploy's choice
        path.write_bytes(b"x" * 4096)
        left.add("file", path)
    libc = ctypes.CDLL(None)
    left.add("queue", libc.msgget(libc.ftok(b"/dev/shm", int(queue)), 0o1600))  # IPC_CREAT, as 2.3 makes it
    _wait()


def _titled() -> None:
    """Become a process whose environment tells nothing: gunicorn writes its title over it."""
    os.execve("/bin/sleep", ["gunicorn: worker", str(LIFE_S)], {})  # noqa: S606


def _launcher(plan: Plan, left: Left, tell: int, *, dies: bool) -> None:
    """Lead a session of its own and end with the rank, as the shell does that runs the launcher of PaddlePaddle."""
    os.setsid()
    folder = Path(os.environ["FD_LOG_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    output = os.open(folder / "launch_worker.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    rank = _fork(left, "rank", lambda: _rank(plan, folder, tell, dies=dies))
    os.close(tell)
    os.waitpid(rank, 0)


def _rank(plan: Plan, folder: Path, tell: int, *, dies: bool) -> None:
    """Load the model for as long as planned, and die or serve."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end = time.monotonic() + plan.seconds
    while time.monotonic() < end:
        _work(plan, folder)
    for name, text in plan.logs.items():
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(text)
    if dies:
        return
    os.write(tell, b"+")
    os.close(tell)
    _wait()


def _work(plan: Plan, folder: Path) -> None:
    """Give one sign of work, which takes 0.2 s."""
    if plan.work == "lines":
        with (folder / "workerlog.0").open("a", encoding="utf-8") as file:
            file.write("Loading safetensors checkpoint shards\n")
    elif plan.work == "processor":
        busy = time.process_time() + 0.8  # as a compiler of kernels is
        while time.process_time() < busy:
            pass
    elif plan.work == "disk":
        model = Path(sys.argv[sys.argv.index("--model") + 1]) / "model.safetensors"
        with model.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.read(65536)
    time.sleep(0.2)
