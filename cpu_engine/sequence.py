"""One sequence from its prompt to its finish reason: what to feed next, and what each row of logits means."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Literal, TypeAlias

from cpu_engine.constraint import Constraint, ConstraintError
from cpu_engine.forward import Chunk, KVCache
from cpu_engine.sampling import Sampler, SamplingError, SamplingParams, ScoredToken, score
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
    """0 asks for nothing after the prompt."""
    min_tokens: int
    stop_tokens: frozenset[int]
    """Any of these ends the answer and is not shown: end of sequence, and what the caller adds."""
    stop_strings: Items[str]
    include_stop: bool
    constraint: Constraint | None = None
    """The form that the answer has, at its start; None leaves it free."""
    scores_prompt: bool = False
    """Report the log-probabilities of the prompt's tokens too; `sampling.top_logprobs` says with how many alternatives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One generated token and the text it completes, often none; the last one carries the finish reason.

    `token` is None where there is none: in the only event of a sequence that generates nothing, and for `error`, whose `text` is the
    message. `prompt` holds the scored tokens of the prompt, in the first event, where they were asked for.
    """

    text: str
    token: int | None
    logprob: float | None = None
    top: Items[tuple[int, float]] = ()
    finish: FinishReason | None = None
    prompt: Items[ScoredToken] = ()

    @property
    def scored(self) -> list[ScoredToken]:
        """Return every scored token of this event, those of the prompt first."""
        if self.token is None:
            return [*self.prompt]
        return [*self.prompt, ScoredToken(token=self.token, logprob=self.logprob, top=self.top)]


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
        self._constraint = spec.constraint.copy() if spec.constraint else None
        # Nothing comes before the first token that could make it probable.
        self._scored = [ScoredToken(token=spec.prompt[0], logprob=None, top=())] if spec.scores_prompt else []

    @property
    def prompt_left(self) -> int:
        """Return how many prompt tokens are still to be fed."""
        return 0 if self._generated else len(self._pending)

    def next_chunk(self, limit: int) -> Chunk:
        """Return the next tokens to feed, at most `limit`."""
        every_row = self._spec.scores_prompt and not self._generated
        tokens, self._pending = self._pending[:limit], self._pending[limit:]
        return Chunk(cache=self._cache, tokens=tokens, wants_logits=not self._pending, every_row=every_row)

    def advance(self, rows: FloatArray) -> TokenEvent | None:
        """Take the logits [rows, vocab] of the last chunk, and say what comes of them; None while more of the prompt is to be fed."""
        try:
            if self._spec.scores_prompt and not self._generated:
                self._score(rows)
            if self._pending:
                return None
            prompt = () if self._generated else self._scored
            if not self._spec.max_tokens:
                return TokenEvent(text="", token=None, finish="length", prompt=prompt)
            chosen = self._choose(rows[-1])
        except (SamplingError, ConstraintError) as error:
            return TokenEvent(text=str(error), token=None, finish="error")
        self._generated += 1
        self._pending = [chosen.token]
        text, finish = self._shown(chosen.token)
        return TokenEvent(text=text, token=chosen.token, logprob=chosen.logprob, top=chosen.top, finish=finish, prompt=prompt)

    def _choose(self, logits: FloatArray) -> ScoredToken:
        early = [*self._spec.stop_tokens] if self._generated < self._spec.min_tokens else []
        if self._constraint is None:
            return self._sampler.choose(logits, early)
        allowed = self._constraint.allowed()
        longer = allowed.copy()
        longer[early] = False
        # Where a longer answer would have another form, its end is as near as it can be to min_tokens.
        chosen = self._sampler.choose(logits, allowed=longer if longer.any() else allowed)
        self._constraint.take(chosen.token)
        return chosen

    def _score(self, rows: FloatArray) -> None:
        """Score the prompt's tokens that follow those just fed: each row tells how probable the next one is."""
        first = len(self._scored)
        following = self._spec.prompt[first : first + len(rows)]
        count = self._spec.sampling.top_logprobs or 0
        self._scored += [score(row, token, count) for row, token in zip(rows, following, strict=False)]

    def _shown(self, token: int) -> tuple[str, FinishReason | None]:
        spec = self._spec
        if token in spec.stop_tokens:
            return self._stops.flush(), "stop"
        text = self._detokenizer.feed(token)
        if self._generated >= spec.min_tokens:
            text, stopped = self._stops.feed(text)
            if stopped:
                return text, "stop"
        if self._constraint is not None and self._constraint.finished:
            return text + self._stops.flush(), "stop"
        if self._generated >= spec.max_tokens:
            return text + self._stops.flush(), "length"
        return text, None
