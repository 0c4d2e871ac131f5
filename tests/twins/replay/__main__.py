"""Start, load, serve, and exit as FastDeploy's server does."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

from . import orphan
from .options import LOADING_FAULTS, Options, parse
from .recordings import BadTranscripts, Library, Recording, load
from .server import Server
from .twin import TwinLibrary


def main() -> int:
    """Run until SIGTERM or SIGINT; the exit code is FastDeploy's, which is 0 for most failures too."""
    options = parse(sys.argv[1:], os.environ)
    try:
        recordings = load(options.transcripts)
        library = _library(recordings, options)
    except BadTranscripts as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    if options.behaviour.fault("ignore-term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = _load_model(options)
    if code is not None:
        return code
    try:
        listener = socket.create_server((options.host, options.port), backlog=1024)
    except OSError as error:
        print(f"replay: cannot listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr)
        return 1
    with listener:
        parent_pipe = _leave_orphan(listener) if options.behaviour.fault("orphan") else None
        _announce(options.host, listener.getsockname()[1])
        asyncio.run(Server(library, options.behaviour).run(listener))
        if parent_pipe is not None:
            os.close(parent_pipe)
    return 0


def _library(recordings: list[Recording], options: Options) -> Library:
    """What answers requests, as the options say."""
    if options.twins:
        return TwinLibrary(
            recordings, setup=options.setup, ignored=options.ignored_fields, fallbacks=options.fallbacks, served=options.served_name
        )
    return Library(recordings, setup=options.setup, ignored=options.ignored_fields, fallbacks=options.fallbacks)


def _load_model(options: Options) -> int | None:
    """Take the time of a start; an exit code ends the process. SIGTERM ends it at once here, with code -15, as it does FastDeploy."""
    say(f"args: {' '.join(options.engine_flags)}")
    say("Waiting for worker processes to be ready...")
    if options.worker_log and options.log_folder:
        options.log_folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(options.worker_log, options.log_folder / "workerlog.0")
    time.sleep(options.start_delay_s)
    say("Loading Weights: 100%|##########| 100/100")
    fault = next((one for one in options.behaviour.faults if one.kind in LOADING_FAULTS), None)
    if fault is None:
        return None
    if fault.kind == "hang-while-loading":
        while True:
            signal.pause()
    time.sleep(fault.number(0.0))
    say("Failed to launch worker processes, check log/workerlog.* for more details.")
    return 0 if fault.kind == "exit-0-while-loading" else 1


def _announce(host: str, port: int) -> None:
    """The lines by which people recognise that FastDeploy is up; the port opens just after them."""
    say(f"Launching chat completion service at http://{host}:{port}/v1/chat/completions")
    say(f"Launching completion service at http://{host}:{port}/v1/completions")
    say("Application startup complete.")


def _leave_orphan(listener: socket.socket) -> int:
    """Start the process that outlives this one; returns the write end of a pipe whose closing, by whatever end, it waits for."""
    read_end, write_end = os.pipe()
    pid = subprocess.Popen(  # not waited for: outliving us is its purpose
        [sys.executable, orphan.__file__, "--listener-fd", str(listener.fileno()), "--parent-pipe-fd", str(read_end)],
        pass_fds=(listener.fileno(), read_end),
        start_new_session=True,
    ).pid
    os.close(read_end)
    say(f"orphan pid {pid}")
    return write_end


def say(text: str) -> None:
    """One line on stdout, at once."""
    print(f"INFO     {time.strftime('%Y-%m-%d %H:%M:%S')}  {os.getpid()}  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
