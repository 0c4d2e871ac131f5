"""How the checks of a request name a field that is wrong, and the numbers that a field may hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NoReturn

from handler.errors import InvalidJob

__all__ = ["Range", "half_character", "refuse", "shown"]


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both within, without `low` itself if `above`."""

    low: float
    high: float | None = None
    whole: bool = True
    above: bool = False

    def __str__(self) -> str:
        """Name it to a person."""
        number = "a whole number" if self.whole else "a number"
        if self.above:
            return f"{number} above {self.low:g}"
        high = int(self.high) if self.whole and self.high is not None else self.high
        return f"{number} of at least {self.low:g}" if high is None else f"{number} from {self.low:g} to {high}"

    def __contains__(self, value: object) -> bool:
        """Tell whether it is a number, and within."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (self.whole and value != value // 1):
            return False
        return self.low <= value and (self.high is None or value <= self.high) and not (self.above and value == self.low)


def refuse(field: str, message: str, *, code: str = "invalid_value") -> NoReturn:
    """Raise InvalidJob: a 400 that names the field."""
    raise InvalidJob(f"{field}: {message}", param=field, code=code)


def shown(value: object) -> str:
    """Return a value in JSON, cut where it is long, and with `?` for what no answer can carry."""
    text = json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def half_character(value: object) -> str | None:
    """Return the name of the first field that holds half of a surrogate pair, such as `messages[0].content`; None if none does.

    JSON can spell one and UTF-8 cannot carry it: JavaScript's `slice` leaves it of an emoji.
    """
    try:
        # One pass in C tells that there is none, which is so for every request but the odd one.
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        left: list[tuple[str, object]] = [("", value)]
        while left:
            path, item = left.pop()
            if isinstance(item, str) and not _is_whole(item):
                return path or "body"
            if isinstance(item, dict):
                left += [(f"{path}.{name}".lstrip("."), inner) for name, inner in reversed(item.items())]
                left += [(path, name) for name in item]
            elif isinstance(item, list):
                left += [(f"{path}[{index}]", inner) for index, inner in reversed([*enumerate(item)])]
    return None


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
