"""Which route is translated by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from handler.translation.answer import Translation
from handler.translation.messages import CountTokens, Messages
from handler.translation.responses import Responses

__all__ = ["TRANSLATIONS"]

TRANSLATIONS: Mapping[str, Callable[[dict[str, Any]], Translation]] = {
    "/v1/responses": Responses,
    "/v1/messages": Messages,
    "/v1/messages/count_tokens": CountTokens,
}
"""Route -> what makes a chat completion of the body of a request to it; it raises InvalidJob."""
