"""The process that stays behind: in a session of its own it waits for the server's death, then answers /health with 200 on the same port.

FastDeploy's gunicorn worker does so after SIGKILL of the main process; everything but /health waits for an engine that is gone.
It ends by itself after `LIFE_S`, so that a failed test leaves nothing for long.
"""

import argparse
import os
import signal
import socket
import threading

LIFE_S = 120
HEALTHY = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: 0\r\nConnection: close\r\n\r\n"


def serve(listener: socket.socket) -> None:
    """Answer for ever, one thread per connection."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        head = b""
        while b"\r\n\r\n" not in head:
            received = connection.recv(65536)
            if not received:
                return
            head += received
        if head.startswith((b"GET /health ", b"GET /ping ")):
            connection.sendall(HEALTHY)
            return
        while connection.recv(65536):
            pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listener-fd", type=int, required=True)
    parser.add_argument("--parent-pipe-fd", type=int, required=True, help="read end; its end of file is the server's death")
    options = parser.parse_args()
    signal.alarm(LIFE_S)
    os.read(options.parent_pipe_fd, 1)
    inherited = socket.socket(fileno=options.listener_fd)
    inherited.setblocking(True)  # the server's event loop had made it non-blocking for both
    serve(inherited)
