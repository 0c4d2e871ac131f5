"""How far the CPU engine is from a reference: the one measurement that the stored and the live comparison share.

Each prompt is answered in three ways that must agree: token by token, every prefix in one piece, and all prompts together, joining the
batch one after another and in chunks, so that prefill rows and decode rows share every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ci.parity.reference import Floats, RecordedAnswers
from cpu_engine.architecture import read_config
from cpu_engine.forward import Chunk, Transformer
from cpu_engine.weights import load_weights

TOLERANCE = 1e-4
"""The largest difference in any logit between the engine and transformers, both in float32."""
CHUNK = 7
"""Prompt tokens per step in the batched run; no prompt length of the references is a multiple of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The largest differences in logits found, and whether the ids agree."""

    alone: float
    """Engine against transformers: token by token and every prefix in one piece."""
    batched: float
    """Engine against transformers, all prompts in one batch."""
    greedy_alone: bool
    greedy_batched: bool

    @property
    def holds(self) -> bool:
        """Whether logits are within TOLERANCE and greedy ids identical, alone and batched."""
        return max(self.alone, self.batched) <= TOLERANCE and self.greedy_alone and self.greedy_batched


def open_model(checkpoint: Path) -> Transformer:
    """Read a checkpoint directory as the engine does."""
    config = read_config(checkpoint)
    return Transformer(config, load_weights(checkpoint, config, threads=1))


def measure(model: Transformer, reference: RecordedAnswers) -> Agreement:
    """Answer every prompt of `reference` alone and together, and compare."""
    singles = [alone(model, prompt, len(ids)) for prompt, ids in zip(reference.prompts, reference.greedy, strict=True)]
    ids, ends, lasts = batched(model, reference.prompts, len(reference.greedy[0]))
    expected = zip(reference.prompts, reference.logits, reference.last_logits, singles, strict=True)
    return Agreement(
        alone=max(
            max(distance(seen[: len(prompt)], logits), distance(seen[-1], last), distance(prefixes(model, prompt), logits))
            for prompt, logits, last, (_, seen) in expected
        ),
        batched=max(distance(ends, np.stack([logits[-1] for logits in reference.logits])), distance(lasts, reference.last_logits)),
        greedy_alone=tuple(answer for answer, _ in singles) == reference.greedy,
        greedy_batched=ids == reference.greedy,
    )


def distance(one: Floats, other: Floats) -> float:
    """Give the largest absolute difference; shapes must be equal."""
    if one.shape != other.shape:
        raise ValueError(f"logits of shape {one.shape}, expected {other.shape}")
    return float(np.abs(one - other).max())


def alone(model: Transformer, prompt: Sequence[int], count: int) -> tuple[tuple[int, ...], Floats]:
    """Feed one token at a time; give the `count` greedy ids and the logits after every token fed."""
    cache = model.new_cache()
    fed, seen = list(prompt), []
    for place in range(len(prompt) + count):
        seen.append(model.forward([Chunk(cache=cache, tokens=[fed[place]])])[0])
        if place >= len(prompt) - 1:
            fed.append(int(seen[-1].argmax()))
    return tuple(fed[len(prompt) : len(prompt) + count]), np.stack(seen)


def prefixes(model: Transformer, prompt: Sequence[int]) -> Floats:
    """Give the logits after each prefix, each fed in one piece to a cache of its own."""
    ends = range(1, len(prompt) + 1)
    return np.stack([model.forward([Chunk(cache=model.new_cache(), tokens=prompt[:end])])[0] for end in ends])


def batched(model: Transformer, prompts: Sequence[Sequence[int]], count: int) -> tuple[tuple[tuple[int, ...], ...], Floats, Floats]:
    """Run all prompts in one batch, prompt i joining at step i.

    Gives each one's greedy ids, its logits [prompts, vocab] after the prompt, and those after all `count` ids.
    """
    caches = [model.new_cache() for _ in prompts]
    waiting = [list(prompt) for prompt in prompts]
    rows: list[list[Floats]] = [[] for _ in prompts]
    step = 0
    while any(len(seen) <= count for seen in rows):
        turn = [i for i, seen in enumerate(rows) if i <= step and len(seen) <= count]
        chunks = [Chunk(cache=caches[i], tokens=waiting[i][:CHUNK], wants_logits=len(waiting[i]) <= CHUNK) for i in turn]
        logits = iter(model.forward(chunks))
        for i, chunk in zip(turn, chunks, strict=True):
            del waiting[i][:CHUNK]
            if chunk.wants_logits:
                rows[i].append(next(logits))
                waiting[i].append(int(rows[i][-1].argmax()))
        step += 1
    ids = tuple(tuple(int(row.argmax()) for row in seen[:count]) for seen in rows)
    return ids, np.stack([seen[0] for seen in rows]), np.stack([seen[-1] for seen in rows])
