"""Translate a request to OpenAI's /v1/responses into a chat completion, its conversation sent along whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from handler.translation import responses_fields as fields
from handler.translation.answer import Translation
from handler.translation.conversation import Content, Conversation, content_of, image_part, text_part
from handler.translation.fields import SAMPLING, Given, Table, given_by_type, refuse, shown
from handler.translation.responses_events import ResponseWriter
from handler.translation.tools import function_tool, tool_fields

__all__ = ["Responses"]


class Responses(Translation):
    """One request to /v1/responses.

    Raises:
        InvalidJob: a field is refused, unknown, missing or of another kind than the schema's.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {
        "messages": "input",
        "max_completion_tokens": "max_output_tokens",
        "reasoning_effort": "reasoning.effort",
        "response_format": "text.format",
    }

    def __init__(self, body: dict[str, Any]) -> None:
        request = _Request(body)
        super().__init__(request.chat(), request.unheard, ResponseWriter(request.repeated(), request.names))


class _Request:
    def __init__(self, body: dict[str, Any]) -> None:
        self.unheard: dict[str, str] = {}
        self.names: dict[str, tuple[str, str]] = {}
        """Function of the chat -> namespace and name, of those that have a namespace."""
        self._body, self._given = body, Given(body, fields.REQUEST, "", self.unheard)

    def chat(self) -> dict[str, Any]:
        """Return the body of the chat completion."""
        given = self._given
        Given(given.object("prompt_cache_options"), fields.PROMPT_CACHE, "prompt_cache_options", self.unheard)
        reasoning = Given(given.object("reasoning"), fields.REASONING, "reasoning", self.unheard)
        chat = given.named("model", "top_logprobs", "stop", *SAMPLING.split())
        chat["messages"] = self._messages()
        renames = {"max_completion_tokens": given.get("max_output_tokens"), "reasoning_effort": reasoning.get("effort")}
        chat |= {name: value for name, value in renames.items() if value is not None}
        chat |= self._format() | self._tools()
        if self._logprobs():
            chat["logprobs"] = True
        if given.get("stream"):
            chat |= {"stream": True, "stream_options": {"include_usage": True}}
        return chat

    def repeated(self) -> dict[str, Any]:
        """Return the fields of the request that its answer repeats, with what the schema has where they were not given."""
        given, reasoning, text = self._given, self._given.object("reasoning"), self._given.object("text")
        names = "instructions max_output_tokens temperature top_p prompt_cache_key safety_identifier user".split()
        return {name: self._body.get(name) for name in names} | {
            "metadata": given.object("metadata"),
            "parallel_tool_calls": given.get("parallel_tool_calls", True),
            "reasoning": {"effort": reasoning.get("effort"), "summary": None},
            "text": {"format": text.get("format") or {"type": "text"}},
            "tool_choice": given.get("tool_choice", "auto"),
            "tools": given.get("tools", []),
            "top_logprobs": given.get("top_logprobs", 0),
        }

    def _logprobs(self) -> bool:
        asked = self._given.get("top_logprobs") is not None
        for path, name in self._given.each("include"):
            if not isinstance(name, str) or name not in fields.INCLUDED:
                refuse(path, f"got {shown(name)}, expected one of {', '.join(fields.INCLUDED)}", code="unsupported_value")
            reason = fields.INCLUDED[name]
            asked = asked or reason is None
            if reason is not None:
                self.unheard[name] = reason
        return asked

    def _format(self) -> dict[str, Any]:
        text = Given(self._given.object("text"), fields.TEXT, "text", self.unheard)
        kind, asked = given_by_type(text.get("format", {}), fields.FORMATS, text.at("format"), self.unheard, default="text")
        if kind == "text":
            return {}
        if kind == "json_object":
            return {"response_format": {"type": kind}}
        schema = {"name": asked.text("name"), "schema": asked.object("schema", required=True)} | asked.named("strict", "description")
        return {"response_format": {"type": kind, "json_schema": schema}}

    def _messages(self) -> list[dict[str, Any]]:
        talk, given = Conversation(), self._given
        if instructions := given.text("instructions", ""):
            talk.system(instructions)
        if not isinstance(given.get("input"), list):
            talk.user(given.text("input"))
            return talk.messages()
        for path, item in given.each("input"):
            self._item(path, item, talk)
        return talk.messages()

    def _item(self, path: str, item: object, talk: Conversation) -> None:
        kind, given = given_by_type(item, fields.ITEMS, path, self.unheard, default="message")
        if kind == "message":
            self._message(given, talk)
        elif kind == "reasoning":
            thoughts = [text for name in ("content", "summary") if (text := self._thought(given, name))]
            if thoughts:
                talk.thought(thoughts[0])  # a summary says less of the same
        elif kind == "function_call":
            name = self._name(given.text("namespace", ""), given.text("name"))
            talk.called(given.text("call_id"), name, given.text("arguments"))
        else:
            talk.result(given.text("call_id"), self._content(given, "output", fields.PARTS))

    def _message(self, given: Given, talk: Conversation) -> None:
        role = given.text("role")
        if role == "user":
            talk.user(self._content(given, "content", fields.PARTS))
        elif role == "assistant":
            talk.said(str(self._content(given, "content", fields.OUTPUT_PARTS)))
        elif role in {"system", "developer"}:
            talk.system(str(self._content(given, "content", fields.TEXT_PARTS)))
        else:
            refuse(given.at("role"), f"got {shown(role)}, expected user, assistant, system or developer")

    def _content(self, given: Given, name: str, kinds: Mapping[str, Table]) -> Content:
        if not isinstance(given.get(name), list):
            return given.text(name)
        return content_of([self._part(*given_by_type(part, kinds, path, self.unheard)) for path, part in given.each(name)])

    @staticmethod
    def _part(kind: str, given: Given) -> dict[str, Any]:
        if kind == "input_image":
            return image_part(given.text("image_url"), given.text("detail", "") or None)
        return text_part(given.text("refusal" if kind == "refusal" else "text"))

    def _thought(self, given: Given, name: str) -> str:
        parts = [given_by_type(part, fields.THOUGHTS[name], path, self.unheard)[1] for path, part in given.each(name)]
        return "\n".join(part.text("text") for part in parts)

    def _name(self, namespace: str, name: str) -> str:
        """Return the name of a function in the chat, which has no namespaces."""
        if not namespace:
            return name
        joined = f"{namespace}__{name}"
        self.names[joined] = (namespace, name)
        return joined

    def _tools(self) -> dict[str, Any]:
        tools = [tool for path, tool in self._given.each("tools") for tool in self._functions(path, tool)]
        choice, function = self._given.get("tool_choice", "auto"), ""
        if isinstance(choice, dict):
            kind, given = given_by_type(choice, fields.TOOL_CHOICES, "tool_choice", self.unheard)
            choice = "auto" if kind == "function" else given.text("mode")
            if kind == "function":
                function = given.text("name")
            else:
                asked = [given_by_type(tool, fields.ALLOWED_TOOLS, path, self.unheard)[1] for path, tool in given.each("tools")]
                allowed = {tool.text("name") for tool in asked}
                tools = [tool for tool in tools if tool["function"]["name"] in allowed]
        if choice not in ("none", "auto", "required"):
            refuse("tool_choice", f"got {shown(choice)}, expected none, auto, required or an object")
        return tool_fields(tools, choice, function, self._given.get("parallel_tool_calls"))

    def _functions(self, path: str, tool: object) -> list[dict[str, Any]]:
        kind, given = given_by_type(tool, fields.TOOLS, path, self.unheard)
        if kind == "function":
            return [self._function(given)]
        name, about = given.text("name"), given.text("description", "")
        functions = [given_by_type(inner, fields.FUNCTIONS, where, self.unheard)[1] for where, inner in given.each("tools")]
        return [self._function(function, name, about) for function in functions]

    def _function(self, given: Given, namespace: str = "", about: str = "") -> dict[str, Any]:
        """Return a function of the chat; what its namespace says of itself stands before its own description."""
        described = "\n\n".join(filter(None, (about, given.text("description", ""))))
        return function_tool(self._name(namespace, given.text("name")), described, given.named("parameters", "strict"))
