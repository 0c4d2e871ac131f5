"""What becomes of each field of /v1/messages and its count_tokens, by the schema of Anthropic's Python client."""

from __future__ import annotations

from dataclasses import replace

from handler.translation.fields import SAMPLING, table

__all__ = [
    "ASSISTANT_BLOCKS",
    "COUNT",
    "EFFORT_DEFAULT",
    "MESSAGE",
    "OUTPUT",
    "OUTPUT_FORMAT",
    "REQUEST",
    "RESULT_BLOCKS",
    "SOURCES",
    "SYSTEM_BLOCKS",
    "TEMPLATE",
    "THINKING",
    "TOOLS",
    "TOOL_CHOICES",
    "USER_BLOCKS",
]

_CACHE = {"cache_control": "the engine caches prompts by itself, in its memory"}
_PROGRAMS = "no server tool runs here that could call tools"
_SETS = "sets of tools are Anthropic's own"

EFFORT_DEFAULT = "high"
"""The effort that Anthropic documents as the same as none given."""

REQUEST = table(
    f"max_tokens messages model output_config stop_sequences stream system thinking tool_choice tools {SAMPLING}",
    no_effect={
        "metadata": "no engine here looks for abuse",
        "service_tier speed": "an endpoint has one tier, and the speed of its GPU",
        "context_management": "nothing is cleared from a conversation before the model reads it",
        **_CACHE,
    },
    refused={
        "container mcp_servers": "no server tool runs here",
        "thread": "nothing is stored: send the whole conversation as messages",
        "compaction": "nothing is cut from a conversation; send what the model should read",
        "diagnostics": "nothing is stored that a request could be compared with",
        "fallbacks fallback_credit_token": "an endpoint has one model",
        "inference_geo": "a request runs where its endpoint runs",
        "billing_policy user_profile_id workspace_id": "they belong to an account of Anthropic's",
        "betas": "they are a header",
    },
    harmless={"diagnostics": ({}, {"previous_message_id": None})},
)
TEMPLATE = "chat_template chat_template_kwargs"
"""Fields of the engine's own that change the prompt."""
COUNT = replace(
    REQUEST,
    translated=frozenset(f"messages model output_config system thinking tools {TEMPLATE}".split()),
    no_effect={**REQUEST.no_effect, "tool_choice": "it does not change the prompt"},
)
"""Of count_tokens."""

MESSAGE = table("role content")

_TEXT = table("type text", no_effect={**_CACHE, "citations": "they describe the text to its reader"})
_IMAGE = table(
    "type source",
    no_effect=_CACHE,
    refused={"transformations": "the engine scales an image as its model needs"},
    harmless={"transformations": ({}, {"oversized_image": "downsize"})},
)
SYSTEM_BLOCKS = {"text": _TEXT}
RESULT_BLOCKS = {"text": _TEXT, "image": _IMAGE}
"""What a tool gives back."""
USER_BLOCKS = {
    "text": _TEXT,
    "image": _IMAGE,
    "tool_result": table("type tool_use_id content is_error", no_effect=_CACHE, refused={"toolset_name": _SETS}),
}
ASSISTANT_BLOCKS = {
    "text": _TEXT,
    "thinking": table("type thinking", no_effect={"signature": "thoughts are taken as they are written"}),
    "redacted_thinking": table("type", no_effect={"data": "only the model that wrote it can read it"}),
    "tool_use": table(
        "type id name input",
        no_effect=_CACHE,
        refused={"caller": _PROGRAMS, "toolset_name": _SETS},
        harmless={"caller": ({"type": "direct"},)},
    ),
}

SOURCES = {"base64": table("type media_type data"), "url": table("type url")}

TOOLS = {
    "custom": table(
        "type name description input_schema strict",
        no_effect={
            **_CACHE,
            "input_examples": "chat templates show name, description and parameters of a tool",
            "eager_input_streaming": "a tool's input is always streamed as the model writes it",
        },
        refused={"defer_loading": "no tool search runs here", "allowed_callers": _PROGRAMS},
        harmless={"defer_loading": (False,), "allowed_callers": ([], ["direct"])},
    )
}

TOOL_CHOICES = {
    "auto": table("type disable_parallel_tool_use"),
    "any": table("type disable_parallel_tool_use"),
    "tool": table("type name disable_parallel_tool_use"),
    "none": table("type"),
}

THINKING = {
    "enabled": table("type budget_tokens display"),
    "adaptive": table("type display"),
    "disabled": table("type"),
}
OUTPUT = table("effort format", refused={"task_budget": "nothing is stored that a budget could be kept in"})
OUTPUT_FORMAT = {"json_schema": table("type schema")}
