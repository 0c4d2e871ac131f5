"""A request to a translated route on its way to the engine: its chat is put as any chat is, and the answer comes back in its own API."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from handler.errors import EngineDied, InvalidJob, Told, WorkerError, to_openai
from handler.exchange import Exchange
from handler.job import CHAT, Request
from handler.sse import frames_of
from handler.translation.answer import Translation
from handler.translation.messages import CountTokens, Messages
from handler.translation.messages_events import error_object
from handler.translation.responses import Responses

__all__ = ["TRANSLATIONS", "error_of", "translated"]

log = logging.getLogger(__name__)

TRANSLATIONS: dict[str, Callable[[dict[str, Any]], Translation]] = {
    "/v1/responses": Responses,
    "/v1/messages": Messages,
    "/v1/messages/count_tokens": CountTokens,
}
"""Route -> what makes a chat completion of the body of a request to it; it raises InvalidJob."""


def translated(request: Request, put: Callable[[Request], Exchange]) -> Exchange:
    """Return how `request` is put to an engine whose chats and other requests are put by `put`.

    Raises:
        InvalidJob: the request cannot be translated.
        Told: the engine must not see its chat.
    """
    if request.path not in TRANSLATIONS or request.body is None:
        return put(request)
    translation = TRANSLATIONS[request.path](request.body)
    for sentence in translation.no_effect:
        log.info("%s: %s", request.path, sentence)
    # A query, such as `beta=true`, is of the API that the engine does not speak.
    chat = replace(request, path=CHAT, query="", body=translation.chat)
    try:
        return _Translated(translation, put(chat))
    except InvalidJob as error:
        raise _told(translation, error) from error


def error_of(path: str, error: BaseException) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error as the API of a route writes it."""
    status, body = to_openai(error)
    if isinstance(error, Told) or not path.startswith("/v1/messages"):
        return status, body
    return status, error_object(status, body)


class _Translated(Exchange):
    """The chat in its own exchange, and its answer translated."""

    def __init__(self, translation: Translation, chat: Exchange) -> None:
        super().__init__(chat.sent)
        self._translation, self._chat = translation, chat
        self.collect, self.collected = chat.collect, chat.collected  # type: ignore[method-assign]  # what is collected is the chat

    def run(self, run: bytes) -> bytes:
        """Return the events that the next frames of the chat become."""
        return b"".join(event for frame in frames_of(self._chat.run(run)) for event in self._read(self._translation.frame, frame))

    def whole(self, answer: Any) -> Any:
        """Return the answer that the chat's becomes."""
        return self._read(self._translation.whole, self._chat.whole(answer))

    def failed(self, error: BaseException) -> BaseException:
        """Return an error of the chat as this API tells it."""
        return _told(self._translation, error) if isinstance(error, WorkerError) else error

    @staticmethod
    def _read(translate: Callable[[Any], Any], answer: Any) -> Any:
        try:
            return translate(answer)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise EngineDied(f"the engine's answer is no chat completion ({type(error).__name__}: {error})") from error


def _told(translation: Translation, error: BaseException) -> Told:
    status, body = to_openai(error)
    last = b"".join(translation.broken(status, body))
    return Told(str(error), *translation.error(status, body), last)
