"""The CPU engine on the true shape of ERNIE-4.5-0.3B, forward pass and HTTP server, beside its floor: `ci/just bench cpu`.

Without `model=` the checkpoint is made first, with random bf16 weights, in a temporary directory (721 MB). The floor of a figure is
the time of the bare matrix products of the same shapes, on the same weights, measured in turn with the engine: what a machine is
busy with besides weighs on both.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpu_engine.cores import free_cores
from images.arguments import Command, Key, file_named, whole

if TYPE_CHECKING:
    import aiohttp

    from cpu_engine.forward import Transformer
    from cpu_engine.tensors import FloatArray

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 1024, 3072, 18, 16, 2, 128, 103424
ERNIE_0_3B = {
    "architectures": ["Ernie4_5_ForCausalLM"],
    "model_type": "ernie4_5",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "use_bias": False,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}
TOKENIZER = Path(__file__).parents[1] / "demo_model" / "checkpoint"
PROMPT = 64
STREAMS = 8
ROUNDS = 5
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one step, engine and floor measured in turn: the median of each."""

    engine: float
    floor: float


def run(values: Mapping[str, str]) -> int:
    """Measure and print the table."""
    threads, tokens = int(values["threads"]), int(values["tokens"])
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    with checkpoint(file_named(values["model"]) if values["model"] else None) as directory:
        bare = measure_bare(directory, threads, tokens)
        served = measure_served(directory, tokens)
    print(f"{directory.name}: {threads} BLAS thread(s), load {os.getloadavg()[0]:.2f}, prompt of {PROMPT} tokens")
    print_table(bare, served)
    return 0


COMMAND = Command(
    name="bench cpu",
    help="Measure the CPU engine on the true shape of ERNIE-4.5-0.3B.",
    keys=(
        Key("model", "A directory with a checkpoint; without one, a checkpoint with random weights is made."),
        Key("threads", "Threads of the matrix products.", default=str(free_cores()), check=whole(1, 1024)),
        Key("tokens", "Tokens that are decoded for each figure.", default="32", check=whole(3, 100_000)),
    ),
    run=run,
)


