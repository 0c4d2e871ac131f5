"""The translated routes on loopback, before scripted chat answers, for clients that are not ours."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from handler.errors import InvalidJob, to_openai
from handler.translation.exchange import TRANSLATIONS

from .chats import Json, Said


@dataclass
class Chat:
    """The engine behind the routes: what it says, and what it was asked."""

    answers: list[Said]
    """In turn; the last one stays."""
    url: str = ""
    asked: list[Json] = field(default_factory=list)
    """The bodies of the chats."""
    breaks: bool = False
    """Break a stream off before its last frames."""

    def next(self, chat: Json) -> Said:
        """Note what is asked, and return the answer."""
        self.asked.append(chat)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextlib.contextmanager
def serving(*answers: Said, breaks: bool = False) -> Iterator[Chat]:
    """Serve the answers while entered."""
    chat = Chat(list(answers), breaks=breaks)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

        def do_POST(self) -> None:
            path = "/v1" + urlsplit(self.path).path.partition("/v1")[2]
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                translation = TRANSLATIONS[path](body)
            except InvalidJob as error:
                status, refusal = to_openai(error)
                self._send(status, refusal if path == "/v1/responses" else {"type": "error", "error": refusal["error"]})
                return
            said = chat.next(translation.chat)
            if not translation.chat.get("stream"):
                self._send(200, translation.whole(said.whole()))
                return
            frames = said.frames()
            made = [out for frame in (frames[:-3] if chat.breaks else frames) for out in translation.frame(frame)]
            if chat.breaks:
                made += translation.broken(503, {"error": {"message": "the engine died", "type": "server_error", "code": "engine_died"}})
            self._send(200, b"".join(made))

        def _send(self, status: int, body: Json | bytes) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream" if isinstance(body, bytes) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    chat.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
