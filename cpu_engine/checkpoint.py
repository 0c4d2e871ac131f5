"""A checkpoint directory -> a model that has answered once, and the reader that checks requests against it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cpu_engine.architecture import ModelConfig, SamplingDefaults, read_config, read_sampling_defaults
from cpu_engine.constraint import ConstraintCompiler
from cpu_engine.forward import Chunk, Transformer
from cpu_engine.prompts import PromptReader
from cpu_engine.refusals import StartupError
from cpu_engine.request import RequestReader
from cpu_engine.template_process import check_template, read_chat_template
from cpu_engine.tokenizer import Tokenizer, read_tokenizer
from cpu_engine.weights import load_weights

# FastDeploy's default for --max-model-len.
_DEFAULT_MODEL_LEN = 2048
_GIB = 1 << 30


def load(
    directory: Path, *, served_name: str | None, max_model_len: int | None, threads: int, memory: int | None
) -> tuple[Transformer, RequestReader]:
    """Read everything a server needs, cheap things first; raise StartupError for the first that does not fit.

    `memory` is how many bytes can be allocated, None if unknown.
    """
    config = read_config(directory)
    length = _model_length(config, max_model_len)
    _check_memory(directory, config, memory)
    defaults = read_sampling_defaults(directory, config.vocab_size)
    tokenizer = read_tokenizer(directory, prefer_sentencepiece=config.family == "ernie4_5")
    if tokenizer.size > config.vocab_size:
        raise StartupError(
            f"{directory}: tokenizer",
            got=f"{tokenizer.size} tokens",
            expected=f"at most vocab_size of config.json ({config.vocab_size})",
            remedy="check that the tokenizer and the weights belong together",
        )
    # It reads the template while the weights are read.
    template = read_chat_template(directory, tokenizer.special_tokens)
    try:
        model = Transformer(config, load_weights(directory, config, threads))
        check_template(directory, template)
        _check_answer(directory, model)
    except BaseException:
        template.close()
        raise
    eos_token_ids = _eos_token_ids(config, defaults, tokenizer)
    reader = RequestReader(
        tokenizer=tokenizer,
        prompts=PromptReader(tokenizer=tokenizer, template=template, vocab_size=config.vocab_size),
        constraints=ConstraintCompiler(tokenizer, config.vocab_size, eos_token_ids),
        defaults=defaults,
        eos_token_ids=eos_token_ids,
        vocab_size=config.vocab_size,
        max_model_len=length,
        served_name=served_name,
    )
    return model, reader


def _model_length(config: ModelConfig, asked: int | None) -> int:
    if asked is None:
        return min(_DEFAULT_MODEL_LEN, config.max_positions)
    if asked > config.max_positions:
        raise StartupError(
            "--max-model-len",
            got=str(asked),
            expected=f"at most max_position_embeddings of config.json ({config.max_positions})",
            remedy="pass a smaller number",
        )
    return asked


def _check_memory(directory: Path, config: ModelConfig, memory: int | None) -> None:
    """Refuse before loading what the kernel would kill half way."""
    needed = config.parameters * np.dtype(np.float32).itemsize
    if memory is not None and needed > memory:
        raise StartupError(
            f"--model {directory}",
            got=f"{config.parameters / 1e9:.2f} billion weights, {needed / _GIB:.1f} GiB as float32",
            expected=f"at most the {memory / _GIB:.1f} GiB of memory that are free",
            remedy="choose a smaller model, or serve it with FastDeploy on a GPU",
        )


def _check_answer(directory: Path, model: Transformer) -> None:
    """Ask for one token, which also pays for first-use costs before the first caller does."""
    logits = model.forward([Chunk(cache=model.new_cache(), tokens=[0])])
    if not np.isfinite(logits).all():
        raise StartupError(
            f"--model {directory}",
            got="logits that are no numbers",
            expected="finite logits",
            remedy="the weights are damaged: download the checkpoint again",
        )


def _eos_token_ids(config: ModelConfig, defaults: SamplingDefaults, tokenizer: Tokenizer) -> frozenset[int]:
    """Return what ends an answer: as FastDeploy, the generation config's ids and the tokenizer's."""
    named = defaults.eos_token_ids.union(() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,))
    return named or config.eos_token_ids
