"""Token events -> the JSON and the SSE frames of the answer: FastDeploy 2.3's keys, and all that OpenAI's schema requires.

Where FastDeploy 2.3 differs from that schema, this follows the schema: every frame has an `object`, `finish_reason` is null in every
frame but the last, `text_offset` is a list, and an answer that filled the context ends with `length`. Other keys are FastDeploy's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from cpu_engine.call_text import CallText
from cpu_engine.prompts import Prompt
from cpu_engine.request import GenerationRequest
from cpu_engine.sampling import ScoredToken
from cpu_engine.sequence import TokenEvent
from cpu_engine.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True, kw_only=True)
class _Choice:
    """What one choice has produced so far."""

    offsets: _Offsets
    call: CallText | None
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    events: list[TokenEvent] = field(default_factory=list)
    finish: str | None = None


class _Offsets:
    """Where each token of a text completion begins in its text, in characters; with `echo` the prompt is the first part of it."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt | None) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer()
        self._prompt_left = len(prompt.tokens) if prompt else 0
        self._answer_begins = len(prompt.text) if prompt else 0
        self._next = 0

    def of(self, token: int) -> int:
        """Return the place of the next token."""
        offset = self._next
        self._next += len(self._detokenizer.feed(token))
        self._prompt_left -= 1
        if self._prompt_left == 0:
            self._next, self._detokenizer = self._answer_begins, self._tokenizer.detokenizer()
        return offset


