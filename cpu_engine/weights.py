"""A checkpoint directory -> the float32 matrices of each layer, whatever layout the files have.

Linears are kept as [in, out]: Paddle's own order, and the faster one for the products of decoding.
q, k, v are fused into one matrix, gate and up into another, in the order FastDeploy uses on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cpu_engine.architecture import ModelConfig, read_json
from cpu_engine.refusals import StartupError
from cpu_engine.tensors import FloatArray, MappedTensor, read_tensors

_INDEX = "model.safetensors.index.json"
_FAMILY_PREFIX = re.compile(r"^(ernie|model|qwen2|qwen3|llama)\.")
# Buffers that old exporters saved and every reader computes itself.
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")
_AGAIN = "download the checkpoint again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """weight [in, out], bias [out] or None."""

    weight: FloatArray
    bias: FloatArray | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """One transformer block. `qkv` is q|k|v and `gate_up` is gate|up along the output."""

    attention_norm: FloatArray
    qkv: Linear
    q_norm: FloatArray | None
    k_norm: FloatArray | None
    attention_output: Linear
    mlp_norm: FloatArray
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeights:
    """embedding [vocab, hidden]; head [hidden, vocab], a view of the embedding when tied."""

    embedding: FloatArray
    layers: Sequence[DecoderLayer]
    norm: FloatArray
    head: FloatArray
    tied: bool


def load_weights(directory: Path, config: ModelConfig, threads: int) -> ModelWeights:
    """Read every safetensors file of `directory`, converting with `threads` threads.

    Raises StartupError naming tensor and file when one is missing, left over, of the wrong shape or damaged.
    """
    tensors = {}
    for path in _files(directory):
        for tensor in read_tensors(path):
            if not _COMPUTED.search(tensor.name):
                tensors[_FAMILY_PREFIX.sub("", tensor.name)] = tensor
    tied = config.tied_head if config.tied_head is not None else "lm_head.weight" not in tensors
    if tied:
        # Some exporters save the tied head as well; the embedding is the one that counts.
        tensors.pop("lm_head.weight", None)
    loading = _Loading(directory, tensors, torch_layout=_torch_layout(tensors, config))
    weights = _assemble(loading, config, tied=tied)
    loading.refuse_left_over()
    loading.run(threads)
    return weights


def _files(directory: Path) -> list[Path]:
    pickled = sorted(directory.glob("*.pdparams"))
    if pickled:
        raise StartupError(
            str(pickled[0]),
            got="a .pdparams file, which FastDeploy would read first",
            expected="*.safetensors only",
            remedy="convert the checkpoint to safetensors",
        )
    index = directory / _INDEX
    if not index.is_file():
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise StartupError(str(directory), got="no *.safetensors file", expected="the model's weights", remedy=_AGAIN)
        return files
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise StartupError(f"{index}: weight_map", got=type(weight_map).__name__, expected="tensor -> file", remedy=_AGAIN)
    files = [directory / Path(name).name for name in sorted(set(weight_map.values()))]
    for path in files:
        if not path.is_file():
            raise StartupError(str(path), got="no such file", expected=f"a shard named in {_INDEX}", remedy=_AGAIN)
    return files


def _torch_layout(tensors: dict[str, MappedTensor], config: ModelConfig) -> bool:
    """Say whether matrices are [out, in]: by the shape of down_proj, which is hardly ever square, else by config.json.

    FastDeploy 2.3 goes by config.json alone and misreads what transformers 5 saves.
    """
    down = tensors.get("layers.0.mlp.down_proj.weight")
    shape = down.shape if down is not None else None
    if config.hidden_size != config.intermediate_size:
        if shape == (config.hidden_size, config.intermediate_size):
            return True
        if shape == (config.intermediate_size, config.hidden_size):
            return False
    return config.says_torch_layout


def _assemble(loading: _Loading, config: ModelConfig, *, tied: bool) -> ModelWeights:
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layers = []
    for number in range(config.layers):
        at = f"layers.{number}."
        layers.append(
            DecoderLayer(
                attention_norm=loading.vector(at + "input_layernorm.weight", hidden),
                qkv=loading.linear(at + "self_attn.", "qkv_proj", {"q_proj": query, "k_proj": key, "v_proj": key}, hidden, config.qkv_bias),
                q_norm=loading.vector(at + "self_attn.q_norm.weight", config.head_dim) if config.qk_norm else None,
                k_norm=loading.vector(at + "self_attn.k_norm.weight", config.head_dim) if config.qk_norm else None,
                attention_output=loading.linear(at + "self_attn.", "o_proj", {}, query, config.output_bias, hidden),
                mlp_norm=loading.vector(at + "post_attention_layernorm.weight", hidden),
                gate_up=loading.linear(at + "mlp.", "up_gate_proj", {"gate_proj": inner, "up_proj": inner}, hidden, config.mlp_bias),
                down=loading.linear(at + "mlp.", "down_proj", {}, inner, config.mlp_bias, hidden),
            )
        )
    embedding = loading.embedding("embed_tokens.weight", config.vocab_size, hidden)
    norm = loading.vector("norm.weight", hidden)
    head = embedding.T if tied else loading.linear("", "lm_head", {}, hidden, False, config.vocab_size).weight
    return ModelWeights(embedding=embedding, layers=layers, norm=norm, head=head, tied=tied)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fill:
    """One piece of work: this tensor goes into that target."""

    tensor: MappedTensor
    target: FloatArray
    transposed: bool = False


@dataclass(slots=True)
class _Loading:
    """Takes tensors by name, checks their shapes, and notes what has to be copied where."""

    directory: Path
    tensors: dict[str, MappedTensor]
    torch_layout: bool = field(kw_only=True)
    fills: list[_Fill] = field(default_factory=list)

    def vector(self, name: str, size: int) -> FloatArray:
        target = np.empty(size, np.float32)
        self.fills.append(_Fill(tensor=self._take(name, (size,)), target=target))
        return target

    def embedding(self, name: str, rows: int, columns: int) -> FloatArray:
        target = np.empty((rows, columns), np.float32)
        self.fills.append(_Fill(tensor=self._take(name, (rows, columns)), target=target))
        return target

    def linear(self, prefix: str, whole: str, parts: dict[str, int], inputs: int, biased: bool, outputs: int = 0) -> Linear:
        """Return the matrix `whole`, from disk as it is or fused from `parts` (name -> outputs)."""
        outputs = outputs or sum(parts.values())
        pieces = parts
        if not parts or f"{prefix}{whole}.weight" in self.tensors:
            pieces = {whole: outputs}
        weight = np.empty((inputs, outputs), np.float32)
        bias = np.empty(outputs, np.float32) if biased else None
        first = 0
        for name, width in pieces.items():
            columns = slice(first, first + width)
            shape = (width, inputs) if self.torch_layout else (inputs, width)
            tensor = self._take(f"{prefix}{name}.weight", shape)
            self.fills.append(_Fill(tensor=tensor, target=weight[:, columns], transposed=self.torch_layout))
            if bias is not None:
                self.fills.append(_Fill(tensor=self._take(f"{prefix}{name}.bias", (width,)), target=bias[columns]))
            first += width
        return Linear(weight=weight, bias=bias)

    def refuse_left_over(self) -> None:
        """Refuse tensors that nothing asked for: the model is another one than config.json says."""
        for tensor in self.tensors.values():
            raise StartupError(
                f"{tensor.file}: tensor {tensor.name}",
                got="a tensor this architecture does not have",
                expected="only those that config.json implies",
                remedy="check that config.json and the weights belong together",
            )

    def run(self, threads: int) -> None:
        """Do the noted copies; numpy releases the interpreter lock, so threads help."""
        with ThreadPoolExecutor(threads, thread_name_prefix="weights") as pool:
            _drain(pool.map(lambda fill: fill.tensor.widen_into(fill.target, transposed=fill.transposed), self.fills))

    def _take(self, name: str, shape: tuple[int, ...]) -> MappedTensor:
        tensor = self.tensors.pop(name, None)
        if tensor is None:
            raise StartupError(
                f"{self.directory}: tensor {name}", got="no such tensor in any file", expected=str(list(shape)), remedy=_AGAIN
            )
        if tensor.shape != shape:
            raise StartupError(
                f"{tensor.file}: tensor {tensor.name}",
                got=f"shape {list(tensor.shape)}",
                expected=str(list(shape)),
                remedy="check that config.json and the weights belong together",
            )
        return tensor


def _drain(results: Iterable[None]) -> None:
    """Wait for every result, so that the first failure is raised here."""
    for _ in results:
        pass
