"""Tokens: both kinds of tokenizer agree with their libraries and with each other; no half character is ever shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from cpu_engine.refusals import StartupError
from cpu_engine.tokenizer import Tokenizer, read_tokenizer
from tests import DEMO
from tests.cpu_engine.checkpoints import VOCABULARY

SPM = read_tokenizer(DEMO, prefer_sentencepiece=True)
JSON = read_tokenizer(DEMO, prefer_sentencepiece=False)
LAWS = settings(max_examples=200, deadline=None)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("FastDeploy 是飞桨的😀 \n"))
IDS = st.lists(st.integers(0, VOCABULARY - 1), max_size=40)


def byte_level(tmp_path: Path) -> Tokenizer:
    """Train a byte-level tokenizer as Qwen's are, with a special token."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    model.train_from_iterator(["the quick brown fox", "你好\uff0c世界"] * 4, trainer)
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    return read_tokenizer(tmp_path, prefer_sentencepiece=False)


@given(TEXTS)
@LAWS
def test_sentencepiece_and_json_give_the_same_ids(text: str) -> None:
    """Rule: the two files of one checkpoint are the same tokenizer."""
    assert SPM.encode(text) == JSON.encode(text)


@given(IDS)
@LAWS
def test_sentencepiece_and_json_give_the_same_text(ids: list[int]) -> None:
    """Rule: the two files of one checkpoint are the same tokenizer."""
    assert SPM.decode(ids) == JSON.decode(ids)


@pytest.mark.parametrize("tokenizer", [SPM, JSON], ids=["sentencepiece", "json"])
@given(ids=IDS)
@LAWS
def test_feeding_ids_one_by_one_gives_the_whole_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Rule: the pieces are a prefix of the bytes read as UTF-8 at once, short only of a cut character at the end."""
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.feed(token) for token in ids]
    whole = b"".join(tokenizer.bytes_of(token) for token in ids).decode(errors="replace")
    assert whole.startswith("".join(pieces))
    assert len(whole) - len("".join(pieces)) <= 3
    assert set(whole[len("".join(pieces)) :]) <= {"\ufffd"}


@pytest.mark.parametrize("tokenizer", [SPM, JSON], ids=["sentencepiece", "json"])
@given(text=TEXTS)
@LAWS
def test_text_survives_encoding_and_no_piece_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    """Rule: decode(encode(text)) == text, and valid text never shows a replacement character on the way."""
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.feed(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(TEXTS)
@LAWS
def test_decoding_agrees_with_the_libraries(text: str) -> None:
    """Rule: our bytes per token say what SentencePiece and tokenizers say about whole texts."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
    fast = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    ids = [token for token in SPM.encode(text) if not model.is_control(token)]
    assert SPM.decode(ids) == model.decode(ids)
    assert JSON.decode(SPM.encode(text)) == fast.decode(SPM.encode(text), skip_special_tokens=False)


@pytest.mark.parametrize(
    "text", ["Hello 世界", "😀👩‍👩‍👧 ok", "naïve\u2028line", " two  spaces ", "\x00\n\t", "<|im_start|>user\nhi<|im_end|>"]
)
def test_byte_level_tokenizers_decode_as_their_library_does(tmp_path: Path, text: str) -> None:
    tokenizer = byte_level(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text == library.decode(ids, skip_special_tokens=False)
    assert tokenizer.eos_token_id == library.token_to_id("<|im_end|>")
    assert tokenizer.bytes_of(ids[0]) != b""


@pytest.mark.parametrize("make", [lambda _: SPM, lambda _: JSON, byte_level], ids=["sentencepiece", "json", "byte-level"])
def test_ids_without_a_token_stand_for_nothing(tmp_path: Path, make: Callable[[Path], Tokenizer]) -> None:
    tokenizer = make(tmp_path)
    assert tokenizer.bytes_of(10**6) == b""
    assert tokenizer.bytes_of(-1) == b""


def test_special_tokens_written_out_become_one_id_and_stay_visible() -> None:
    ids = SPM.encode("<|begin_of_sentence|>hi</s>")
    assert ids[-1] == SPM.eos_token_id == JSON.eos_token_id == 2
    assert SPM.decode(ids) == "<|begin_of_sentence|>hi</s>"


def trained(tmp_path: Path, **options: Any) -> Path:
    """Train a SentencePiece model on a few words."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 20),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=30,
        minloglevel=2,
        **options,
    )
    return tmp_path


def test_the_space_that_an_encoder_puts_in_front_is_taken_off_again(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(trained(tmp_path, add_dummy_prefix=True), prefer_sentencepiece=True)
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ids = tokenizer.encode("the dog")
    assert tokenizer.decode(ids) == library.decode(ids) == "the dog"


def test_a_piece_for_the_unknown_reads_as_its_library_writes_it(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(trained(tmp_path, add_dummy_prefix=False), prefer_sentencepiece=True)
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ids = tokenizer.encode("the Ж dog")
    assert library.unk_id() in ids
    assert tokenizer.decode(ids) == library.decode(ids)
    assert tokenizer.bytes_of(library.bos_id()) == b""


def test_additional_special_tokens_are_cut_out_of_the_text(tmp_path: Path) -> None:
    config = {"additional_special_tokens": ["<mask:1>", {"content": "<not there>"}, 7], "added_tokens_decoder": {"5": {"content": "</s>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    shutil.copy(DEMO / "tokenizer.model", tmp_path)
    tokenizer = read_tokenizer(tmp_path, prefer_sentencepiece=False)
    assert tokenizer.encode("<mask:1>") == SPM.encode("<mask:1>")
    assert len(tokenizer.encode("</s>")) == 1
    assert tokenizer.decode(tokenizer.encode("<not there>")) == "<not there>"
    assert tokenizer.eos_token_id is None


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\x00\x01 nonsense", b'{"model": 1}'])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StartupError, match=rf"{name}: got a damaged file \(.*\), expected a tokenizer"):
        read_tokenizer(tmp_path, prefer_sentencepiece=True)


def test_a_tokenizer_whose_decoder_is_unknown_is_refused(tmp_path: Path) -> None:
    raw = json.loads((DEMO / "tokenizer.json").read_text())
    raw["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(StartupError, match="decoder: got WordPiece, expected ByteLevel, or ByteFallback"):
        read_tokenizer(tmp_path, prefer_sentencepiece=True)
