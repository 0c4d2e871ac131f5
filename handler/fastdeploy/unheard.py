"""Which options of a request an engine would accept and ignore, and why.

No option is dropped silently: one that is listed here is reported in the log, or refused with STRICT_REQUESTS. Any value of an option
counts as a request, false, 0, "" and [] included, but for the values listed beside it, which ask for the default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handler.fastdeploy.rules import NoEffect, Rules
from handler.fastdeploy.text_formats import text_formats
from handler.job import CHAT, COMPLETIONS

__all__ = ["GUIDED", "unheard"]

GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structural_tag")
"""Fields that bind an answer to a form, beside `response_format`."""

_CHATS_ONLY = {
    "tools": NoEffect("a text completion has none", ([],)),
    "tool_choice": NoEffect("a text completion has none", ("none", "auto")),
    "chat_template": NoEffect("a text completion has none"),
    "chat_template_kwargs": NoEffect("a text completion has none", ({},)),
    "enable_thinking": NoEffect("a text completion has no template"),
    "include_reasoning": NoEffect("a text completion has none", (True,)),  # of a chat's answer the worker takes the thoughts away
    "reasoning_effort": NoEffect("a text completion has none"),
    "reasoning_max_tokens": NoEffect("a text completion has none"),
    "structural_tag": NoEffect("a text completion has none"),
    "top_logprobs": NoEffect("a text completion reads `logprobs` only", (0,)),
}
_COMPLETIONS_ONLY = {
    "echo": NoEffect("a chat has none", (False,)),
    "suffix": NoEffect("a chat has none"),
}


def unheard(sent: dict[str, Any], path: str, rules: Rules) -> Iterator[tuple[str, str]]:
    """Yield each option of a checked request that will have no effect, with the reason."""
    other = _COMPLETIONS_ONLY if path == CHAT else _CHATS_ONLY
    for name, about in {**rules.engine.ignores, **other}.items():
        if about.is_asked(sent.get(name)):
            yield name, about.why
    form = sent.get("response_format")
    if not rules.guided_decoding:
        fields = [name for name in GUIDED if sent.get(name) is not None and name not in other]
        fields += ["response_format"] if form is not None and form["type"] != "text" else []
        yield from ((name, "no guided decoding here (GUIDED_DECODING_BACKEND)") for name in fields)
    if path == COMPLETIONS:
        if sent.get("logprobs") == 0 and rules.logprobs is False:
            yield "logprobs", "this deployment gives none (ENABLE_LOGPROB)"
        return
    yield from _tools(sent, rules)
    if rules.vision is False and _has_media(sent["messages"]):
        yield "messages", "the model reads no images or videos"


def _tools(sent: dict[str, Any], rules: Rules) -> Iterator[tuple[str, str]]:
    choice, tools = sent.get("tool_choice"), sent.get("tools")
    parsed = rules.tool_parser or text_formats(rules.own_parser, rules.directory).family is not None
    if choice not in (None, "none", "auto"):
        if not rules.engine.forces_calls:
            yield "tool_choice", "the engine leaves the choice to the model"
    elif tools and not parsed:
        yield "tools" if choice is None else "tool_choice", "no parser for this model's calls (TOOL_CALL_PARSER); they come as plain text"
    if sent.get("parallel_tool_calls") is False and tools and parsed and not rules.engine.forces_calls:
        yield "parallel_tool_calls", "the engine leaves the number of calls to the model"


def _has_media(messages: list[dict[str, Any]]) -> bool:
    contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    return any(part["type"] != "text" for content in contents for part in content)
