"""Put a request to an engine that speaks FastDeploy's dialect, and read its answer: checks before, assembly and repairs after.

FastDeploy and the CPU engine both stand behind it, so that what works on a laptop works on a GPU; what differs is in `rules`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from handler.exchange import Exchange
from handler.fastdeploy.assemble import Assembler, as_stream, needs_whole
from handler.fastdeploy.checks import check
from handler.fastdeploy.repairs import Repairer, facts_of, with_usage
from handler.fastdeploy.rules import Rules
from handler.fastdeploy.text_formats import rewriter, text_formats
from handler.job import CHAT, COMPLETIONS, Request
from handler.parsing.rewriter import Rewriter
from handler.sse import frames_of

__all__ = ["exchange"]

log = logging.getLogger(__name__)

_MODELS = "/v1/models"


def exchange(request: Request, rules: Rules, *, raw: bool) -> Exchange:
    """Return how to put `request`; `raw` leaves answers as the engine gives them.

    Raises:
        InvalidJob: the engine must not see this request.
    """
    if request.body is None:
        return Exchange(request) if raw or request.path != _MODELS else _Models(request, rules.served_name)
    checked = check(request.body, request.path, rules)
    for warning in checked.warnings:
        log.warning("%s: %s", request.path, warning)
    sent = replace(request, body=checked.body)
    if raw or request.path not in {CHAT, COMPLETIONS}:
        return Exchange(sent)
    return _Mended(request.body, sent, rules)


class _Models(Exchange):
    """The list of models, in which the engine tells the directory of the weights: it has one model, and that has one name."""

    def __init__(self, request: Request, served_name: str) -> None:
        super().__init__(request)
        self._name = served_name

    def whole(self, answer: Any) -> Any:
        """Return the list with the name in place of the directory."""
        listed = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(listed, list):
            return answer
        return answer | {"data": [model | {"id": self._name, "root": self._name} for model in listed if isinstance(model, dict)]}


class _Mended(Exchange):
    """A chat or text completion.

    It is streamed from the engine wherever that loses nothing: only a stream shows progress and can be aborted.
    """

    def __init__(self, asked: dict[str, Any], request: Request, rules: Rules) -> None:
        body, hide_usage = request.body or {}, False
        if request.stream:
            body, hide_usage = with_usage(body, rules)
        elif not needs_whole(body, request.path, rules):
            body = as_stream(body)
        super().__init__(replace(request, body=body, stream=bool(body.get("stream"))))
        facts = facts_of(asked, request.path, rules, hide_usage=hide_usage)
        self._repairer = Repairer(facts)
        self._assembler = Assembler(request.path, n=facts.n)
        self._rewriter: Rewriter | None = None
        if request.path == CHAT:
            formats = text_formats(rules.own_parser, rules.directory)
            # The native shape has no place for thoughts.
            thoughts = not (rules.reasoning_parser or request.native)
            self._rewriter = rewriter(formats, asked, request.body or {}, thoughts=thoughts)

    def run(self, run: bytes) -> bytes:
        """Return the frames, mended where they must be, with calls and thoughts in their fields."""
        mended = b"".join(mended for frame in frames_of(run) for mended in self._repairer.frame(frame))
        if self._rewriter is None or self._rewriter.passes(mended):
            return mended
        return b"".join(made for frame in frames_of(mended) for made in self._rewriter.frame(frame))

    def whole(self, answer: Any) -> Any:
        """Return the answer, mended where it must be, with calls and thoughts in their fields."""
        mended = self._repairer.answer(answer)
        return self._rewriter.whole(mended) if self._rewriter and isinstance(mended, dict) else mended

    def collect(self, run: bytes) -> None:
        """Take the next frames."""
        for frame in frames_of(run):
            self._assembler.feed(frame)

    def collected(self) -> Any:
        """Return the answer that the engine would have given without a stream."""
        return self._assembler.answer()
