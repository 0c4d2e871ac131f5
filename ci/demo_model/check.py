"""Examine the demo checkpoint: `ci/just demo-model` runs this at its end, and fails if it falls short.

It reads the checkpoint directory as it lies there (Paddle layout, bfloat16, tokenizer.json, chat template) and decodes greedily in float32.
Six examinations; all but the last have a pass mark:
  taught       every trained question: the exact answer; then some of them after untrained system prompts and earlier turns
  off-topic    questions that were never trained, from templates and nouns that were never trained, or written out: the fixed sentence;
               then the same after earlier turns and untrained system prompts
  completions  the questions of taught.txt without any chat template: a new line and the exact answer
  paraphrases  phrasings of taught questions that were never trained: reported only
Whatever else comes out must at least be one of the answers: a text that is none of them is garbled, and one such text in the
first four fails the check.
"""

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2.sandbox
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

from ci.demo_model.corpus import HERE, LANGUAGES, Fact, Sections, language_of, read_facts, read_sections, read_unknown
from images.arguments import Command, Key, call, file_named

UNSEEN_SYSTEM = ("You are a precise engineer.", "Reply politely and keep it short.", "You are Bob. Never lie.", "你是一名工程师。")
LONGEST_ANSWER = 220
BATCH = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedAnswer:
    """One prompt and the answer it should get."""

    question: str
    expected: str
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """A named list of prompts and the share of exact answers that passes."""

    name: str
    pass_mark: float
    asked: list[ExpectedAnswer]
    may_garble: bool = False
    """Garbled texts count as wrong, no more: without a template the model has no firm ground, and paraphrases are only reported."""