@contextmanager
def checkpoint(given: Path | None) -> Iterator[Path]:
    """Give the checkpoint directory; one that is made here is removed again."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="bench-cpu-") as folder:
        directory = Path(folder) / "ernie-0.3b-random"
        make_checkpoint(directory)
        yield directory


def make_checkpoint(directory: Path) -> None:
    """Write random bf16 weights of the true shape, in Paddle layout, with the demo checkpoint's tokenizer."""
    import numpy as np

    directory.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, directory / name)
    (directory / "config.json").write_text(json.dumps(ERNIE_0_3B))
    random = np.random.default_rng(0)
    header, start = {}, 0
    shapes = dict(tensor_shapes())
    for name, shape in shapes.items():
        stop = start + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, stop]}
        start = stop
    encoded = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for shape in shapes.values():
            weights = np.ones(shape, np.float32) if len(shape) == 1 else random.standard_normal(shape, np.float32) / np.float32(32)
            file.write((weights.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def tensor_shapes() -> Iterator[tuple[str, list[int]]]:
    """Give name and shape [in, out] of every tensor of the model."""
    yield "ernie.embed_tokens.weight", [VOCABULARY, HIDDEN]
    for number in range(LAYERS):
        at = f"ernie.layers.{number}."
        yield at + "input_layernorm.weight", [HIDDEN]
        yield at + "self_attn.q_proj.weight", [HIDDEN, HEADS * HEAD_DIM]
        yield at + "self_attn.k_proj.weight", [HIDDEN, KV_HEADS * HEAD_DIM]
        yield at + "self_attn.v_proj.weight", [HIDDEN, KV_HEADS * HEAD_DIM]
        yield at + "self_attn.o_proj.weight", [HEADS * HEAD_DIM, HIDDEN]
        yield at + "post_attention_layernorm.weight", [HIDDEN]
        yield at + "mlp.gate_proj.weight", [HIDDEN, INNER]
        yield at + "mlp.up_proj.weight", [HIDDEN, INNER]
        yield at + "mlp.down_proj.weight", [INNER, HIDDEN]
    yield "ernie.norm.weight", [HIDDEN]


def measure_bare(directory: Path, threads: int, tokens: int) -> dict[str, Timing]:
    """Time one prompt, one decode step of one stream and one of eight, without a server."""
    from cpu_engine.architecture import read_config
    from cpu_engine.forward import Chunk, Transformer
    from cpu_engine.weights import load_weights

    config = read_config(directory)
    weights = load_weights(directory, config, threads)
    model = Transformer(config, weights)
    prompt = [3 + n % (config.vocab_size - 3) for n in range(PROMPT)]
    linears = [linear.weight for layer in weights.layers for linear in (layer.qkv, layer.attention_output, layer.gate_up, layer.down)]

    def answered(streams: int) -> Callable[[], object]:
        caches = [model.new_cache() for _ in range(streams)]
        model.forward([Chunk(cache=cache, tokens=prompt) for cache in caches])
        return lambda: model.forward([Chunk(cache=cache, tokens=[7]) for cache in caches])

    return {
        "prompt": in_turn(
            lambda: model.forward([Chunk(cache=model.new_cache(), tokens=prompt)]), bare_products(linears, weights.head, PROMPT, 1), ROUNDS
        ),
        "one": in_turn(answered(1), bare_products(linears, weights.head, 1, 1), tokens),
        "many": in_turn(answered(STREAMS), bare_products(linears, weights.head, STREAMS, STREAMS), tokens),
        "bound": in_turn(*answers(directory, model), tokens),
    }


def answers(directory: Path, model: Transformer) -> tuple[Callable[[], object], Callable[[], object]]:
    """Give one step of an answer that is bound to a JSON schema, and one of an answer that is free, by the engine's own sampler."""
    from cpu_engine.answer_form import AnswerForm
    from cpu_engine.constraint import ConstraintCompiler
    from cpu_engine.sampling import SamplingParams
    from cpu_engine.sequence import SequenceSpec, SequenceState
    from cpu_engine.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(directory, prefer_sentencepiece=True)
    item = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]}
    form = AnswerForm(
        field="guided_json", grammar="start: %json " + json.dumps({"type": "array", "items": item, "minItems": 10_000}), calls={}
    )
    constraint = ConstraintCompiler(tokenizer, model.config.vocab_size, {2}).compile(form)

    def stepping(*, bound: bool) -> Callable[[], object]:
        spec = SequenceSpec(
            prompt=[3 + n for n in range(PROMPT)],
            sampling=SamplingParams(top_p=0.8, seed=1),
            max_tokens=100_000,
            min_tokens=100_000,
            stop_tokens=frozenset({2}),
            stop_strings=(),
            include_stop=False,
            constraint=constraint if bound else None,
        )
        state = SequenceState(spec, model.new_cache(), tokenizer)
        return lambda: state.advance(model.forward([state.next_chunk(PROMPT)]))

    return stepping(bound=True), stepping(bound=False)


def bare_products(linears: list[FloatArray], head: FloatArray, rows: int, last: int) -> Callable[[], object]:
    """Give the floor of a step: the matrix products of `rows` rows, the head's of `last` rows, and nothing else."""
    import numpy as np

    inputs = {matrix.shape[0]: np.ones((rows, matrix.shape[0]), np.float32) for matrix in [*linears, head]}

    def products() -> None:
        for matrix in linears:
            inputs[matrix.shape[0]] @ matrix
        inputs[head.shape[0]][:last] @ head

    return products


def in_turn(engine: Callable[[], object], floor: Callable[[], object], rounds: int) -> Timing:
    """Call both `rounds` times, one after the other, and give the median of each."""
    engine()
    floor()
    seconds = [(timed(engine), timed(floor)) for _ in range(rounds)]
    return Timing(engine=statistics.median(pair[0] for pair in seconds), floor=statistics.median(pair[1] for pair in seconds))


