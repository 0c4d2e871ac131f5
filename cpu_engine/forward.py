"""The forward pass: token ids of many sequences, packed, to logits, with one KV cache per sequence.

All new tokens of a step form one matrix of rows, so prompts and single decode steps share the weight
traffic; only attention goes sequence by sequence. Not safe for concurrent use: one thread owns a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpu_engine.architecture import ModelConfig
from cpu_engine.tensors import FloatArray
from cpu_engine.weights import DecoderLayer, Linear, ModelWeights

_CACHE_START = 256
# Up to this many rows a matrix-vector product each beats one matrix product, which repacks the weights
# (measured on two AVX2 cores: equal at 4 rows on one thread, 20 % better on two).
_VECTOR_ROWS = 4
# A tied head lies transposed, where matrix products are slower still: up to this many rows go as
# matrix-vector products over blocks that stay in the cache for all of them.
_BLOCKED_ROWS = 12
_BLOCK_COLUMNS = 512
# Query rows of one key/value head up to which scores are faster the other way round (measured: twice at 1500 keys).
_FEW_QUERIES = 16
# Bounds the score matrix of a long prompt: heads x queries x keys, 16 MiB in float32.
_SCORES_LIMIT = 1 << 22


class KVCache:
    """Keys and values of one sequence: [layers, kv_heads, capacity, head_dim], `length` of them valid."""

    __slots__ = ("keys", "length", "values")

    def __init__(self, config: ModelConfig) -> None:
        shape = (config.layers, config.kv_heads, _CACHE_START, config.head_dim)
        self.length = 0
        self.keys: FloatArray = np.empty(shape, np.float32)
        self.values: FloatArray = np.empty(shape, np.float32)

    def reserve(self, length: int) -> None:
        """Make room for `length` positions; doubles, so that growing costs a constant per token."""
        capacity = self.keys.shape[2]
        if length <= capacity:
            return
        self.keys = self._grown(self.keys, max(length, 2 * capacity))
        self.values = self._grown(self.values, max(length, 2 * capacity))

    def _grown(self, old: FloatArray, capacity: int) -> FloatArray:
        new = np.empty((old.shape[0], old.shape[1], capacity, old.shape[3]), np.float32)
        new[:, :, : self.length] = old[:, :, : self.length]
        return new


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The next tokens of one sequence. `wants_logits` is False while more of its prompt is to come.

    `every_row` asks for the logits after each token, not only after the last.
    """

    cache: KVCache
    tokens: Sequence[int]
    wants_logits: bool = True
    every_row: bool = False

    @property
    def answers(self) -> int:
        """Return how many rows of logits it gets."""
        return len(self.tokens) if self.every_row else int(self.wants_logits)


