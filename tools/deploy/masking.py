"""What is printed: secrets masked, and nothing in it that a terminal would obey."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from handler.settings import TABLE
from images.arguments import mask_addresses

__all__ = ["Mask", "is_reference", "is_secret", "secrets_of"]

_SECRETS = frozenset(name for variable in TABLE if variable.kind == "secret" for name in (variable.name, *variable.aliases))
_LOOKS_SECRET = re.compile(r"(TOKEN|_KEY|SECRET|PASSWORD|CREDENTIALS?)$")
_REFERENCE = re.compile(r"\{\{ RUNPOD_SECRET_\w+ \}\}")
_SHAPES = re.compile(r"\b(hf_\w{8,}|rpa_\w{8,}|sk-[\w-]{8,})|(?<=Bearer )\S+")
"""What keys of Hugging Face, RunPod and OpenAI look like, and what follows the word Bearer."""
_SHORTEST = 4
"""Letters: a shorter value is no secret, and masking it would only garble the text."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def is_secret(name: str) -> bool:
    """Tell whether a variable's value must not be shown: by the worker's table, or by its name."""
    return name in _SECRETS or bool(_LOOKS_SECRET.search(name))


def is_reference(text: str) -> bool:
    """Tell whether a value is the name of one of RunPod's secrets, which RunPod replaces when it starts a worker."""
    return _REFERENCE.fullmatch(text) is not None


def secrets_of(env: Mapping[str, str]) -> list[str]:
    """Return the values of an endpoint's variables that must not be shown."""
    return [text for name, text in env.items() if is_secret(name)]


class Mask:
    """Replaces secrets in whatever is printed. More may be learnt later."""

    def __init__(self, values: Iterable[str]) -> None:
        self._values: set[str] = set()
        self.learn(values)

    def learn(self, values: Iterable[str]) -> None:
        """Mask these too."""
        self._values |= {value for value in values if len(value) >= _SHORTEST and not is_reference(value)}

    def __call__(self, text: str) -> str:
        """Return `text` without them, and with control characters written out: what a server says may hold any."""
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, "***").replace(json.dumps(value)[1:-1], "***")
        text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
        return mask_addresses(_SHAPES.sub("***", text))
