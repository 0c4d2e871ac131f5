"""One sequence from its prompt to its finish reason: what to feed next, and what each row of logits means."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Literal, TypeAlias

from cpu_engine.forward import Chunk, KVCache
from cpu_engine.sampling import Sampler, SamplingError, SamplingParams
from cpu_engine.stopping import StopStrings
from cpu_engine.tensors import FloatArray
from cpu_engine.tokenizer import Tokenizer

FinishReason: TypeAlias = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSpec:
    """What one sequence is asked to do. min_tokens <= max_tokens, and the prompt is not empty."""

    prompt: Items[int]
    sampling: SamplingParams
    max_tokens: int
    min_tokens: int
    stop_tokens: frozenset[int]
    """Any of these ends the answer and is not shown: end of sequence, and what the caller adds."""
    stop_strings: Items[str]
    include_stop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One generated token and the text it completes, often none; the last one carries the finish reason.

    For `error` there is no token and `text` is the message.
    """

    text: str
    token: int | None
    logprob: float | None = None
    top: Items[tuple[int, float]] = ()
    finish: FinishReason | None = None


class SequenceState:
    """The state of one sequence between two steps of the model."""

    def __init__(self, spec: SequenceSpec, cache: KVCache, tokenizer: Tokenizer) -> None:
        self._spec = spec
        self._cache = cache
        self._sampler = Sampler(spec.sampling, spec.prompt)
        self._detokenizer = tokenizer.detokenizer()
        self._stops = StopStrings(spec.stop_strings, include=spec.include_stop)
        self._pending: Items[int] = spec.prompt
        self._generated = 0

    @property
    def prompt_left(self) -> int:
        """Return how many prompt tokens are still to be fed."""
        return 0 if self._generated else len(self._pending)

    def next_chunk(self, limit: int) -> Chunk:
        """Return the next tokens to feed, at most `limit`."""
        tokens, self._pending = self._pending[:limit], self._pending[limit:]
        return Chunk(cache=self._cache, tokens=tokens, wants_logits=not self._pending)

    def advance(self, logits: FloatArray) -> TokenEvent:
        """Choose the next token from logits [vocab] and say what it brings."""
        spec = self._spec
        early = self._generated < spec.min_tokens
        try:
            choice = self._sampler.choose(logits, spec.stop_tokens if early else ())
        except SamplingError as error:
            return TokenEvent(text=str(error), token=None, finish="error")
        self._generated += 1
        self._pending = [choice.token]
        text, finish = self._shown(choice.token)
        return TokenEvent(text=text, token=choice.token, logprob=choice.logprob, top=choice.top, finish=finish)

    def _shown(self, token: int) -> tuple[str, FinishReason | None]:
        spec = self._spec
        if token in spec.stop_tokens:
            return self._stops.flush(), "stop"
        text = self._detokenizer.feed(token)
        if self._generated >= spec.min_tokens:
            text, stopped = self._stops.feed(text)
            if stopped:
                return text, "stop"
        if self._generated >= spec.max_tokens:
            return text + self._stops.flush(), "length"
        return text, None
