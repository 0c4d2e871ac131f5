"""Which calls and thoughts the worker itself tells from the engine's text, by TOOL_CALL_PARSER and the checkpoint's chat template.

`auto`, which is the default, takes the format that the template shows; a format's name takes that one; `off` none. Any other name is of a
parser of the engine's own, and then the worker touches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from checkpoint.config import read_template
from handler.parsing.families import FAMILIES, Family, detect
from handler.parsing.rewriter import Rewriter
from handler.parsing.thinking import Thinking, reasoning_of, thinking_of

__all__ = ["OWN_PARSERS", "TextFormats", "own_parser", "rewriter", "text_formats"]

OWN_PARSERS = ("auto", "off", *FAMILIES)
_VARIABLE = "TOOL_CALL_PARSER"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFormats:
    """What is told from text; None for what is left in it."""

    family: Family | None = None
    thinking: Thinking | None = None


def own_parser(texts: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """Return which of the worker's parsers the variables choose, "" for one of the engine's, and the variables without that."""
    given = texts.get(_VARIABLE, "").strip().lower().replace("_", "-")
    # A plugin may bring the engine a parser of any name.
    if given and (given not in OWN_PARSERS or texts.get("TOOL_PARSER_PLUGIN") or texts.get("FD_PLUGINS")):
        return "", texts
    name = given or "auto"
    return name, {variable: text for variable, text in texts.items() if variable != _VARIABLE}


@lru_cache(maxsize=16)
def text_formats(parser: str, directory: Path | None) -> TextFormats:
    """Return what is told from the text of a model; `directory` is None where the engine downloads the checkpoint itself."""
    if not parser:
        return TextFormats()
    template, special = read_template(directory) if directory else ("", frozenset[str]())
    name = detect(template, special) if parser == "auto" else parser
    thinking = thinking_of(template)
    return TextFormats(family=FAMILIES.get(name or ""), thinking=thinking if thinking.marks else None)


def rewriter(formats: TextFormats, asked: Mapping[str, Any], sent: Mapping[str, Any], *, thoughts: bool) -> Rewriter | None:
    """Return what rewrites the answer to a chat request, None if nothing does.

    `sent` is the request as the engine gets it, whose chat_template_kwargs decide how the prompt ends. Without `thoughts` these stay
    where the engine has them.
    """
    reasoning = None
    if thoughts and formats.thinking:
        reasoning = reasoning_of(formats.thinking, sent.get("chat_template_kwargs") or {}, sent.get("messages") or ())
    made = Rewriter(formats.family, reasoning, asked)
    return made if made.active else None
