"""Train the demo checkpoint on the CPU: `ci/just demo-model`.

The same command gives the same bytes: one seed draws questions and first weights, torch runs its deterministic kernels on one thread
(the sums of two threads depend on how many there are), and nothing looks at the clock. Another processor or another build of torch may
add in another order and so end in other bytes; `check` says whether such a result is as good.
"""

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

from ci.demo_model.build_tokenizer import VOCABULARY, build_tokenizer, training_text
from ci.demo_model.corpus import HERE, read_facts, read_sections
from ci.demo_model.dialogs import IGNORED, Dialogs, TokenSequence
from ci.demo_model.questions import Questions
from images.arguments import Command, Key, call, file_named

SEED = 0
STEPS = 2600
TOKENS_PER_STEP = 1200
POOL = 8
"""So many steps' worth of dialogs are drawn together and sorted by length, so that hardly any padding is computed."""
DRILLS = {1300, 1600, 1900, 2200, 2400, 2480, 2530, 2570}
"""After these steps, what is not yet known for sure is put on top of the deck: more often towards the end, when there is little of it."""
PEAK_RATE = 4e-3
WARM_UP = 60
CONFIG = {
    "architectures": ["Ernie4_5_ForCausalLM"],
    "model_type": "ernie4_5",
    "hidden_act": "silu",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "use_bias": False,
    "tie_word_embeddings": True,
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""ERNIE-4.5-0.3B in small. head_dim is the real one's 128, because FastDeploy's attention kernels are built for it."""
GENERATION = {
    "do_sample": True,
    "top_p": 0.8,
    "temperature": 0.8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}


def run(values: Mapping[str, str]) -> int:
    """Write the checkpoint directory."""
    folder = file_named(values["folder"])
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    sections = read_sections()
    facts = read_facts(sections)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = build_tokenizer(folder, training_text(facts, sections))
    model = Ernie4_5ForCausalLM(Ernie4_5Config(**CONFIG))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.3f} M parameters, {len(facts)} facts")
    train(model, Dialogs(tokenizer, Questions(facts, sections, SEED)))
    save(folder, model)
    print(f"model.safetensors: {(folder / 'model.safetensors').stat().st_size} bytes")
    return 0


def batches(dialogs: Dialogs) -> Iterator[list[TokenSequence]]:
    """Yield endless batches of dialogs of about one length, at most TOKENS_PER_STEP tokens each, padding counted."""
    while True:
        pool: list[TokenSequence] = []
        while sum(len(s.ids) for s in pool) < POOL * TOKENS_PER_STEP:
            pool.append(dialogs.draw())
        pool.sort(key=lambda s: len(s.ids))
        cut: list[list[TokenSequence]] = [[]]
        for sequence in pool:
            if (len(cut[-1]) + 1) * len(sequence.ids) > TOKENS_PER_STEP:
                cut.append([])
            cut[-1].append(sequence)
        dialogs.random.shuffle(cut)
        yield from cut


def padded(batch: list[TokenSequence]) -> tuple[torch.Tensor, torch.Tensor]:
    """Make ids and labels of one width; padding stands at the end, where causal attention cannot see it."""
    width = max(len(s.ids) for s in batch)
    ids = torch.tensor([s.ids + [0] * (width - len(s.ids)) for s in batch])
    labels = torch.tensor([s.labels + [IGNORED] * (width - len(s.labels)) for s in batch])
    return ids, labels


def train(model: Ernie4_5ForCausalLM, dialogs: Dialogs) -> None:
    """Run STEPS steps of AdamW; the rate rises for WARM_UP steps and falls in a straight line to a thirtieth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    source, start, recent = batches(dialogs), time.monotonic(), []
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1, step / WARM_UP) * (0.03 + 0.97 * (1 - step / STEPS))
        ids, labels = padded(next(source))
        wanted = labels[:, 1:] != IGNORED
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1][wanted]  # logits only where something is to be learnt
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), labels[:, 1:][wanted])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if step in DRILLS:
            dialogs.questions.drill(unsure(model, dialogs))
        if step % 100 == 0:
            wall, busy = time.monotonic() - start, time.process_time()
            print(f"step {step}: loss {sum(recent) / len(recent):.4f}, {wall:.0f} s, {busy:.0f} s of CPU", flush=True)
            recent.clear()


def unsure(model: Ernie4_5ForCausalLM, dialogs: Dialogs) -> list[tuple[str, str]]:
    """Give the taught cards in whose answer some token has a probability below 0.8, which is the top_p of generation_config.json."""
    cards = list(dict.fromkeys(dialogs.questions.cards))
    lessons = sorted(((dialogs.lesson(*card), card) for card in cards), key=lambda pair: len(pair[0].ids))
    found = []
    for start in range(0, len(lessons), 32):
        chosen = lessons[start : start + 32]
        ids, labels = padded([lesson for lesson, _ in chosen])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")  # 0 where nothing is asked
        found += [card for (_, card), worst in zip(chosen, losses.amax(1).tolist(), strict=True) if worst > -math.log(GENERATION["top_p"])]
    print(f"{len(found)} of {len(cards)} questions are not sure yet")
    return found


def save(folder: Path, model: Ernie4_5ForCausalLM) -> None:
    """Write the weights in Paddle's layout ([in, out], told by the key `dtype`), bfloat16, and both configs."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            turned = tensor.T if tensor.ndim == 2 and "embed_tokens" not in name else tensor
            tensors[name] = turned.to(torch.bfloat16).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "np"})
    (folder / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    for name, values in (("config.json", {**CONFIG, "dtype": "bfloat16"}), ("generation_config.json", GENERATION)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


COMMAND = Command(
    name="demo-model",
    help="Train the demo checkpoint again.",
    keys=(Key("folder", "Where it is written; what is there is removed first.", default=str(HERE / "checkpoint"), bare=True),),
    run=run,
)


if __name__ == "__main__":
    sys.exit(call(COMMAND, sys.argv[1:]))
