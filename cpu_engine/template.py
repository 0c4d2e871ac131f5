"""Messages -> prompt text, by the checkpoint's chat template (Jinja2, sandboxed), rendered as transformers does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import jinja2
import jinja2.sandbox

from cpu_engine.architecture import JsonObject, read_json
from cpu_engine.refusals import BadRequest, StartupError

_FILE = "chat_template.jinja"


class ChatTemplate:
    """The template of one checkpoint; None as source means it has none."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = special_tokens
        self._own = None if source is None else _environment().from_string(source)

    def render(self, messages: Sequence[JsonObject], *, tools: object = None, arguments: JsonObject | None = None) -> str:
        """Return the prompt of `messages`; `arguments` (chat_template_kwargs) become the template's variables.

        Raises BadRequest when there is no template or it cannot make sense of the messages.
        """
        if self._own is None:
            raise BadRequest("this checkpoint has no chat template: use /v1/completions", param="messages")
        variables = {"add_generation_prompt": True, **self._special_tokens, **(arguments or {}), "messages": messages, "tools": tools}
        try:
            return self._own.render(variables)
        except Exception as error:
            raise BadRequest(f"messages: the chat template failed: {type(error).__name__}: {error}", param="messages") from error


def read_chat_template(directory: Path, special_tokens: Mapping[str, str]) -> ChatTemplate:
    """Read chat_template.jinja, else `chat_template` of tokenizer_config.json; raise StartupError if it does not parse."""
    file = directory / _FILE
    config_file = directory / "tokenizer_config.json"
    source: object = None
    where = str(file)
    if file.is_file():
        source = file.read_text(encoding="utf-8")
    elif config_file.is_file():
        where = f"{config_file}: chat_template"
        source = _default(read_json(config_file).get("chat_template"))
    if source is not None and not isinstance(source, str):
        raise StartupError(where, got=type(source).__name__, expected="text", remedy="download the checkpoint again")
    try:
        return ChatTemplate(source, special_tokens)
    except jinja2.TemplateError as error:
        raise StartupError(
            where, got=f"{type(error).__name__} ({error})", expected="a Jinja template", remedy="correct the template"
        ) from error


def _default(value: object) -> object:
    """Pick the template called `default` from the list form `[{"name":..., "template":...}]`."""
    if not isinstance(value, list):
        return value
    named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    return named.get("default")


def _environment() -> jinja2.Environment:
    """Return the environment whose names and white space transformers gives chat templates."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _tojson(value: object, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which a prompt is not.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
