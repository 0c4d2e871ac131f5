"""Build the demo model's tokenizer: tokenizer.model (SentencePiece, what FastDeploy's ERNIE path reads) and the same as tokenizer.json.

The special tokens and the chat template are ERNIE 4.5's, so the checkpoint takes the paths that the real one takes.
"""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from ci.demo_model.corpus import Fact, Sections

VOCABULARY = 2048
SPECIAL = ["<|end_of_sentence|>", "<|begin_of_sentence|>", "<mask:1>", "<mask:4>", "<mask:5>", "<mask:6>", "<mask:7>"]
CONTROL = ["<unk>", "<s>", "</s>"]
SPACE = "\u2581"
"""SentencePiece writes a space as this character."""
TEMPLATE = """\
{%- if not add_generation_prompt is defined -%}
    {%- set add_generation_prompt = true -%}
{%- endif -%}
{%- if not cls_token is defined -%}
    {%- set cls_token = "<|begin_of_sentence|>" -%}
{%- endif -%}
{%- if not sep_token is defined -%}
    {%- set sep_token = "<|end_of_sentence|>" -%}
{%- endif -%}
{{- cls_token -}}
{%- for message in messages -%}
    {%- if message["role"] == "user" -%}
        {{- "User: " + message["content"] + "\\n" -}}
    {%- elif message["role"] == "assistant" -%}
        {{- "Assistant: " + message["content"] + sep_token -}}
    {%- elif message["role"] == "system" -%}
        {{- message["content"] + "\\n" -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "Assistant: " -}}
{%- endif -%}"""
CONFIG = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<unk>",
    "unk_token": "<unk>",
    "cls_token": "<|begin_of_sentence|>",
    "sep_token": "<|end_of_sentence|>",
    "mask_token": "<mask:1>",
    "sys_start_token": "<mask:4>",
    "sys_end_token": "<mask:5>",
    "header_start_token": "<mask:6>",
    "header_end_token": "<mask:7>",
    "additional_special_tokens": None,
    "tokenizer_class": "Ernie4_5_Tokenizer",
    "chat_template": TEMPLATE,
}


def training_text(facts: Sequence[Fact], sections: Sections) -> list[str]:
    """Give the text the pieces are learnt from: answers weigh most, nothing that is held out is in it."""
    text = ["User: ", "Assistant: "] * 20
    for fact in facts:
        text += [*fact.questions, *[fact.answer] * 4]
    for name, entries in sections.items():
        if not name.startswith("held-out"):
            text += [entry.replace("{}", "") for entry in entries] * (4 if name.endswith("answer") else 1)
    return text


def build_tokenizer(folder: Path, text: list[str]) -> Tokenizer:
    """Write tokenizer.model, tokenizer.json and tokenizer_config.json; raise ValueError if the first two ever disagree on `text`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        character_coverage=0.9995,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        user_defined_symbols=SPECIAL,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = as_tokenizer_json(pieces)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    compare(pieces, tokenizer, text)
    return tokenizer


def as_tokenizer_json(pieces: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """Express a SentencePiece BPE model as merges: a pair is merged in the order of the score of what it makes."""
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    scored = []
    for piece, number in vocabulary.items():
        if piece in CONTROL or piece in SPECIAL or pieces.is_byte(number):
            continue
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        known = [(a, b) for a, b in cuts if a in vocabulary and b in vocabulary]
        scored += [(pair, pieces.get_score(number)) for pair in sorted(known, key=lambda p: (vocabulary[p[0]], vocabulary[p[1]]))]
    merges = [pair for pair, _ in sorted(scored, key=lambda entry: -entry[1])]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=CONTROL[0], fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL + SPECIAL])
    return tokenizer


def compare(pieces: sentencepiece.SentencePieceProcessor, tokenizer: Tokenizer, text: Iterable[str]) -> None:
    """Check that both tokenizers give the same ids and the text back."""
    odd = [
        "héllo wörld 😀  double  space\nnew line\ttab",
        "   lead",
        "日本語テスト",
        "x = [1,2]; print(x)\n\n",
        "\u2028 \u0085 ½ ﬁ",
        "龘龘龘",
    ]
    for sentence in [*text, *odd]:
        ids = pieces.encode(sentence)
        if tokenizer.encode(sentence, add_special_tokens=False).ids != ids:
            raise ValueError(f"tokenizer.json and tokenizer.model disagree on {sentence!r}")
        if tokenizer.decode(ids) != sentence or pieces.decode(ids) != sentence:
            raise ValueError(f"the tokenizer does not give {sentence!r} back")
