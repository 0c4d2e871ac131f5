"""Offer tools to a chat, and choose among them."""

from __future__ import annotations

from typing import Any

from handler.translation.fields import refuse, shown

__all__ = ["function_tool", "tool_fields"]


def function_tool(name: str, description: str, more: dict[str, Any]) -> dict[str, Any]:
    """Return a function as a chat offers it, with what else is known of it."""
    return {"type": "function", "function": {"name": name} | ({"description": description} if description else {}) | more}


def tool_fields(tools: list[dict[str, Any]], choice: str, function: str, parallel: object) -> dict[str, Any]:
    """Return the fields of a chat that offer functions.

    `choice` is auto, none or required; `function` names the one that must be called, if one must. `parallel` allows several calls, None
    leaves it to the engine.

    Raises:
        InvalidJob: two functions have one name, or the choice is none of them.
    """
    names = set[str]()
    for name in (tool["function"]["name"] for tool in tools):
        if name in names:
            refuse("tools", f"got two tools with the name {shown(name)}, expected one")
        names.add(name)
    if function and function not in names:
        refuse("tool_choice", f"got {shown(function)}, expected the name of one of the tools")
    if choice == "required" and not tools:
        refuse("tool_choice", "a call is required, and there is no tool")
    if not tools:
        return {}
    chosen = {"type": "function", "function": {"name": function}} if function else choice
    return (
        {"tools": tools}
        | ({} if chosen == "auto" else {"tool_choice": chosen})
        | ({} if parallel is None else {"parallel_tool_calls": parallel})
    )
