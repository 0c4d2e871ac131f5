"""Make tiny random checkpoints of every family and transformers' answers to them.

    .venv-torch/bin/python -m ci.parity.make_references [seed=N] [FOLDER]      (default folder: tests/data/parity)

The answers come from the Hugging Face form as it lies on disk, so what transformers reads is what the engine reads. The Paddle forms,
which transformers cannot read, hold the same numbers; `layouts.as_stored` refuses a conversion that would lose a bit.
A seed is taken only if greedy decoding is a meaningful check: at no step do the two best logits lie closer than `LEAST_GAP`,
and no continuation falls into repeating a few tokens.
"""

import itertools
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from ci.parity.checkpoint_families import CASES, Case
from ci.parity.layouts import CheckpointLayout, Weights, write_checkpoint, write_json
from ci.parity.reference import RecordedAnswers, save_reference
from images.arguments import Command, Key, call, file_named, whole

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "tests" / "data" / "parity"
PROMPT_LENGTHS = (1, 5, 9, 17)
GREEDY_TOKENS = 24
LEAST_GAP = 2e-3
"""Twenty times the difference in logits that the comparison allows."""
LEAST_DISTINCT = 12
"""Of the 24 greedy tokens of each prompt, so many must differ."""


def run(values: Mapping[str, str]) -> int:
    """Write every case and index.json into the folder, replacing what was there."""
    make_all(file_named(values["folder"]), int(values["seed"]))
    return 0


def make_all(folder: Path, first_seed: int) -> None:
    """Write all cases into `folder`, which is emptied first."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(mode=False)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    shutil.rmtree(folder, ignore_errors=True)
    entries = [make_case(folder / case.name, case, first_seed) for case in CASES]
    versions = {m.__name__: m.__version__ for m in (torch, transformers, safetensors, np)}
    write_json(folder / "index.json", {"versions": versions, "cases": entries})


def make_case(folder: Path, case: Case, first_seed: int) -> dict[str, Any]:
    """Write one case and return its entry of index.json."""
    seed, weights, reference = telling(case, first_seed)
    for layout in case.layouts:
        store(folder / layout.name, layout, case, weights)
    save_reference(folder / "reference.npz", reference)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # they are written for their owner alone
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{case.name:16} seed {seed:3}  smallest gap {reference.smallest_gap:.4f}  {len(case.layouts)} checkpoints  {size / 1e3:.0f} kB")
    return {
        "name": case.name,
        "family": case.family,
        "notes": case.notes,
        "seed": seed,
        "smallest_gap": round(reference.smallest_gap, 5),
        "checkpoints": {x.name: {k: v for k, v in asdict(x).items() if v and k != "name"} for x in case.layouts},
    }


def telling(case: Case, first_seed: int) -> tuple[int, Weights, RecordedAnswers]:
    """Give the first seed from `first_seed` on for which greedy decoding is a meaningful check, with its weights and answers."""
    for seed in itertools.count(first_seed):
        weights = random_weights(case, seed)
        reference = answers(case, weights, seed)
        if reference.smallest_gap >= LEAST_GAP and min(len(set(ids)) for ids in reference.greedy) >= LEAST_DISTINCT:
            return seed, weights, reference
    raise AssertionError("itertools.count ends only with memory")


def random_weights(case: Case, seed: int) -> Weights:
    """Random weights that keep every layer heard: norms around 1 but not 1, projections of about unit gain, visible biases."""
    random = torch.Generator().manual_seed(seed)
    config = AutoConfig.for_model(**case.config)
    shapes = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    weights = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=random)
        if name.endswith("norm.weight"):
            tensor = (1 + 0.3 * tensor).clamp(0.2, 2.0)
        elif name.endswith(".bias"):
            tensor = 0.3 * tensor
        elif name == "model.embed_tokens.weight":
            tensor = 0.4 * tensor  # small against the layers' output: a tied model must not just repeat its last token
        else:
            tensor = 1.5 * tensor / shape[1] ** 0.5
        # bfloat16 cut by float16's least step, so that both types hold the number exactly
        weights[name] = tensor if case.full_precision else tensor.bfloat16().half().float()
    return weights


def store(folder: Path, layout: CheckpointLayout, case: Case, weights: Weights) -> None:
    """Write one checkpoint directory, by hand or through transformers' own `save_pretrained`."""
    if not layout.saved_by_transformers:
        write_checkpoint(folder, layout, case.config, weights)
        return
    with tempfile.TemporaryDirectory() as source:
        write_checkpoint(Path(source) / "hf", CheckpointLayout(name="hf", dtype="float32"), case.config, weights)
        model = AutoModelForCausalLM.from_pretrained(Path(source) / "hf", dtype=getattr(torch, layout.dtype))
    limit = sum(tensor.nbytes for tensor in model.state_dict().values()) // layout.shards if layout.shards > 1 else 10**9
    model.save_pretrained(folder, max_shard_size=limit)
    (folder / "generation_config.json").unlink(missing_ok=True)  # it would name ids that the reference does not honour


def answers(case: Case, weights: Weights, seed: int) -> RecordedAnswers:
    """Run transformers on the Hugging Face form, read back from disk, over random prompts."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "hf", case.layouts[0], case.config, weights)
        model, report = AutoModelForCausalLM.from_pretrained(
            Path(folder) / "hf", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    if any(report.values()):
        raise ValueError(f"{case.name}: transformers did not take the checkpoint as it is: {report}")
    if model.config.rope_parameters["rope_theta"] != case.config["rope_theta"]:
        raise ValueError(f"{case.name}: rope_theta is {model.config.rope_parameters}, expected {case.config['rope_theta']}")
    model.eval()
    random = np.random.default_rng(seed)
    prompts = [random.integers(3, case.config["vocab_size"], length).tolist() for length in PROMPT_LENGTHS]
    logits, greedy, last, gaps = [], [], [], []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(GREEDY_TOKENS):
            best = model(torch.tensor([ids])).logits[0, -1].topk(2)
            gaps.append(float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
        everything = model(torch.tensor([ids])).logits[0].numpy()
        logits.append(everything[: len(prompt)])
        greedy.append(tuple(ids[len(prompt) :]))
        last.append(everything[-1])
    return RecordedAnswers(
        prompts=tuple(map(tuple, prompts)), logits=tuple(logits), greedy=tuple(greedy), last_logits=np.stack(last), smallest_gap=min(gaps)
    )


COMMAND = Command(
    name="make_references",
    help="Make tiny random checkpoints and transformers' answers to them.",
    keys=(
        Key("folder", "Where they are written; it is emptied first.", default=str(DEFAULT_FOLDER), bare=True),
        Key("seed", "The first seed to try for each case.", default="0", check=whole(0)),
    ),
    run=run,
)


if __name__ == "__main__":
    sys.exit(call(COMMAND, sys.argv[1:], typed=".venv-torch/bin/python -m ci.parity.make_references"))
