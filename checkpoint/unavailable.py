"""The one error of this package, and what its settings may look like."""

from __future__ import annotations

__all__ = ["ModelUnavailable", "is_address", "is_header_text"]


class ModelUnavailable(Exception):
    """The operator must provide the weights; the message says what is missing or wrong, and which variable to set."""


def is_header_text(text: str) -> bool:
    """Say whether a secret may stand in a header; libraries quote one that may not in their errors."""
    return text.isascii() and text.isprintable() and " " not in text


def is_address(text: str) -> bool:
    """Say whether a text is the address of an HTTP server."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text)
        return is_header_text(text) and parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # which only reading the port may tell
        return False
