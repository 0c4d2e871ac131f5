"""The error of this package for the operator, and what an address and a secret may look like."""

from __future__ import annotations

from urllib.parse import urlsplit

__all__ = ["ModelUnavailable", "has_user", "is_address", "is_header_text", "masked"]


class ModelUnavailable(Exception):
    """The operator must provide the weights; the message says what is missing or wrong, and which variable to set."""


def is_header_text(text: str) -> bool:
    """Return whether a secret may be in a header; libraries quote one that may not in their errors."""
    return text.isascii() and text.isprintable() and " " not in text


def is_address(text: str) -> bool:
    """Return whether a text is the address of an HTTP server."""
    try:
        parts = urlsplit(text)
        return is_header_text(text) and parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as a port that is not a number
        return False


def has_user(address: str) -> bool:
    """Return whether an address holds a user name, with or without a password."""
    return "@" in urlsplit(address).netloc


def masked(url: str) -> str:
    """Return an address for a message: without its query, which may hold a signature, and without user name and password."""
    before, separator, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{before}{separator}{host.rpartition('@')[2]}{slash}{path}" if separator else before.rpartition("@")[2]
