"""Events -> the JSON and the SSE frames of FastDeploy 2.3, key for key.

What differs from OpenAI's schema differs in FastDeploy too: extra keys, the blank after the first chat
frame of each choice, text completions whose frames carry no `object`. Where FastDeploy 2.3 says `stop`
for an answer cut by the context's end, this says `length`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from cpu_engine.request import GenerationRequest
from cpu_engine.sequence import TokenEvent
from cpu_engine.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class _Choice:
    """What one choice has produced so far."""

    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenEvent] = field(default_factory=list)
    finish: str | None = None


class Answer:
    """One answer being built: give it every event, take frames from it or the whole at the end."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer, *, model: str, created: int) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._chat = request.kind == "chat"
        self._head = {"id": request.request_id, "created": created, "model": model}
        self._choices = [_Choice() for _ in request.specs]
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

    def take(self, index: int, event: TokenEvent) -> None:
        """Record an event of choice `index`."""
        choice = self._choices[index]
        choice.text.append(event.text)
        if event.token is not None:
            choice.tokens.append(event.token)
            choice.logprobs.append(event)
        choice.finish = event.finish

    def frame(self, index: int, event: TokenEvent, elapsed: float) -> bytes:
        """Record an event and return its frame; `elapsed` is seconds since the request arrived."""
        first = not self._choices[index].tokens
        self.take(index, event)
        ids = [event.token] if self._request.return_token_ids else None
        logprobs = self._logprobs([event], stream=True)
        if not self._chat:
            text = self._echo(index) + event.text if first else event.text
            return _frame(self._head | {"choices": [self._text_choice(index, text, ids, logprobs, event, elapsed)]})
        delta: dict[str, object] = {"content": event.text, "prompt_token_ids": None, "completion_token_ids": ids}
        delta |= {"reasoning_content": "", "tool_calls": None}
        if ids is not None:
            delta["completion_tokens"] = event.text
        choice: dict[str, object] = {"index": index, "delta": delta, "logprobs": logprobs, "draft_logprobs": None}
        if event.finish is not None:
            choice["finish_reason"] = event.finish
        choice["arrival_time"] = elapsed
        chunk = self._chunk([choice])
        if self._request.continuous_usage:
            chunk["usage"] = self._stream_usage()
        return _frame(chunk)

    def closing(self) -> bytes:
        """Return what follows the last token: the usage frame if it was asked for, and the end mark."""
        if not self._request.final_usage:
            return DONE
        chunk = self._chunk([]) if self._chat else self._head | {"choices": []}
        return _frame(chunk | {"usage": self._stream_usage()}) + DONE

    def whole(self) -> dict[str, object]:
        """Return the body of the answer that is not streamed."""
        make = self._whole_chat_choice if self._chat else self._whole_text_choice
        return {
            "id": self._head["id"],
            "object": "chat.completion" if self._chat else "text_completion",
            "created": self._head["created"],
            "model": self._head["model"],
            "choices": [make(index) for index in range(len(self._choices))],
            "usage": self._usage(
                {
                    "cached_tokens": 0,
                    "image_tokens": 0 if self._chat else None,
                    "video_tokens": 0 if self._chat else None,
                }
            ),
        }

    def _chunk(self, choices: list[dict[str, object]]) -> dict[str, object]:
        return {
            "id": self._head["id"],
            "object": "chat.completion.chunk",
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
        chunk = self._chunk([{"index": index, "delta": delta}])
        if self._request.continuous_usage:
            chunk["usage"] = self._usage({"cached_tokens": 0, "image_tokens": 0, "video_tokens": 0})
        return _frame(chunk, end=b" \n\n")

    def _prompt_frame(self, index: int) -> bytes:
        prompt = self._request.prompts[index // self._request.n]
        choice = {
            "index": index,
            "text": "",
            "prompt_token_ids": list(prompt.tokens),
            "completion_token_ids": None,
            "prompt_tokens": prompt.text,
        }
        return _frame(self._head | {"choices": [choice]})

    def _text_choice(
        self, index: int, text: str, ids: list[int | None] | None, logprobs: object, event: TokenEvent, elapsed: float
    ) -> dict[str, object]:
        choice: dict[str, object] = {"index": index, "text": text, "arrival_time": elapsed, "logprobs": logprobs}
        choice |= {"draft_logprobs": None, "prompt_token_ids": None, "completion_token_ids": ids}
        choice |= {"completion_tokens": None if ids is None else event.text, "reasoning_content": ""}
        if event.finish is not None:
            choice["finish_reason"] = event.finish
        choice["tool_calls"] = None
        return choice

    def _whole_chat_choice(self, index: int) -> dict[str, object]:
        choice = self._choices[index]
        text = "".join(choice.text)
        message: dict[str, object] = {"role": "assistant", "content": text, "multimodal_content": None}
        message |= {"reasoning_content": None, "tool_calls": None}
        message |= self._whole_ids(index, text)
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs, stream=False),
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
            "logprobs": self._logprobs(choice.logprobs, stream=False),
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

    def _logprobs(self, events: Sequence[TokenEvent], *, stream: bool) -> dict[str, object] | None:
        if not self._with_logprobs:
            return None
        events = [event for event in events if event.token is not None]
        if self._chat:
            return self._chat_logprobs(events, stream=stream)
        logprobs: dict[str, object] = {
            "tokens": [self._spelling(event.token) for event in events],
            "token_logprobs": [event.logprob for event in events],
            "top_logprobs": [{self._spelling(token): value for token, value in event.top} for event in events],
        }
        return logprobs if stream else logprobs | {"text_offset": None}

    def _chat_logprobs(self, events: Sequence[TokenEvent], *, stream: bool) -> dict[str, object]:
        # The non-stream form spells out the fields that a stream leaves unset.
        rest: dict[str, object] = {} if stream else {"top_logprobs": None}
        content = [
            self._entry(event.token, event.logprob) | {"top_logprobs": [self._entry(token, value) | rest for token, value in event.top]}
            for event in events
        ]
        return {"content": content} if stream else {"content": content, "refusal": None}

    def _entry(self, token: int | None, logprob: float | None) -> dict[str, object]:
        data = b"" if token is None else self._tokenizer.bytes_of(token)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    def _spelling(self, token: int | None) -> str:
        return "" if token is None else self._tokenizer.bytes_of(token).decode(errors="replace")

    def _stream_usage(self) -> dict[str, object]:
        return self._usage({"cached_tokens": 0})

    def _usage(self, prompt_details: dict[str, int | None]) -> dict[str, object]:
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
