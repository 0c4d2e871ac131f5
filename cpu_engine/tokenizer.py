"""Text <-> token ids by the checkpoint's own tokenizer, and ids -> text that never ends in half a character.

Every token stands for a fixed run of bytes, so decoding is joining bytes and reading them as UTF-8 as far as
they go; that holds for SentencePiece (tokenizer.model) and for byte-level BPE (tokenizer.json) alike.
Special tokens stay visible, as FastDeploy leaves them.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cpu_engine.architecture import JsonObject, read_json
from cpu_engine.refusals import StartupError

if TYPE_CHECKING:
    import sentencepiece
    import tokenizers

# The names FastDeploy's own ERNIE tokenizer looks for, in its order.
_SENTENCEPIECE_FILES = ("tokenizer.model", "spm.model", "ernie_token_100k.model")
_JSON_FILE = "tokenizer.json"
_SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_AGAIN = "download the checkpoint again"


class Vocabulary(Protocol):
    """What the two kinds of tokenizer have in common."""

    size: int
    special_ids: frozenset[int]
    """Tokens that stand for no text of an answer: end of sequence, roles, masks."""
    strips_first_space: bool
    """The encoder put a space before the text, so the decoder takes one off the front."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; special tokens written out in it become their ids."""

    def bytes_of(self, token: int) -> bytes:
        """Return what the token stands for; empty for an id without a token."""

    def id_of(self, content: str) -> int | None:
        """Return the id of one token by its spelling."""