class Transformer:
    """The weights of one checkpoint and the arithmetic over them."""

    def __init__(self, config: ModelConfig, weights: ModelWeights) -> None:
        self.config = config
        self._weights = weights
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
        self._frequencies = (1.0 / config.rope_theta**exponents).astype(np.float32)

    def new_cache(self) -> KVCache:
        """Return the empty cache of a new sequence."""
        return KVCache(self.config)

    def forward(self, chunks: Sequence[Chunk]) -> FloatArray:
        """Feed every chunk to its cache; return logits [rows, vocab], of each chunk in turn its last `answers` rows.

        Raises IndexError for a token id outside the vocabulary.
        """
        tokens = np.concatenate([np.asarray(chunk.tokens, np.int64) for chunk in chunks])
        starts = np.cumsum([0, *(len(chunk.tokens) for chunk in chunks)])
        for chunk in chunks:
            chunk.cache.reserve(chunk.cache.length + len(chunk.tokens))
        # exp() of a large negative gate overflows to infinity and the quotient is the right zero.
        with np.errstate(over="ignore"):
            rows = self._weights.embedding[tokens]
            rotation = self._rotation(chunks)
            for number, layer in enumerate(self._weights.layers):
                rows = rows + self._attention(number, layer, rows, chunks, starts, rotation)
                rows = rows + self._mlp(layer, rows)
            for chunk in chunks:
                chunk.cache.length += len(chunk.tokens)
            wanted = [row for stop, chunk in zip(starts[1:], chunks, strict=True) for row in range(stop - chunk.answers, stop)]
            return self._head(_normalised(rows[wanted], self._weights.norm, self.config.norm_epsilon))

    def _rotation(self, chunks: Sequence[Chunk]) -> tuple[FloatArray, FloatArray]:
        """Return cosines and sines [rows, 1, head_dim / 2] of every new position."""
        positions = np.concatenate([np.arange(chunk.cache.length, chunk.cache.length + len(chunk.tokens)) for chunk in chunks])
        angles = positions.astype(np.float32)[:, None, None] * self._frequencies
        return np.cos(angles), np.sin(angles)

    def _attention(
        self,
        number: int,
        layer: DecoderLayer,
        rows: FloatArray,
        chunks: Sequence[Chunk],
        starts: npt.NDArray[np.int64],
        rotation: tuple[FloatArray, FloatArray],
    ) -> FloatArray:
        config = self.config
        heads, kv_heads, dim = config.heads, config.kv_heads, config.head_dim
        qkv = _project(_normalised(rows, layer.attention_norm, config.norm_epsilon), layer.qkv)
        qkv = qkv.reshape(len(rows), heads + 2 * kv_heads, dim)
        turning = qkv[:, : heads + kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            turning[:, :heads] = _normalised(turning[:, :heads], layer.q_norm, config.norm_epsilon)
            turning[:, heads:] = _normalised(turning[:, heads:], layer.k_norm, config.norm_epsilon)
        turned = self._rotated(turning, rotation)
        turned[:, :heads] *= dim**-0.5
        mixed = np.empty((len(rows), heads * dim), np.float32)
        for position, chunk in enumerate(chunks):
            first, stop = starts[position], starts[position + 1]
            past, length = chunk.cache.length, chunk.cache.length + stop - first
            keys, values = chunk.cache.keys[number], chunk.cache.values[number]
            keys[:, past:length] = turned[first:stop, heads:].swapaxes(0, 1)
            values[:, past:length] = qkv[first:stop, heads + kv_heads :].swapaxes(0, 1)
            _attend(turned[first:stop, :heads], keys[:, :length], values[:, :length], mixed[first:stop])
        return _project(mixed, layer.attention_output)

    def _rotated(self, rows: FloatArray, rotation: tuple[FloatArray, FloatArray]) -> FloatArray:
        cosines, sines = rotation
        turned = np.empty_like(rows)
        half = self.config.head_dim // 2
        if self.config.interleaved_rope:
            first, second = (..., slice(0, None, 2)), (..., slice(1, None, 2))
        else:
            first, second = (..., slice(None, half)), (..., slice(half, None))
        a, b = rows[first], rows[second]
        turned[first] = a * cosines - b * sines
        turned[second] = b * cosines + a * sines
        return turned

    def _mlp(self, layer: DecoderLayer, rows: FloatArray) -> FloatArray:
        both = _project(_normalised(rows, layer.mlp_norm, self.config.norm_epsilon), layer.gate_up)
        gate, up = both[:, : self.config.intermediate_size], both[:, self.config.intermediate_size :]
        activated = np.float32(1.0) + np.exp(-gate)
        np.divide(gate, activated, out=activated)
        activated *= up
        return _project(activated, layer.down)

    def _head(self, rows: FloatArray) -> FloatArray:
        head = self._weights.head
        if not self._weights.tied or not 1 < len(rows) <= _BLOCKED_ROWS:
            return _product(rows, head)
        logits = np.empty((len(rows), head.shape[1]), np.float32)
        for first in range(0, head.shape[1], _BLOCK_COLUMNS):
            block = head[:, first : first + _BLOCK_COLUMNS]
            for row, out in zip(rows, logits, strict=True):
                np.dot(row, block, out=out[first : first + _BLOCK_COLUMNS])
        return logits


def _normalised(rows: FloatArray, weight: FloatArray, epsilon: float) -> FloatArray:
    """Root-mean-square norm over the last axis."""
    scale = 1.0 / np.sqrt(np.mean(np.square(rows), axis=-1, keepdims=True) + np.float32(epsilon))
    normed: FloatArray = rows * scale * weight
    return normed


def _project(rows: FloatArray, linear: Linear) -> FloatArray:
    out = _product(rows, linear.weight)
    if linear.bias is not None:
        out += linear.bias
    return out


def _product(rows: FloatArray, matrix: FloatArray) -> FloatArray:
    out = np.empty((len(rows), matrix.shape[1]), np.float32)
    if len(rows) > _VECTOR_ROWS:
        np.matmul(rows, matrix, out=out)
    else:
        for row, into in zip(rows, out, strict=True):
            np.dot(row, matrix, out=into)
    return out


def _attend(queries: FloatArray, keys: FloatArray, values: FloatArray, out: FloatArray) -> None:
    """Mix `values` for the newest positions of one sequence.

    queries [new, heads, dim], already scaled; keys and values [kv_heads, length, dim]; out [new, heads * dim].
    """
    new, heads, dim = queries.shape
    kv_heads, length, _ = keys.shape
    group = heads // kv_heads
    step = max(1, _SCORES_LIMIT // (heads * length))
    for first in range(0, new, step):
        block = queries[first : first + step]
        count = len(block)
        # Query i of the block sees the past and itself: no later key is worth multiplying.
        seen = length - new + first + count
        grouped = block.reshape(count, kv_heads, group, dim).transpose(1, 2, 0, 3).reshape(kv_heads, group * count, dim)
        scores = _scores(grouped, keys[:, :seen]).reshape(kv_heads, group, count, seen)
        if count > 1:
            scores[..., seen - count :] += np.triu(np.full((count, count), -np.inf, np.float32), 1)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = np.matmul(scores.reshape(kv_heads, group * count, seen), values[:, :seen])
        ordered = mixed.reshape(kv_heads, group, count, dim).transpose(2, 0, 1, 3)
        out[first : first + count] = ordered.reshape(count, heads * dim)


def _scores(queries: FloatArray, keys: FloatArray) -> FloatArray:
    """Return queries [kv_heads, m, dim] times keys [kv_heads, n, dim], as [kv_heads, m, n]."""
    if queries.shape[1] > _FEW_QUERIES:
        scores: FloatArray = np.matmul(queries, keys.swapaxes(1, 2))
        return scores
    # The keys first: as the right-hand side of a product they would be repacked for a handful of rows.
    return np.ascontiguousarray(np.matmul(keys, queries.swapaxes(1, 2)).swapaxes(1, 2))
