"""Which addresses of images and videos a request may name: FastDeploy fetches them itself, from inside the deployment's network.

FastDeploy opens `file://` paths and any `http` or `https` address, and its server waits while a download hangs. So only `data:` addresses
and public hosts pass, unless the operator allows others (ALLOW_PRIVATE_MEDIA). Names are not resolved here: one that resolves or redirects
to a private address must be stopped by the network's own rules.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from handler.fastdeploy.fields import refuse, shown

__all__ = ["check_media"]

_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")
_MEDIA = frozenset(f"{kind}{form}" for kind in ("image", "video", "audio") for form in ("", "_url"))
_NAT64 = ipaddress.ip_network("64:ff9b::/32")
_INSIDE = ("localhost", "local", "internal", "intranet", "lan", "home.arpa")
"""Names without a public address, each with every name below it."""
_EXPECTED = "expected an https, http or data address on a public host (ALLOW_PRIVATE_MEDIA=true lets any pass)"


def check_media(field: str, part: dict[str, Any]) -> None:
    """Refuse a part of a message (an image, a video) that names a file or an address which is not public; `field` is its name.

    Raises:
        InvalidJob: the first such address.
    """
    for place, address in _addresses(field, part):
        if not _is_public(address):
            refuse(place, f"got {shown(address)}, {_EXPECTED}")


def _addresses(field: str, part: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each text that may be taken for an address, with its place: `image_url`, `image_url.url`, and the same of other media."""
    for name, value in part.items():
        if name in _MEDIA:
            found = {f"{field}.{name}": value} if not isinstance(value, dict) else {f"{field}.{name}.url": value.get("url")}
            yield from ((place, text) for place, text in found.items() if isinstance(text, str))


def _is_public(address: str) -> bool:
    if re.match(r"data:", address, re.IGNORECASE):
        return True
    # Parsers of addresses disagree on blanks, backslashes and characters that fold to a dot.
    if not address.isascii() or not address.isprintable() or re.search(r"[\s\\]", address):
        return False
    try:
        split = urlsplit(address)
        host = (split.hostname or "").lower()
        _ = split.port
    except ValueError:
        return False
    if split.scheme not in {"http", "https"} or "@" in split.netloc:
        return False
    return _is_public_host(host)


def _is_public_host(host: str) -> bool:
    try:
        # HTTP clients read 127.1, 0x7f.0.0.1 and 2130706433 as the same host, as inet_aton does.
        number = ipaddress.ip_address(host) if ":" in host else ipaddress.ip_address(socket.inet_aton(host.rstrip(".")))
    except (OSError, ValueError):
        name = host.rstrip(".")
        inside = any(name == ending or name.endswith(f".{ending}") for ending in _INSIDE)
        return bool(_HOST.fullmatch(host)) and "." in name and not inside and not name.rsplit(".", 1)[1].isdigit()
    embedded = getattr(number, "ipv4_mapped", None) or getattr(number, "sixtofour", None)
    return (embedded or number).is_global and not number.is_multicast and number not in _NAT64