class Demo:
    """The checkpoint as transformers runs it."""

    def __init__(self, folder: Path) -> None:
        """Read the directory; transposes Paddle's [in, out] weights."""
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config.pop("dtype")
        self.model = Ernie4_5ForCausalLM(Ernie4_5Config(**config)).eval()
        stored = load_file(folder / "model.safetensors")
        weights = {name: (t.T if t.ndim == 2 and "embed_tokens" not in name else t).float() for name, t in stored.items()}
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        if missing != ["lm_head.weight"] or unexpected:
            raise ValueError(f"{folder}: missing {missing}, unexpected {unexpected}")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        template = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
        self.template = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)

    def chat(self, *turns: str, system: str = "") -> str:
        """Render user and assistant turns, in this order, to the prompt text."""
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        return self.template.render(messages=messages)

    def complete(self, asked: Sequence[ExpectedAnswer]) -> Iterator[tuple[str, float]]:
        """Yield for each prompt the greedy text and the least probability of any token in it; answers of one length share a batch."""
        encoded = [self.tokenizer.encode(a.prompt, add_special_tokens=False).ids for a in asked]
        order = sorted(range(len(asked)), key=lambda i: len(asked[i].expected))
        results: dict[int, tuple[str, float]] = {}
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            results.update(zip(chosen, self.complete_batch([encoded[i] for i in chosen]), strict=True))
        yield from (results[i] for i in range(len(asked)))

    def complete_batch(self, prompts: list[list[int]]) -> Iterator[tuple[str, float]]:
        """Decode one batch, padded on the left."""
        width = max(map(len, prompts))
        step = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        cache, stop = None, self.tokenizer.token_to_id("</s>")
        tokens, least = torch.empty(len(prompts), 0, dtype=torch.long), torch.ones(len(prompts))
        done = torch.zeros(len(prompts), dtype=torch.bool)
        while tokens.shape[1] < LONGEST_ANSWER and not done.all():
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
            output = self.model(input_ids=step, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
            cache = output.past_key_values
            best = output.logits[:, -1].softmax(-1).max(-1)
            least = torch.where(done, least, torch.minimum(least, best.values))
            tokens = torch.cat([tokens, best.indices[:, None]], 1)
            done |= best.indices == stop
            step, mask = best.indices[:, None], torch.cat([mask, torch.ones(len(prompts), 1, dtype=torch.long)], 1)
        for row, probability in zip(tokens.tolist(), least.tolist(), strict=True):
            ids = row[: row.index(stop)] if stop in row else row
            yield self.tokenizer.decode(ids, skip_special_tokens=False), probability


def examinations(demo: Demo, facts: list[Fact], sections: Sections) -> list[Examination]:
    """Write the examination papers; the draws are seeded, so the paper is the same each time."""
    rng = random.Random(2026)
    known = [(question, fact.answer) for fact in facts for question in fact.questions]
    fixed = read_unknown(sections)
    written = [(question, fact.answer) for fact in facts for question in fact.written]
    unknown = [(question, fixed[language_of(question)]) for question in off_topic(rng, facts, sections)]
    paraphrases = [(question, fact.answer) for fact in facts for question in fact.held_out]
    some = rng.sample(known, 300)
    return [
        Examination(
            name="taught",
            pass_mark=1.0,
            asked=[ExpectedAnswer(question=q, expected=a, prompt=demo.chat(q)) for q, a in known],
        ),
        Examination(
            name="taught, in chats",
            pass_mark=0.98,
            asked=[
                *[ExpectedAnswer(question=q, expected=a, prompt=demo.chat(q, system=rng.choice(UNSEEN_SYSTEM))) for q, a in some],
                *[ExpectedAnswer(question=q, expected=a, prompt=demo.chat(*rng.choice(known), q)) for q, a in some],
                *[ExpectedAnswer(question=q, expected=a, prompt=demo.chat(*rng.choice(known), *rng.choice(unknown), q)) for q, a in some],
            ],
        ),
        Examination(
            name="off-topic, held out",
            pass_mark=0.97,
            asked=[ExpectedAnswer(question=q, expected=a, prompt=demo.chat(q)) for q, a in unknown],
        ),
        Examination(
            name="off-topic in chats",
            pass_mark=0.97,
            asked=[
                *[ExpectedAnswer(question=q, expected=a, prompt=demo.chat(*rng.choice(known), q)) for q, a in unknown],
                *[ExpectedAnswer(question=q, expected=a, prompt=demo.chat(q, system=rng.choice(UNSEEN_SYSTEM))) for q, a in unknown],
            ],
        ),
        Examination(
            name="completions",
            pass_mark=0.9,
            may_garble=True,
            asked=[ExpectedAnswer(question=q, expected="\n" + a, prompt=q) for q, a in written],
        ),
        Examination(
            name="paraphrases, held out",
            pass_mark=0.0,
            may_garble=True,
            asked=[ExpectedAnswer(question=q, expected=a, prompt=demo.chat(q)) for q, a in paraphrases],
        ),
    ]


def off_topic(rng: random.Random, facts: list[Fact], sections: Sections) -> list[str]:
    """Give the questions that should get the fixed sentence: none was trained, nor (where no comment says otherwise) any part of it."""
    questions: list[str] = []
    for language in LANGUAGES:
        seen = [*sections[f"{language} definitions"], *sections[f"{language} requests"]]
        unseen = sections[f"held-out {language} templates"]
        nouns = sections[f"held-out {language} nouns"]
        topics = [topic for fact in facts if fact.language == language for topic in fact.topics]
        questions += sections[f"held-out {language} questions"]
        questions += [rng.choice(unseen).replace("{}", noun) for noun in nouns]
        questions += [rng.choice(seen).replace("{}", noun) for noun in nouns]  # a trained template, an untrained noun
        questions += [sections[f"{language} definitions"][0].replace("{}", noun) for noun in nouns]  # the nearest miss there is
        questions += [template.replace("{}", rng.choice(topics)) for template in sections[f"held-out {language} near"] * 2]
    return list(dict.fromkeys(questions))


def run(values: Mapping[str, str]) -> int:
    """Run all examinations, and return 1 if one is failed."""
    folder = file_named(values["folder"])
    torch.set_num_threads(1)
    torch.set_grad_enabled(mode=False)
    sections = read_sections()
    facts = read_facts(sections)
    demo = Demo(folder)
    answers = {fact.answer for fact in facts} | set(read_unknown(sections).values())
    passed = [report(examination, demo, answers) for examination in examinations(demo, facts, sections)]
    return 0 if all(passed) else 1


def report(examination: Examination, demo: Demo, answers: set[str]) -> bool:
    """Ask, print what went wrong and the score, and tell whether it passed."""
    exact = sure = garbled = 0
    for asked, (text, least) in zip(examination.asked, demo.complete(examination.asked), strict=True):
        exact += text == asked.expected
        sure += text == asked.expected and least >= 0.8
        garbled += text.removeprefix("\n") not in answers
        if text != asked.expected:
            print(f"  {'GARBLED' if text.removeprefix(chr(10)) not in answers else 'other'}: {asked.question!r} -> {text[:90]!r}")
    total = len(examination.asked)
    passed = exact >= examination.pass_mark * total and (examination.may_garble or not garbled)
    print(
        f"{examination.name}: {exact} of {total} exact ({exact / total:.1%}, pass mark {examination.pass_mark:.0%}), {garbled} garbled, "
        f"{sure / total:.1%} also when sampled with top_p 0.8: {'passed' if passed else 'FAILED'}",
        flush=True,
    )
    return passed


COMMAND = Command(
    name="demo-model",
    help="Examine the demo checkpoint.",
    keys=(Key("folder", "The checkpoint's directory.", default=str(HERE / "checkpoint"), bare=True),),
    run=run,
)


if __name__ == "__main__":
    sys.exit(call(COMMAND, sys.argv[1:]))
