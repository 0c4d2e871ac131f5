"""Translate a request to Anthropic's /v1/messages into a chat completion, and count_tokens into the shortest one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import groupby
from typing import Any, ClassVar

from handler.translation import messages_fields as fields
from handler.translation.answer import Translation
from handler.translation.conversation import Content, Conversation, content_of, image_part, text_part
from handler.translation.fields import SAMPLING, Given, Table, given_by_type, refuse, shown
from handler.translation.messages_events import MessageWriter, error_object
from handler.translation.tools import function_tool, tool_fields

__all__ = ["CountTokens", "Messages"]


class Messages(Translation):
    """One request to /v1/messages.

    Raises:
        InvalidJob: a field is refused, unknown, missing or of another kind than the schema's.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {
        "max_completion_tokens": "max_tokens",
        "stop": "stop_sequences",
        "reasoning_effort": "output_config.effort",
        "reasoning_max_tokens": "thinking.budget_tokens",
        "response_format": "output_config.format",
    }

    def __init__(self, body: dict[str, Any]) -> None:
        request = _Request(body, fields.REQUEST)
        super().__init__(request.chat(), request.unheard, MessageWriter(hidden=request.hidden))

    def error(self, status: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return status and body of an error in Anthropic's shape, from the status and the OpenAI error object of the chat."""
        status, body = super().error(status, body)
        return status, error_object(status, body)


class CountTokens(Messages):
    """One request to /v1/messages/count_tokens: a chat of one token, whose usage tells how long the prompt is."""

    def __init__(self, body: dict[str, Any]) -> None:
        request = _Request(body, fields.COUNT)
        Translation.__init__(self, request.prompt() | {"max_completion_tokens": 1}, request.unheard, MessageWriter())

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the count that a whole chat answer tells."""
        return {"input_tokens": answer["usage"]["prompt_tokens"]}


class _Request:
    def __init__(self, body: dict[str, Any], known: Table) -> None:
        self.unheard: dict[str, str] = {}
        self._given = Given(body, known, "", self.unheard)
        self._output = Given(self._given.object("output_config"), fields.OUTPUT, "output_config", self.unheard)
        self._thinking, self._thoughts = self._by_type("thinking", fields.THINKING, default="adaptive")
        self.hidden = self._thoughts.get("display") == "omitted"

    def prompt(self) -> dict[str, Any]:
        """Return of the chat completion what its prompt is made from."""
        chat = {"model": self._given.text("model"), "messages": self._messages()} | self._given.named(*fields.TEMPLATE.split())
        if self._thinking != "adaptive":
            arguments = self._given.object("chat_template_kwargs")
            chat["chat_template_kwargs"] = arguments | {"enable_thinking": self._thinking == "enabled"}
        if (effort := self._output.text("effort", fields.EFFORT_DEFAULT)) != fields.EFFORT_DEFAULT:
            chat["reasoning_effort"] = effort
        return chat | tool_fields(self._tools(), "auto", "", None)

    def chat(self) -> dict[str, Any]:
        """Return the body of the chat completion."""
        given = self._given
        chat = given.named(*SAMPLING.split()) | self.prompt() | {"max_completion_tokens": given.whole("max_tokens")}
        if stops := [stop for _, stop in given.each("stop_sequences")]:
            chat["stop"] = stops
        if self._thinking == "enabled":
            chat["reasoning_max_tokens"] = self._thoughts.whole("budget_tokens")
        chat |= self._format() | self._choice()
        if given.get("stream"):
            chat |= {"stream": True, "stream_options": {"include_usage": True}}
        return chat

    def _by_type(self, name: str, kinds: Mapping[str, Table], *, default: str = "") -> tuple[str, Given]:
        return given_by_type(self._given.object(name), kinds, name, self.unheard, default=default)

    def _format(self) -> dict[str, Any]:
        if self._output.get("format") is None:
            return {}
        kind, asked = given_by_type(self._output.get("format"), fields.OUTPUT_FORMAT, "output_config.format", self.unheard)
        schema = {"name": "output", "schema": asked.object("schema", required=True), "strict": True}
        return {"response_format": {"type": kind, "json_schema": schema}}

    def _tool(self, path: str, tool: object) -> dict[str, Any]:
        given = given_by_type(tool, fields.TOOLS, path, self.unheard, default="custom")[1]
        parameters = {"parameters": given.object("input_schema", required=True)}
        return function_tool(given.text("name"), given.text("description", ""), parameters | given.named("strict"))

    def _tools(self) -> list[dict[str, Any]]:
        return [self._tool(path, tool) for path, tool in self._given.each("tools")]

    def _choice(self) -> dict[str, Any]:
        """Return the fields that offer tools; their choice is auto where nothing is said of it."""
        kind, choice = self._by_type("tool_choice", fields.TOOL_CHOICES, default="auto")
        function = choice.text("name") if kind == "tool" else ""
        parallel = False if choice.get("disable_parallel_tool_use") else None
        return tool_fields(self._tools(), {"any": "required", "none": "none"}.get(kind, "auto"), function, parallel)

    def _messages(self) -> list[dict[str, Any]]:
        talk = Conversation()
        if system := self._blocks(self._given, "system", fields.SYSTEM_BLOCKS):
            talk.system(self._text(system))
        for path, item in self._given.each("messages"):
            message = Given(item, fields.MESSAGE, path, self.unheard)
            role = message.text("role")
            if role == "user":
                self._user(self._blocks(message, "content", fields.USER_BLOCKS), talk)
            elif role == "assistant":
                self._assistant(self._blocks(message, "content", fields.ASSISTANT_BLOCKS), talk)
            elif role == "system":
                talk.system(self._text(self._blocks(message, "content", fields.SYSTEM_BLOCKS)))
            else:
                refuse(message.at("role"), f"got {shown(role)}, expected user, assistant or system")
        messages = talk.messages()
        if messages and messages[-1]["role"] == "assistant":
            refuse("messages", "the last message is the assistant's, which this worker cannot continue; end with the user's")
        return messages

    def _blocks(self, given: Given, name: str, kinds: Mapping[str, Table]) -> list[tuple[str, Given]]:
        """Return the blocks of a content, which may be the text of one."""
        value = given.get(name, "")
        if not isinstance(value, str):
            return [given_by_type(block, kinds, path, self.unheard) for path, block in given.each(name)]
        text = {"type": "text", "text": value}
        return [given_by_type(text, kinds, given.at(name), self.unheard)] if value else []

    def _user(self, blocks: list[tuple[str, Given]], talk: Conversation) -> None:
        for results, group in groupby(blocks, key=lambda block: block[0] == "tool_result"):
            if not results:
                talk.user(content_of([self._part(*block) for block in group]))
                continue
            for _, block in group:
                talk.result(block.text("tool_use_id"), self._result(block))

    def _assistant(self, blocks: list[tuple[str, Given]], talk: Conversation) -> None:
        for kind, group in groupby(blocks, key=lambda block: block[0]):
            if kind == "text":
                talk.said(self._text(list(group)))
                continue
            for _, block in group:
                if kind == "tool_use":
                    arguments = json.dumps(block.object("input", required=True), ensure_ascii=False)
                    talk.called(block.text("id"), block.text("name"), arguments)
                elif thought := block.text("thinking", ""):
                    talk.thought(thought)

    def _result(self, block: Given) -> Content:
        parts = [self._part(*inner) for inner in self._blocks(block, "content", fields.RESULT_BLOCKS)]
        if not block.get("is_error"):
            return content_of(parts)
        # A chat has no field for it, so the text says it.
        content = content_of(parts)
        return f"Error: {content}" if isinstance(content, str) else [text_part("Error:"), *content]

    def _part(self, kind: str, block: Given) -> dict[str, Any]:
        if kind == "text":
            return text_part(block.text("text"))
        path, source = block.at("source"), block.object("source", required=True)
        form, given = given_by_type(source, fields.SOURCES, path, self.unheard)
        if form == "url":
            return image_part(given.text("url"))
        return image_part(f"data:{given.text('media_type')};base64,{given.text('data')}")

    @staticmethod
    def _text(blocks: list[tuple[str, Given]]) -> str:
        return str(content_of([text_part(block.text("text")) for _, block in blocks]))