class Tokenizer:
    """A vocabulary with the special tokens of tokenizer_config.json."""

    def __init__(self, vocabulary: Vocabulary, special_tokens: Mapping[str, str]) -> None:
        self._vocabulary = vocabulary
        self.special_tokens = special_tokens
        """Name in tokenizer_config.json -> spelling, e.g. eos_token -> </s>; chat templates use them."""
        self.size = vocabulary.size
        self.special_ids = vocabulary.special_ids

    @property
    def eos_token_id(self) -> int | None:
        """Return the id of the end-of-sequence token, if one is named."""
        spelling = self.special_tokens.get("eos_token")
        return None if spelling is None else self._vocabulary.id_of(spelling)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, nothing added before or after."""
        return self._vocabulary.encode(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens`, without a character that their end cuts in two."""
        detokenizer = self.detokenizer()
        return "".join(detokenizer.feed(token) for token in tokens)

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of one token on its own, as log-probabilities show it."""
        return self._vocabulary.bytes_of(token)

    def detokenizer(self) -> Detokenizer:
        """Return the decoder of one new sequence."""
        return Detokenizer(self._vocabulary)


class Detokenizer:
    """Ids of one sequence, fed one by one, to the text that each completes."""

    __slots__ = ("_at_start", "_utf8", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = vocabulary.strips_first_space

    def feed(self, token: int) -> str:
        """Return the characters that `token` completes; bytes of an unfinished one wait for the next call."""
        data = self._vocabulary.bytes_of(token)
        if self._at_start and data:
            data = data.removeprefix(b" ")
            self._at_start = False
        return self._utf8.decode(data)


def read_tokenizer(directory: Path, *, prefer_sentencepiece: bool) -> Tokenizer:
    """Read the tokenizer of a checkpoint; raise StartupError when there is none or it is damaged.

    `prefer_sentencepiece` says which file wins where there are both: FastDeploy reads tokenizer.model for
    ERNIE and tokenizer.json for the others.
    """
    config_file = directory / "tokenizer_config.json"
    config: JsonObject = read_json(config_file) if config_file.is_file() else {}
    special = _special_tokens(config)
    model_files = [directory / name for name in _SENTENCEPIECE_FILES if (directory / name).is_file()]
    json_file = directory / _JSON_FILE
    if model_files and (prefer_sentencepiece or not json_file.is_file()):
        return Tokenizer(_SentencePiece(model_files[0], _spellings(config, special)), special)
    if json_file.is_file():
        return Tokenizer(_JsonTokenizer(json_file), special)
    raise StartupError(
        str(directory),
        got="no tokenizer",
        expected=f"{_SENTENCEPIECE_FILES[0]} or {_JSON_FILE}",
        remedy=_AGAIN,
    )


def _special_tokens(config: JsonObject) -> dict[str, str]:
    named = {key: _spelling(value) for key, value in config.items() if key.endswith("_token")}
    return {key: value for key, value in named.items() if value is not None}


def _spellings(config: JsonObject, special: Mapping[str, str]) -> set[str]:
    """Return every token that is one id however the text around it reads."""
    more = config.get("additional_special_tokens")
    added = config.get("added_tokens_decoder")
    listed = [*(more if isinstance(more, list) else []), *(added.values() if isinstance(added, dict) else [])]
    return {text for text in [*special.values(), *map(_spelling, listed)] if text}


def _spelling(value: object) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


class _SentencePiece:
    """tokenizer.model; the special tokens are cut out before SentencePiece sees the text between them."""

    def __init__(self, path: Path, specials: Iterable[str]) -> None:
        import sentencepiece

        try:
            self._model: sentencepiece.SentencePieceProcessor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise _damaged(path, error) from error
        self.size: int = self._model.vocab_size()
        unknown = self._model.unk_id()
        ids = {text: self._model.piece_to_id(text) for text in specials}
        self._special = {text: token for text, token in ids.items() if token != unknown or self._model.id_to_piece(unknown) == text}
        self._shown = {token: text.encode() for text, token in self._special.items()}
        self.special_ids = frozenset(self._shown)
        longest_first = sorted(self._special, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        self.strips_first_space = self._adds_space()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._split.split(text) if self._split else [text]:
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids.extend(self._model.encode(part))
        return ids

    def bytes_of(self, token: int) -> bytes:
        if token in self._shown:
            return self._shown[token]
        model = self._model
        if not 0 <= token < self.size or model.is_control(token) or model.is_unused(token):
            return b""
        piece: str = model.id_to_piece(token)
        if model.is_byte(token):
            return bytes.fromhex(piece[3:5])
        if model.is_unknown(token):
            return model.decode([token]).encode()  # type: ignore[no-any-return]
        return piece.replace(_SPACE, " ").encode()

    def id_of(self, content: str) -> int | None:
        return self._special.get(content)

    def _adds_space(self) -> bool:
        """Ask the model itself, which does not tell its settings: is a leading space swallowed?"""
        for token in range(self.size):
            piece: str = self._model.id_to_piece(token)
            if piece.startswith(_SPACE) and not self._model.is_control(token):
                return not self._model.decode([token]).startswith(" ")
        return False


class _JsonTokenizer:
    """tokenizer.json, with the byte meaning of its tokens read from its decoder section."""

    def __init__(self, path: Path) -> None:
        import tokenizers

        try:
            text = path.read_text(encoding="utf-8")
            self._model: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:
            raise _damaged(path, error) from error
        added = self._model.get_added_tokens_decoder()
        self._shown = {token: entry.content.encode() for token, entry in added.items()}
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self.size: int = max(self._model.get_vocab_size(with_added_tokens=True), max(self._shown, default=-1) + 1)
        decoder = json.loads(text).get("decoder") or {}
        steps = {step.get("type"): step for step in decoder.get("decoders", [decoder])}
        self._byte_level = "ByteLevel" in steps
        if not self._byte_level and not steps.keys() & {"ByteFallback", "Metaspace"}:
            raise StartupError(
                f"{path}: decoder",
                got=" + ".join(map(str, steps)) or "none",
                expected="ByteLevel, or ByteFallback with Replace",
                remedy="this tokenizer is not supported on CPU: serve the model with FastDeploy on a GPU",
            )
        scheme = steps.get("Metaspace", {}).get("prepend_scheme", "never")
        self.strips_first_space = "Strip" in steps or scheme != "never"

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def bytes_of(self, token: int) -> bytes:
        if token in self._shown:
            return self._shown[token]
        piece = self._model.id_to_token(token) if token >= 0 else None
        if piece is None:
            return b""
        if self._byte_level:
            alphabet = _byte_alphabet()
            return bytes(alphabet[character] for character in piece if character in alphabet)
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes.fromhex(byte[1]) if byte else piece.replace(_SPACE, " ").encode()

    def id_of(self, content: str) -> int | None:
        token: int | None = self._model.token_to_id(content)
        return token


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """Return the letters byte-level BPE writes bytes with (GPT-2's table): printable ones stand for themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _damaged(path: Path, error: Exception) -> StartupError:
    reason = str(error).strip().splitlines()
    return StartupError(str(path), got=f"a damaged file ({reason[-1] if reason else error!r})", expected="a tokenizer", remedy=_AGAIN)
