"""One row of logits -> one token, by FastDeploy's rules and in its order.

logit bias, repetition penalty (prompt and answer), frequency and presence penalty (answer only), banned tokens,
temperature, min_p, top_k, top_p. Log-probabilities are of the raw logits, before all of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

# Imported by name: numpy would load it on first use, in the middle of the first answer.
from numpy.random import default_rng

from cpu_engine.tensors import FloatArray

# Below this the division would overflow, and the result is the greedy one long before.
_GREEDY_TEMPERATURE = 1e-5
# Most of the mass of a trained model sits here; top_p looks further only where it does not.
_FIRST_CANDIDATES = 256
# OpenAI's number for a token that is out of the question; JSON has no infinity.
_LEAST_LOGPROB = -9999.0


class SamplingError(Exception):
    """No token can be chosen: the logits or what the penalties made of them are not numbers, or every token is banned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose. top_k 0 means all; temperature 0, top_k 1 and top_p 0 are greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens before anything else."""
    banned: Sequence[Sequence[int]] = ()
    """Token sequences that must not appear in the answer."""
    top_logprobs: int | None = None
    """How many alternatives to report with each token; None: no log-probabilities at all."""

    @property
    def greedy(self) -> bool:
        """Say whether the most probable token is always the one."""
        return self.temperature < _GREEDY_TEMPERATURE or self.top_k == 1 or self.top_p == 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredToken:
    """The token, its log-probability (None unless asked for) and the most probable ones with theirs."""

    token: int
    logprob: float | None
    top: Sequence[tuple[int, float]]


class Sampler:
    """Chooses the tokens of one sequence; remembers what penalties and bans depend on."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._params = params
        self._biased = np.fromiter(params.logit_bias.keys(), np.int64, len(params.logit_bias))
        self._bias = np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias))
        self._random = default_rng(params.seed)
        self._prompt = np.unique(np.asarray(prompt, np.int64)) if params.repetition_penalty != 1.0 else None
        self._counts: Counter[int] = Counter()
        self._answer: list[int] = []

    def choose(self, logits: FloatArray, forbidden: Collection[int] = (), allowed: npt.NDArray[np.bool_] | None = None) -> ScoredToken:
        """Choose from logits [vocab]; this time `forbidden` tokens are out of the question, and all that are not `allowed` [vocab].

        Raises SamplingError. `logits` is left as it is.
        """
        if not np.isfinite(logits.max()):
            raise SamplingError("the model produced a logit that is no number")
        scores = self._banned(self._penalised(logits), forbidden, allowed)
        token = int(scores.argmax()) if self._params.greedy else self._draw(scores)
        self._answer.append(token)
        self._counts[token] += 1
        count = self._params.top_logprobs
        return ScoredToken(token=token, logprob=None, top=()) if count is None else score(logits, token, count)

    def _penalised(self, logits: FloatArray) -> FloatArray:
        params = self._params
        scores = logits
        if len(self._biased):
            scores = logits.copy()
            scores[self._biased] += self._bias
        if self._prompt is not None:
            seen = np.union1d(self._prompt, np.fromiter(self._counts, np.int64, len(self._counts)))
            scores = logits.copy() if scores is logits else scores
            values = scores[seen]
            penalty = np.float32(params.repetition_penalty)
            scores[seen] = np.where(values < 0, values * penalty, values / penalty)
        if self._counts and (params.frequency_penalty or params.presence_penalty):
            scores = logits.copy() if scores is logits else scores
            used = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
            times = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            scores[used] -= times * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty)
        return scores

    def _banned(self, scores: FloatArray, forbidden: Collection[int], allowed: npt.NDArray[np.bool_] | None) -> FloatArray:
        if allowed is not None:
            scores = np.where(allowed, scores, np.float32(-np.inf))
        out = set(forbidden)
        for sequence in self._params.banned:
            before = len(sequence) - 1
            if before == 0 or list(sequence[:-1]) == self._answer[-before:]:
                out.add(sequence[-1])
        if not out:
            return scores
        scores = scores.copy()
        scores[list(out)] = -np.inf
        if scores.max() == -np.inf:
            raise SamplingError("every token is banned")
        return scores

    def _draw(self, scores: FloatArray) -> int:
        params = self._params
        peak = scores.max()
        if not np.isfinite(peak):
            raise SamplingError("the penalties made a score that is no number")
        weights = np.exp((scores - peak) / np.float32(params.temperature))
        if params.min_p:
            weights[weights < params.min_p] = 0.0
        if not params.top_k and params.top_p >= 1.0:
            return self._pick(np.arange(len(weights)), weights)
        candidates = _most_probable(weights, params.top_k or _FIRST_CANDIDATES)
        mass = weights[candidates].sum(dtype=np.float64) if params.top_k else weights.sum(dtype=np.float64)
        while weights[candidates].sum(dtype=np.float64) < params.top_p * mass and len(candidates) < len(weights):
            candidates = _most_probable(weights, 8 * len(candidates))
        # The smallest set that reaches top_p: a token stays as long as those before it do not reach it.
        reached = np.cumsum(weights[candidates], dtype=np.float64)
        keep = 1 + int(np.searchsorted(reached, params.top_p * mass))
        return self._pick(candidates[:keep], weights[candidates[:keep]])

    def _pick(self, tokens: npt.NDArray[np.int64], weights: FloatArray) -> int:
        reached = np.cumsum(weights, dtype=np.float64)
        place = int(np.searchsorted(reached, self._random.random() * reached[-1], side="right"))
        return int(tokens[min(place, int(np.flatnonzero(weights)[-1]))])


def score(logits: FloatArray, token: int, count: int) -> ScoredToken:
    """Return the log-probability of `token` under raw logits [vocab], and the `count` most probable tokens with theirs.

    Raises SamplingError when the logits are no numbers.
    """
    peak = logits.max()
    if not np.isfinite(peak):
        raise SamplingError("the model produced a logit that is no number")
    total = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    best = _most_probable(logits, count) if count else ()
    top = [(int(other), max(_LEAST_LOGPROB, float(logits[other]) - total)) for other in best]
    return ScoredToken(token=token, logprob=max(_LEAST_LOGPROB, float(logits[token]) - total), top=top)


def _most_probable(weights: FloatArray, count: int) -> npt.NDArray[np.int64]:
    """Return the ids of the `count` largest weights, largest first, the lower id first among equals."""
    if count >= len(weights):
        return np.argsort(-weights, kind="stable")
    found = np.sort(np.argpartition(-weights, count - 1)[:count])
    return found[np.argsort(-weights[found], kind="stable")]
