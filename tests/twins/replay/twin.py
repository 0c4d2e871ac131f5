"""Answer a request from a recording of the same question in another form, where that very request was not recorded.

A worker may stream what its caller wanted whole, ask for a usage, leave out a request id, or write the served name for another that means
it. None of that changes what the engine says, so a recording says it too:

1. A recorded stream answers, its usage taken away, or added: from another recording of the question, else counted.
2. A recorded whole answer is cut into the stream that this release sends (see `form`).
3. A recorded failure answers a stream with the same failure, which comes before the first event.

Recordings that give different answers to one question answer nothing: a miss is loud, a wrong answer is not.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from .form import CHAT, Form
from .recordings import Library, Miss, Recording, canonical, json_object
from .said import Json, events_of, said_recorded
from .synthetic import PROMPT_TOKENS
from .wire import Request, split

DONE: Final = b"data: [DONE]\n\n"

_FORM_ONLY = frozenset({"stream", "stream_options", "request_id", "model"})


class TwinLibrary(Library):
    """A library that knows the other forms of what it holds."""

    def __init__(
        self,
        recordings: Collection[Recording],
        *,
        setup: str,
        fallbacks: Collection[str] = (),
        served: str | None = None,
    ) -> None:
        """As `Library`; `served` is the name under which the model is served now, whatever it was when it was recorded."""
        super().__init__(recordings, setup=setup, fallbacks=fallbacks)
        self._names = {served, "default", None}
        self._forms = {path: form for path in (CHAT, "/v1/completions") if (form := _form(recordings, path))}

    def find(self, request: Request, *, checks_keys: bool = False) -> Recording | Miss:
        """As `Library.find`, with twins before fallbacks."""
        found = super().find(request, checks_keys=checks_keys)
        if isinstance(found, Recording) and found.by == "recording":
            return found
        return self._twin(request) or found

    def _twin(self, request: Request) -> Recording | Miss | None:
        body = json_object(request.body)
        if not body:
            return None
        asked = question(body, known=body.get("model") in self._names)
        same = [one for one in self._own if one.request.path == request.path and not one.refused_key and _question_of(one) == asked]
        failures = [one for one in same if not said_recorded(one.raw)]
        streams = [one for one in same if one.is_stream and one not in failures]
        wholes = [one for one in same if not one.is_stream and one not in failures]
        wanted = (streams, wholes, failures) if body.get("stream") is True else (wholes, failures)
        found = next(filter(None, wanted), [])
        if not found:
            return None
        if len({_gist(one) for one in found}) > 1:
            return Miss(closest=found[0].case, differences=(f"recorded with different answers: {', '.join(one.case for one in found)}",))
        if found is failures or body.get("stream") is not True:
            return replace(found[0], by="twin")
        return self._streamed(found[0], [*streams, *wholes], request)

    def _streamed(self, found: Recording, same: list[Recording], request: Request) -> Recording | Miss:
        form = self._forms.get(request.path)
        if form is None:
            return Miss(closest=found.case, differences=("recorded whole, and no stream of this route to take the form from",))
        body = json_object(request.body)
        n = body.get("n") or 1
        if found.is_stream:
            answer = split(found.raw)
            events = [event for event in events_of(answer.pieces) if event["choices"]]
        else:
            answer, events = form.answer, list(form.events(whole_answer(found), n))
        if wants_usage(body):
            events = list(form.with_usage(events, _usage_told(same) or _counted(events, form), n))
        made = replace(answer, pieces=(*map(form.frame, events), DONE))
        return replace(found, by="twin", raw=made.head + b"".join(map(made.framed, made.pieces)) + made.end)


def question(body: Json, *, known: bool) -> str:
    """What is asked, whatever form the answer is to have; `known` is whether the model's name is one of the served model."""
    rest = {name: value for name, value in body.items() if name not in _FORM_ONLY}
    if not known:
        rest["model"] = body.get("model")
    if body.get("stream") is not True:
        rest.pop("max_streaming_response_tokens", None)  # it packs events, of which there are none
    if (body.get("stream_options") or {}).get("continuous_usage_stats"):
        rest["stream_options"] = "continuous"
    if body.get("temperature") == 0:
        rest.pop("top_k", None)  # which makes it greedy, if anything
    return canonical(rest)


def whole_answer(recording: Recording) -> Json:
    """The JSON object of a whole answer."""
    return json_object(recording.body)


def _question_of(recording: Recording) -> str:
    """Every name that was not refused is one of the served model's: a server without a served name takes any."""
    return question(json_object(recording.request.body), known=b'"model_not_support"' not in recording.raw)


def _gist(recording: Recording) -> str:
    """One text for answers that say the same."""
    said = said_recorded(recording.raw)
    if said:
        return repr(sorted(said.choices.items()))
    error = whole_answer(recording).get("error") if recording.raw else None
    return canonical([recording.raw[:12].decode(), {**error, "message": None} if isinstance(error, dict) else error])


def wants_usage(body: Json) -> bool:
    """Whether a stream is to end with its usage: with `stream_options` of any kind that does not say no."""
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage", True))


def _usage_told(recordings: list[Recording]) -> Json | None:
    """The usage of a whole request, from a recording that tells it; a stream of several choices may tell one for each."""
    for one in recordings:
        events = events_of(split(one.raw).pieces) if one.is_stream else []
        told: list[Json] = [event["usage"] for event in events if not event["choices"]] or [whole_answer(one).get("usage") or {}]
        if len(told) == 1 and told[0]:
            return told[0]
    return None


def _counted(events: list[Json], form: Form) -> Json:
    """A usage where nothing tells one: a token for each piece, and a prompt of made-up length unless its ids are told."""
    pieces = [choice for event in events for choice in event["choices"]]
    opening = [piece for piece in pieces if (piece.get("delta") or {}).get("role")]
    tokens = len(pieces) - len(opening)
    told = opening[0]["delta"].get("prompt_token_ids") if opening else None
    prompts = 1 if form.chat else len({piece["index"] for piece in pieces})
    prompt = len(told) if told else PROMPT_TOKENS * prompts
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def _form(recordings: Collection[Recording], path: str) -> Form | None:
    """The form of the first recorded stream that asked for nothing but its usage; None if there is none."""
    for one in recordings:
        body = json_object(one.request.body)
        is_plain = not body.keys() - {"messages", "prompt", "stream", "stream_options"} and isinstance(body.get("prompt", ""), str)
        if one.request.path == path and is_plain and body.get("stream_options") == {"include_usage": True} and one.is_stream:
            return Form.of(split(one.raw), chat=path == CHAT)
    return None
