"""FastDeploy's server in miniature: every answer is the name of the build, a letter a token."""

from __future__ import annotations

import importlib
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUILD: str = importlib.import_module("fastdeploy").BUILD


class Server(BaseHTTPRequestHandler):
    """Answers chats and completions, whole and streamed; `max_tokens` letters, a letter every 50 ms past the first twenty."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer /health."""
        self._reply(b"{}", "application/json")

    def do_POST(self) -> None:
        """Answer a chat or a completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = f"{BUILD} " * 1000
        letters = text[: body.get("max_tokens") or len(BUILD)]
        chat = "chat" in self.path
        if not body.get("stream"):
            self._reply(compact(self._event(chat, letters, stream=False)), "application/json")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number, letter in enumerate(letters):
            if number > 20:
                time.sleep(0.05)
            self.wfile.write(b"data: %s\n\n" % compact(self._event(chat, letter, stream=True)))
        end = self._event(chat, "", stream=True, finish="stop")
        usage = self._event(chat, letters, stream=True) | {"choices": []}
        self.wfile.write(b"data: %s\n\ndata: %s\n\ndata: [DONE]\n\n" % (compact(end), compact(usage)))
        self.close_connection = True

    def _event(self, chat: bool, text: str, *, stream: bool, finish: str | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish if stream else "stop"}
        if not chat:
            choice["text"] = text
        else:
            choice["delta" if stream else "message"] = {"role": "assistant", "content": text}
        kind = ("chat.completion" if chat else "text_completion") + (".chunk" if chat and stream else "")
        usage = {"prompt_tokens": 1, "completion_tokens": len(text), "total_tokens": 1 + len(text)}
        return {"id": "miniature", "object": kind, "created": 0, "model": "miniature", "choices": [choice], "usage": usage}

    def _reply(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def compact(value: Any) -> bytes:
    """Write JSON as FastDeploy does."""
    return json.dumps(value, separators=(",", ":")).encode()


def main() -> None:
    """Serve on the port that the arguments name."""
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Server).serve_forever()


if __name__ == "__main__":
    main()
