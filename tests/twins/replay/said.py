"""What an answer says to its caller, the same whether it came whole or as a stream: the text, not its ids, times and cuts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .wire import split

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One tool call; its id is made up anew for each answer."""

    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one choice says."""

    text: str = ""
    thought: str = ""
    calls: tuple[Call, ...] = ()
    logprobs: tuple[str, ...] = ()
    """One canonical JSON text for each token."""
    prompt_ids: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    finish: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What all choices say, by index, and the usage that came last, if one came: prompt, completion, total and reasoning tokens."""

    choices: Mapping[int, Choice] = field(default_factory=dict)
    usage: tuple[int, int, int, int] | None = None


def said_whole(answer: Json) -> Said:
    """Read a whole answer."""
    choices = {}
    for position, choice in enumerate(answer["choices"]):
        part = choice.get("message") or choice
        calls = tuple(_call(call) for call in part.get("tool_calls") or ())
        choices[choice.get("index", position)] = Choice(calls=calls, finish=choice.get("finish_reason"), **_common(choice, part))
    return Said(choices=choices, usage=_usage(answer.get("usage")))


def said_streamed(chunks: Iterable[Json]) -> Said:
    """Read the events of a stream, `[DONE]` left out: pieces of one index are joined in the order of their coming."""
    choices: dict[int, Choice] = {}
    calls: dict[int, dict[int, Call]] = {}
    usage = None
    for chunk in chunks:
        usage = _usage(chunk.get("usage")) or usage
        for choice in chunk.get("choices") or ():
            index, part = choice.get("index", 0), choice.get("delta") or choice
            for position, piece in enumerate(part.get("tool_calls") or ()):
                made = calls.setdefault(index, {})
                number = piece.get("index", position)
                before, more = made.get(number, Call()), _call(piece)
                made[number] = Call(name=more.name or before.name, arguments=before.arguments + more.arguments)
            old, new = choices.get(index, Choice()), Choice(**_common(choice, part))
            choices[index] = Choice(
                text=old.text + new.text,
                thought=old.thought + new.thought,
                logprobs=old.logprobs + new.logprobs,
                prompt_ids=old.prompt_ids + new.prompt_ids,
                ids=old.ids + new.ids,
                finish=choice.get("finish_reason") or old.finish,
            )
    done = {index: replace(choice, calls=tuple(calls.get(index, {}).values())) for index, choice in choices.items()}
    return Said(choices=done, usage=usage)


def said_recorded(raw: bytes) -> Said | None:
    """Read a recorded answer; None if it is no completion: an error, at once or in a stream, an empty body, another route's."""
    if not raw.startswith(b"HTTP/1.1 200 "):
        return None
    events = events_of(split(raw).pieces)
    if events:
        return said_streamed(events) if all("choices" in event for event in events) else None
    try:
        answer = json.loads(b"".join(split(raw).pieces))
    except ValueError:
        return None
    return said_whole(answer) if isinstance(answer, dict) and answer.get("choices") else None


def events_of(pieces: Iterable[bytes]) -> list[Json]:
    """The JSON values of a stream's events, each of which is one piece in every recording; empty if this is no stream."""
    data = [piece[6:] for piece in pieces if piece.startswith(b"data: ")]
    return [json.loads(one) for one in data if one.strip() != b"[DONE]"]


def _common(choice: Json, part: Json) -> Json:
    return {
        "text": (part.get("content") if "content" in part else part.get("text")) or "",
        "thought": part.get("reasoning_content") or "",
        "logprobs": tuple(_tokens(choice.get("logprobs") or {})),
        "prompt_ids": tuple(part.get("prompt_token_ids") or ()),
        "ids": tuple(part.get("completion_token_ids") or ()),
    }


def _call(call: Json) -> Call:
    function = call.get("function") or {}
    return Call(name=function.get("name"), arguments=function.get("arguments") or "")


def _tokens(logprobs: Json) -> Iterable[str]:
    """One text for each token, in either route's form; a whole chat answer has an empty list within each alternative."""
    if "tokens" in logprobs:
        for entry in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
            yield json.dumps(entry, sort_keys=True)
    for entry in logprobs.get("content") or ():
        others = [{name: other[name] for name in ("token", "logprob", "bytes")} for other in entry.get("top_logprobs") or ()]
        yield json.dumps([entry["token"], entry["logprob"], entry["bytes"], others], sort_keys=True)


def _usage(usage: Json | None) -> tuple[int, int, int, int] | None:
    if not usage:
        return None
    details = usage.get("completion_tokens_details") or {}
    return (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"], details.get("reasoning_tokens") or 0)
