"""What becomes of each field of /v1/responses, by the schema of OpenAI's Python client, and of those that Codex CLI adds."""

from __future__ import annotations

from handler.translation.fields import SAMPLING, table

__all__ = [
    "ALLOWED_TOOLS",
    "FORMATS",
    "FUNCTIONS",
    "INCLUDED",
    "ITEMS",
    "OUTPUT_PARTS",
    "PARTS",
    "PROMPT_CACHE",
    "REASONING",
    "REQUEST",
    "TEXT",
    "TEXT_PARTS",
    "THOUGHTS",
    "TOOLS",
    "TOOL_CHOICES",
]
_CACHE = "the engine caches prompts by itself, in its memory"
_STORED = "nothing is stored: send the whole conversation as input, with store false"
_IDS = "nothing is stored that it could name"
_PROGRAMS = "no built-in tool runs here that could call functions"
_ENDS = "a call ends the answer"
_THOUGHTS = "the model's thoughts are given in clear text, as reasoning_text, and are taken back as that"

REQUEST = table(
    f"""include input instructions max_output_tokens metadata model parallel_tool_calls prompt_cache_options reasoning stop stream text
    tool_choice tools top_logprobs {SAMPLING}""",
    no_effect={
        "prompt_cache_key prompt_cache_retention": _CACHE,
        "safety_identifier user": "no engine here looks for abuse; the answer repeats it",
        "service_tier": "an endpoint has one tier; the answer names it",
        "max_tool_calls": "it counts calls of built-in tools, which are refused",
        "stream_options": "its only option pads events, and no event is padded",
        "client_metadata": "Codex CLI describes itself in it to OpenAI",
    },
    refused={
        "previous_response_id conversation store": _STORED,
        "background background_options": "an answer is given on the connection that asks for it",
        "prompt": "no templates are stored; send instructions and input",
        "context_management": "nothing is cut from a conversation; send what the model should read",
        "truncation": "nothing is cut from an input; one that is too long is an error",
        "moderation": "no moderation model runs here",
        "access_programs": "they belong to an account of OpenAI's",
        "image": "images are not compressed",
    },
    harmless={
        "store": (False,),
        "background": (False,),
        "truncation": ("disabled",),
        "context_management": ([],),
        "image": ({}, {"context_compression": "auto"}, {"context_compression": "disabled"}),
    },
)

PROMPT_CACHE = table(
    "",
    no_effect={"mode ttl": _CACHE},
    refused={"prewarm": "every request is answered", "comparison_response_id": _STORED},
    harmless={"prewarm": (False,)},
)

INCLUDED = {
    "message.output_text.logprobs": None,
    "reasoning.encrypted_content": _THOUGHTS,
    "message.input_image.image_url": "no input is given back",
    "computer_call_output.output.image_url": "no input is given back",
    "code_interpreter_call.outputs": "built-in tools are refused",
    "file_search_call.results": "built-in tools are refused",
    "web_search_call.action.sources": "built-in tools are refused",
    "web_search_call.results": "built-in tools are refused",
}
"""What `include` may ask for -> why it has no effect, or None where it has one."""

REASONING = table(
    "effort",
    no_effect={
        "summary generate_summary": "the thoughts themselves are given, as reasoning_text; no summary is made",
        "context": "the chat template decides which thoughts of the conversation the model reads",
    },
    refused={"mode": "a model thinks in one way"},
    harmless={"mode": ("standard",)},
)

TEXT = table("format", no_effect={"verbosity": "no chat template knows it"})

FORMATS = {
    "text": table("type"),
    "json_object": table("type"),
    "json_schema": table("type name schema strict description"),
}

FUNCTIONS = {
    "function": table(
        "type name description parameters strict",
        no_effect={"output_schema": "chat templates show what goes into a function, not what comes out"},
        refused={"async": _ENDS, "defer_loading": "no tool search runs here", "allowed_callers": _PROGRAMS},
        harmless={"async": (False,), "defer_loading": (False,), "allowed_callers": ([], ["direct"])},
    )
}
TOOLS = FUNCTIONS | {"namespace": table("type name description tools")}
"""A namespace holds functions."""

ALLOWED_TOOLS = {"function": table("type name")}
TOOL_CHOICES = ALLOWED_TOOLS | {"allowed_tools": table("type mode tools")}

_DIRECT: dict[str, tuple[object, ...]] = {"caller": ({"type": "direct"},)}
ITEMS = {
    "message": table("type role content", no_effect={"id status": _IDS, "phase": "no chat template knows it"}),
    "reasoning": table("type summary content", no_effect={"id status": _IDS, "encrypted_content": "only OpenAI can read it"}),
    "function_call": table(
        "type call_id name namespace arguments",
        no_effect={"id status": _IDS},
        refused={"caller": _PROGRAMS, "async": _ENDS},
        harmless=_DIRECT | {"async": (False,)},
    ),
    "function_call_output": table(
        "type call_id output",
        no_effect={"id status": _IDS, "name namespace": "call_id names the call"},
        refused={"caller": _PROGRAMS},
        harmless=_DIRECT,
    ),
}

_TEXT_PART = table("type text", no_effect={"prompt_cache_breakpoint": _CACHE})
_IMAGE_PART = table(
    "type image_url detail", no_effect={"prompt_cache_breakpoint": _CACHE}, refused={"file_id": "no files are stored; send image_url"}
)
TEXT_PARTS = {"input_text": _TEXT_PART}
"""Parts of an instruction."""
PARTS = TEXT_PARTS | {"input_image": _IMAGE_PART}
"""Parts of what is said to the model, and of what a function gives back."""
OUTPUT_PARTS = {
    "output_text": table("type text", no_effect={"annotations logprobs": "they describe the text to its reader"}),
    "refusal": table("type refusal"),
    "input_text": _TEXT_PART,
}
"""Parts of what the model has said."""
THOUGHTS = {"content": {"reasoning_text": table("type text")}, "summary": {"summary_text": table("type text")}}
"""Parts of what the model has thought, by the field that holds them."""
