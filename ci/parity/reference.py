"""RecordedAnswers answers as data: one reference.npz per case, with numpy as its only need.

`load_cases` gives what tests and the live comparison walk over; a `RecordedAnswers` is written by `make_references`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAnswers:
    """What transformers answers, in float32 with eager attention, on a case's weights."""

    prompts: tuple[tuple[int, ...], ...]
    logits: tuple[Floats, ...]
    """For each prompt [its length, vocab]: the logits after each of its tokens."""
    greedy: tuple[tuple[int, ...], ...]
    """For each prompt the greedy continuation; no end-of-sequence id is honoured."""
    last_logits: Floats
    """[prompts, vocab]: the logits after prompt and whole continuation, that is at the end of a decode through the KV cache."""
    smallest_gap: float
    """The least distance between the best and the second best logit over all greedy steps: why equal ids can be asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCase:
    """One entry of index.json: checkpoint directories that hold the same numbers, and what they must answer."""

    name: str
    family: str
    checkpoints: tuple[Path, ...]
    reference: RecordedAnswers


def save_reference(path: Path, reference: RecordedAnswers) -> None:
    """Write `reference` to `path`; numpy's zip entries carry no clock, so the same values give the same bytes."""
    arrays: dict[str, Any] = {
        "prompt_lengths": np.array([len(p) for p in reference.prompts], np.int32),
        "prompt_ids": np.concatenate([np.array(p, np.int32) for p in reference.prompts]),
        "logits": np.concatenate(reference.logits),
        "greedy_ids": np.array(reference.greedy, np.int32),
        "last_logits": reference.last_logits,
        "smallest_gap": np.float32(reference.smallest_gap),
    }
    np.savez_compressed(path, **arrays)


def load_reference(path: Path) -> RecordedAnswers:
    """Read what `save_reference` wrote: prompts and their logits lie one after the other, cut by `prompt_lengths`."""
    with np.load(path) as data:
        cuts = np.cumsum(data["prompt_lengths"])[:-1]
        return RecordedAnswers(
            prompts=tuple(tuple(ids.tolist()) for ids in np.split(data["prompt_ids"], cuts)),
            logits=tuple(np.split(data["logits"], cuts)),
            greedy=tuple(tuple(row.tolist()) for row in data["greedy_ids"]),
            last_logits=data["last_logits"],
            smallest_gap=float(data["smallest_gap"]),
        )


def load_cases(folder: Path) -> list[StoredCase]:
    """Read index.json of `folder` and every reference it names."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return [
        StoredCase(
            name=case["name"],
            family=case["family"],
            checkpoints=tuple(folder / case["name"] / name for name in case["checkpoints"]),
            reference=load_reference(folder / case["name"] / "reference.npz"),
        )
        for case in index["cases"]
    ]