class Answer:
    """One answer being built: give it every event, take frames from it or the whole at the end."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer, *, model: str, created: int) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._chat = request.kind == "chat"
        self._head = {"id": request.request_id, "created": created, "model": model}
        scored = [request.prompts[index // request.n] if spec.scores_prompt else None for index, spec in enumerate(request.specs)]
        self._choices = [
            _Choice(offsets=_Offsets(tokenizer, prompt), call=CallText(request.calls) if request.calls else None) for prompt in scored
        ]
        self._with_logprobs = request.specs[0].sampling.top_logprobs is not None

    @property
    def finished(self) -> bool:
        """Say whether every choice has its finish reason."""
        return all(choice.finish is not None for choice in self._choices)

    @property
    def prompt_tokens(self) -> int:
        """Return the tokens of all prompts, each counted once however many choices it has."""
        return sum(len(prompt.tokens) for prompt in self._request.prompts)

    @property
    def completion_tokens(self) -> int:
        """Return the tokens of all choices, end-of-sequence tokens included."""
        return sum(len(choice.tokens) for choice in self._choices)

    def opening(self) -> bytes:
        """Return the frames before the first token: the role of each chat choice, or the prompt's ids."""
        if self._chat:
            return b"".join(self._role_frame(index) for index in range(len(self._choices)))
        if self._request.return_token_ids:
            return b"".join(self._prompt_frame(index) for index in range(len(self._choices)))
        return b""

    def take(self, index: int, event: TokenEvent) -> list[dict[str, object]] | None:
        """Record an event of choice `index`; return what it adds to the call that the choice is, if it is one."""
        choice = self._choices[index]
        choice.text.append(event.text)
        choice.events.append(event)
        if event.token is not None:
            choice.tokens.append(event.token)
        if event.finish is not None:
            choice.finish = "tool_calls" if choice.call and event.finish == "stop" else event.finish
        return choice.call.feed(event.text, finish=event.finish) if choice.call else None

    def frame(self, index: int, event: TokenEvent, elapsed: float) -> bytes:
        """Record an event and return its frame; `elapsed` is seconds since the request arrived."""
        choice = self._choices[index]
        first = not choice.events
        calls = self.take(index, event)
        ids = [event.token] if self._request.return_token_ids and event.token is not None else None
        logprobs = self._logprobs(choice, [event], stream=True)
        if not self._chat:
            text = self._echo(index) + event.text if first else event.text
            return _frame(self._chunk([self._text_choice(index, text, ids, logprobs, event, elapsed)]))
        delta: dict[str, object] = {"content": "" if choice.call else event.text, "prompt_token_ids": None, "completion_token_ids": ids}
        delta |= {"reasoning_content": "", "tool_calls": calls or None}
        if ids is not None:
            delta["completion_tokens"] = event.text
        made: dict[str, object] = {"index": index, "delta": delta, "logprobs": logprobs, "draft_logprobs": None}
        made |= {"finish_reason": choice.finish, "arrival_time": elapsed}
        chunk = self._chunk([made])
        if self._request.continuous_usage:
            chunk["usage"] = self._stream_usage()
        return _frame(chunk)

    def closing(self) -> bytes:
        """Return what follows the last token: the usage frame if it was asked for, and the end mark."""
        if not self._request.final_usage:
            return DONE
        return _frame(self._chunk([]) | {"usage": self._stream_usage()}) + DONE

    def whole(self) -> dict[str, object]:
        """Return the body of the answer that is not streamed."""
        make = self._whole_chat_choice if self._chat else self._whole_text_choice
        return {
            "id": self._head["id"],
            "object": "chat.completion" if self._chat else "text_completion",
            "created": self._head["created"],
            "model": self._head["model"],
            "choices": [make(index) for index in range(len(self._choices))],
            "usage": self._usage({"cached_tokens": 0, "image_tokens": 0, "video_tokens": 0}),
        }

    def _chunk(self, choices: list[dict[str, object]]) -> dict[str, object]:
        return {
            "id": self._head["id"],
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": self._head["created"],
            "model": self._head["model"],
            "choices": choices,
        }

    def _role_frame(self, index: int) -> bytes:
        prompt = self._request.prompts[index // self._request.n]
        with_ids = self._request.return_token_ids
        delta: dict[str, object] = {"role": "assistant", "content": ""}
        delta |= {"prompt_token_ids": list(prompt.tokens) if with_ids else None, "completion_token_ids": None}
        delta |= {"reasoning_content": "", "tool_calls": None}
        if with_ids:
            delta["prompt_tokens"] = prompt.text
        chunk = self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
        if self._request.continuous_usage:
            chunk["usage"] = self._usage({"cached_tokens": 0, "image_tokens": 0, "video_tokens": 0})
        return _frame(chunk)

    def _prompt_frame(self, index: int) -> bytes:
        prompt = self._request.prompts[index // self._request.n]
        choice: dict[str, object] = {"index": index, "text": "", "logprobs": None, "finish_reason": None}
        choice |= {"prompt_token_ids": list(prompt.tokens), "completion_token_ids": None, "prompt_tokens": prompt.text}
        return _frame(self._chunk([choice]))

    def _text_choice(
        self, index: int, text: str, ids: list[int] | None, logprobs: object, event: TokenEvent, elapsed: float
    ) -> dict[str, object]:
        choice: dict[str, object] = {"index": index, "text": text, "arrival_time": elapsed, "logprobs": logprobs}
        choice |= {"draft_logprobs": None, "prompt_token_ids": None, "completion_token_ids": ids}
        choice |= {"completion_tokens": None if ids is None else event.text, "reasoning_content": ""}
        return choice | {"finish_reason": event.finish, "tool_calls": None}

    def _whole_chat_choice(self, index: int) -> dict[str, object]:
        choice = self._choices[index]
        text = "".join(choice.text)
        message: dict[str, object] = {"role": "assistant", "content": "" if choice.call else text, "multimodal_content": None}
        message |= {"reasoning_content": None, "tool_calls": choice.call.whole() if choice.call else None}
        message |= self._whole_ids(index, text)
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(choice, choice.events, stream=False),
            "draft_logprobs": None,
            "finish_reason": choice.finish,
        }

    def _whole_text_choice(self, index: int) -> dict[str, object]:
        choice = self._choices[index]
        text = "".join(choice.text)
        return {
            "index": index,
            "text": self._echo(index) + text,
            **self._whole_ids(index, text),
            "arrival_time": None,
            "logprobs": self._logprobs(choice, choice.events, stream=False),
            "draft_logprobs": None,
            "reasoning_content": None,
            "finish_reason": choice.finish,
            "tool_calls": None,
        }

    def _whole_ids(self, index: int, text: str) -> dict[str, object]:
        """Return the four fields of `return_token_ids`; the two named *_tokens hold text."""
        shown = self._request.return_token_ids
        prompt = self._request.prompts[index // self._request.n]
        return {
            "prompt_token_ids": list(prompt.tokens) if shown else None,
            "completion_token_ids": list(self._choices[index].tokens) if shown else None,
            "prompt_tokens": prompt.text if shown else None,
            "completion_tokens": text if shown else None,
        }

    def _echo(self, index: int) -> str:
        return self._request.prompts[index // self._request.n].text if self._request.echo else ""

    def _logprobs(self, choice: _Choice, events: Sequence[TokenEvent], *, stream: bool) -> dict[str, object] | None:
        if not self._with_logprobs:
            return None
        scored = [one for event in events for one in event.scored]
        if self._chat:
            return self._chat_logprobs(scored, stream=stream)
        return {
            "tokens": [self._spelling(one.token) for one in scored],
            "token_logprobs": [one.logprob for one in scored],
            "top_logprobs": [self._alternatives(one) for one in scored],
            "text_offset": [choice.offsets.of(one.token) for one in scored],
        }

    def _alternatives(self, one: ScoredToken) -> dict[str, float] | None:
        """Return the most probable tokens and the token itself, by spelling; None for the first of a prompt, which nothing comes before."""
        if one.logprob is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in [*one.top, (one.token, one.logprob)]:
            # Of two pieces of characters, which are spelled alike, the more probable one counts.
            found.setdefault(self._spelling(token), logprob)
        return found

    def _chat_logprobs(self, scored: Sequence[ScoredToken], *, stream: bool) -> dict[str, object]:
        # The non-stream form spells out the fields that a stream leaves unset.
        rest: dict[str, object] = {} if stream else {"top_logprobs": None}
        content = [
            self._entry(one.token, one.logprob) | {"top_logprobs": [self._entry(token, value) | rest for token, value in one.top]}
            for one in scored
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, object]:
        data = self._tokenizer.bytes_of(token)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    def _spelling(self, token: int) -> str:
        return self._tokenizer.bytes_of(token).decode(errors="replace")

    def _stream_usage(self) -> dict[str, object]:
        return self._usage({"cached_tokens": 0})

    def _usage(self, prompt_details: dict[str, int]) -> dict[str, object]:
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": prompt_details,
            "completion_tokens_details": {"reasoning_tokens": 0, "image_tokens": 0},
        }


def encode(value: object) -> bytes:
    """Return compact JSON in UTF-8, as FastDeploy writes it; a lone surrogate, which only an error may quote, becomes `?`."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def error_frame(body: dict[str, object]) -> bytes:
    """Return the frames that end a stream which has failed after its start."""
    return _frame(body) + DONE


def _frame(value: object, *, end: bytes = b"\n\n") -> bytes:
    return b"data: " + encode(value) + end
