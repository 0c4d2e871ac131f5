"""The prompts of a request: messages through the chat template, text, or token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cpu_engine.architecture import JsonObject
from cpu_engine.json_fields import Fields, is_whole
from cpu_engine.refusals import BadRequest
from cpu_engine.tokenizer import Tokenizer

_PROMPTS_LIMIT = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Token ids that start a sequence, and the text they came from."""

    tokens: Sequence[int]
    text: str


class Template(Protocol):
    """What makes one text of messages."""

    def render(self, messages: Sequence[JsonObject], *, tools: object = None, arguments: JsonObject | None = None) -> str:
        """Return the prompt; raise BadRequest when the messages do not fit the template."""

    def close(self) -> None:
        """Give up what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptReader:
    """Reads prompts for one checkpoint."""

    tokenizer: Tokenizer
    template: Template
    vocab_size: int

    def chat(self, fields: Fields) -> list[Prompt]:
        """Return the one prompt of a chat; raise BadRequest naming what does not fit."""
        ids = fields.tokens("prompt_token_ids", self.vocab_size)
        messages = fields.objects("messages")
        if ids is not None:
            return [Prompt(tokens=ids, text=self.tokenizer.decode(ids))]
        if messages is None:
            raise BadRequest("Field required", param="messages", code="missing_required_parameter")
        if not messages:
            raise BadRequest("messages must not be an empty list", param="messages")
        flat = [_flat_message(number, message) for number, message in enumerate(messages)]
        if fields.flag("disable_chat_template"):
            text = "\n".join(str(message["content"]) for message in flat)
        else:
            tools = None if fields.raw.get("tool_choice") == "none" else fields.objects("tools")
            text = self.template.render(flat, tools=tools, arguments=_arguments(fields))
        return [self._encoded(text, "messages")]

    def completion(self, fields: Fields) -> list[Prompt]:
        """Return the prompts of a text completion; raise BadRequest naming what does not fit."""
        given, name = fields.raw.get("prompt_token_ids"), "prompt_token_ids"
        if given is None:
            given, name = fields.raw.get("prompt"), "prompt"
        if given is None:
            raise BadRequest("Field required", param="prompt", code="missing_required_parameter")
        several = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
        items: Sequence[object] = given if several and isinstance(given, list) else [given]
        if len(items) > _PROMPTS_LIMIT:
            raise BadRequest(f"{name}: got {len(items)} prompts, expected at most {_PROMPTS_LIMIT}", param=name)
        return [self._completion(item, name) for item in items]

    def _completion(self, item: object, name: str) -> Prompt:
        if isinstance(item, str) and name == "prompt":
            return self._encoded(item, name)
        ids = Fields({name: item}).tokens(name, self.vocab_size)
        if ids is None:
            raise BadRequest(f"{name}: got null, expected text or a list of token ids", param=name)
        return Prompt(tokens=ids, text=self.tokenizer.decode(ids))

    def _encoded(self, text: str, param: str) -> Prompt:
        if not is_whole(text):
            raise BadRequest(f"{param}: got a lone surrogate, expected Unicode text", param=param)
        tokens = self.tokenizer.encode(text)
        if not tokens:
            raise BadRequest(f"{param}: got an empty prompt, expected at least one token", param=param)
        return Prompt(tokens=tokens, text=text)


def _arguments(fields: Fields) -> JsonObject | None:
    """Return what the template gets as variables: chat_template_kwargs, and `enable_thinking` that stands beside it."""
    given = fields.mapping("chat_template_kwargs")
    if fields.raw.get("enable_thinking") is None:
        return given
    return {"enable_thinking": fields.flag("enable_thinking"), **(given or {})}


def _flat_message(number: int, message: Mapping[str, object]) -> JsonObject:
    """Return the message with one text as its content, the form every chat template of these families reads.

    Parts of text are joined. Null, and none at all, is the empty text: an assistant that only called tools said nothing.
    """
    param = f"messages[{number}]"
    if not isinstance(message.get("role"), str):
        raise BadRequest(f"{param}.role: expected a string", param="messages")
    content = message.get("content")
    if isinstance(content, str):
        return message
    if content is not None and not isinstance(content, list):
        raise BadRequest(f"{param}.content: expected text or a list of parts", param="messages")
    texts = []
    for part in content or ():
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise BadRequest(f"{param}.content: got a part of type {kind!r}; this model reads text only", param="messages")
        texts.append(part["text"])
    return {**message, "content": "\n".join(texts)}