def timed(call: Callable[[], object]) -> float:
    """Give the seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a client sees of the real server, and what the process weighs."""

    start: float
    """Seconds from process start to listening."""
    first_token: float
    one: float
    """Seconds per token of a single stream."""
    many: float
    """Seconds per token over all of eight streams together."""
    resident: int
    """Bytes after loading and answering; the peak is in `peak`."""
    peak: int


def measure_served(directory: Path, tokens: int) -> Served:
    """Start the server as a child process and ask it over HTTP."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "cpu_engine", "--model", str(directory), "--port", "0", "--max-num-seqs", str(STREAMS)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            address = re.search(r"http://\S+[0-9]", line)
            if address is None:
                raise SystemExit(f"the server did not start: {line}{process.stderr.read()}")
            start = time.perf_counter() - began
            first_token, one, many = asyncio.run(ask(address[0], tokens))
            status = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.terminate()
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status)}
    return Served(start=start, first_token=first_token, one=one, many=many, resident=sizes["VmRSS"], peak=sizes["VmHWM"])


async def ask(address: str, tokens: int) -> tuple[float, float, float]:
    """Give the time to the first token, seconds per token of one stream, and of eight at once."""
    import aiohttp

    async with aiohttp.ClientSession(address) as session:
        await stream(session, 4)
        singles = [await stream(session, tokens) for _ in range(ROUNDS)]
        arrivals = await asyncio.gather(*(stream(session, tokens) for _ in range(STREAMS)))
    # Over all eight: from the moment the last of them answers to the moment the first has ended.
    low, high = max(times[1] for times in arrivals), min(times[-1] for times in arrivals)
    seen = sum(low < moment <= high for times in arrivals for moment in times[1:])
    return (
        statistics.median(times[1] - times[0] for times in singles),
        statistics.median((times[-1] - times[1]) / (len(times) - 2) for times in singles),
        (high - low) / max(1, seen),
    )


async def stream(session: aiohttp.ClientSession, tokens: int) -> list[float]:
    """Stream one completion of exactly `tokens` tokens; give the times of the request and of every token."""
    body = {"prompt": [3 + n for n in range(PROMPT)], "stream": True, "temperature": 0, "max_tokens": tokens, "min_tokens": tokens}
    times = [time.perf_counter()]
    async with session.post("/v1/completions", json=body) as response:
        response.raise_for_status()
        times.extend([time.perf_counter() async for line in response.content if line.startswith(b"data: {")])
    return times


def print_table(bare: dict[str, Timing], served: Served) -> None:
    """Print every figure, with its ratio to the floor where it has one."""
    one, many = bare["one"], bare["many"]
    print(f"{'':34}{'engine':>12}{'floor':>12}{'engine/floor':>14}")
    row("prompt, forward pass", bare["prompt"].engine * 1e3, "ms", bare["prompt"].floor * 1e3, bare["prompt"])
    row("decode, 1 stream", 1 / one.engine, "tok/s", 1 / one.floor, one)
    row(f"decode, {STREAMS} streams", STREAMS / many.engine, "tok/s", STREAMS / many.floor, many)
    row("decode, bound to a schema", 1 / bare["bound"].engine, "tok/s", 1 / bare["bound"].floor, bare["bound"])
    print("through the server")
    row("time to first token", served.first_token * 1e3, "ms", None, None)
    row("1 stream", 1 / served.one, "tok/s", None, None)
    row(f"{STREAMS} streams", 1 / served.many, "tok/s", None, None)
    row("process start to listening", served.start, "s", None, None)
    row("resident memory", served.resident / 1e6, "MB", None, None)
    row("peak memory", served.peak / 1e6, "MB", None, None)


def row(name: str, value: float, unit: str, floor: float | None, timing: Timing | None) -> None:
    """Print one line of the table."""
    text = f"{name:30}{value:10.1f} {unit:5}"
    if floor is not None and timing is not None:
        text += f"{floor:9.1f} {unit:5}{timing.engine / timing.floor:11.2f}x"
    print(text)
