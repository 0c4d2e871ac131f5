"""One job from a file, through the same handler that serves RunPod, to a person at a terminal."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from typing import Any

from handler.engine import Engine
from handler.job_queue import Handler
from handler.proxy import Proxy
from handler.settings import Settings
from handler.sse import data_of, frames_of, is_done

__all__ = ["answer_once"]

_SSE = re.compile(r"(?:data|event|id|retry)?:")
"""How a piece of a stream begins, which is made of whole frames; any other text is an answer as it is, such as the engine's metrics."""


async def answer_once(engine: Engine, settings: Settings, job: dict[str, Any]) -> bool:
    """Print the answer to one job as it comes, then a line of figures; return whether it succeeded."""
    await engine.ready()
    started, printer = time.perf_counter(), _Printer()
    async with Proxy(engine, settings.limits) as proxy:
        pieces = Handler(proxy, settings).answer(job)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, dict) and isinstance(piece.get("error"), str):
                    print(f"\n{piece['error']}", file=sys.stderr)
                    return False
                printer.show(piece, time.perf_counter() - started)
    printer.figures(time.perf_counter() - started)
    return True


class _Printer:
    """Shows what pieces say, whatever their shape, and counts."""

    def __init__(self) -> None:
        self._prompt_tokens: int | None = None
        self._output_tokens: int | None = None
        self._first: float | None = None
        self._texts = 0

    def show(self, piece: Any, now: float) -> None:
        for answer in self._answers(piece):
            if usage := answer.get("usage"):
                self._prompt_tokens = usage.get("prompt_tokens", usage.get("input"))
                self._output_tokens = usage.get("completion_tokens", usage.get("output"))
            text = "".join(_texts(answer))
            if text:
                self._texts += 1
                self._first = self._first or now
            print(text, end="", flush=True)

    def _answers(self, piece: Any) -> list[dict[str, Any]]:
        if isinstance(piece, str) and not _SSE.match(piece):
            print(piece, end="")
            return []
        if isinstance(piece, str):
            return [json.loads(data_of(frame) or b"{}") for frame in frames_of(piece.encode()) if not is_done(frame)]
        if isinstance(piece, dict) and "choices" in piece:
            return [piece]
        print(json.dumps(piece, ensure_ascii=False, indent=2), end="")
        return []

    def figures(self, total: float) -> None:
        print()
        if self._first is None:
            return
        # Of an answer that came in one piece only the whole time is known.
        tokens, seconds = self._output_tokens or 0, total
        if self._texts > 1:
            tokens, seconds = tokens - 1, total - self._first
        rate = f"{tokens / seconds:.1f}" if tokens > 0 and seconds > 0 else "-"
        counts = f"{_known(self._prompt_tokens)} prompt tokens, {_known(self._output_tokens)} output tokens"
        print(f"\n{counts}, TTFT {self._first * 1000:.0f} ms, {rate} tokens/s")


def _known(count: int | None) -> str:
    return "-" if count is None else str(count)


def _texts(answer: dict[str, Any]) -> list[str]:
    delta = answer.get("delta")  # of the events of Responses, and of Messages
    found = [delta] if isinstance(delta, str) else [delta.get("thinking") or "", delta.get("text") or ""] if isinstance(delta, dict) else []
    for choice in answer.get("choices", []):
        message = choice.get("delta") or choice.get("message") or {}
        found += [message.get("reasoning_content") or "", message.get("content") or choice.get("text") or "", *choice.get("tokens", [])]
    return found
