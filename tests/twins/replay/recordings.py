"""Recorded requests and answers of one FastDeploy release, and which of them answers a given request.

A folder holds for each case a `.txt` (request and answer, to read) and a `.raw` (the exact bytes of the answer, empty where the server
never answered); `index.json` gives their order. The first part of a case's name is the server set-up it was recorded on: `base` (no key,
any model name), `b` (key `sk-test`, model `my-model`, reasoning parser qwen3, logprobs), `c` (logprobs, no parser), `x1` (ernie-x1
parsers).
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from .wire import Request, parse_head

SETUPS = ("base", "b", "c", "x1")
PROBES = ("/health", "/ping", "/v1/models")  # answered whatever the set-up, from whichever recording there is
_ABSENT = "(absent)"


class BadTranscripts(Exception):
    """The folder of transcripts cannot be read; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One recorded exchange."""

    case: str
    """Name of the files, without suffix."""
    request: Request
    raw: bytes
    """The answer as it stood on the wire; empty if the server never answered."""
    by: Literal["recording", "twin", "fallback"] = "recording"
    """Why it answers a request: it is that request's, another form's of the same question (see `twin`), or the fallback."""

    @property
    def setup(self) -> str:
        """The server set-up it was recorded on."""
        return self.case.partition("_")[0]

    @property
    def refused_key(self) -> bool:
        """Whether the answer is about a wrong or missing API key."""
        return self.raw.startswith(b"HTTP/1.1 401 ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """No recording answers the request; the closest one, and how it differs."""

    closest: str | None
    differences: tuple[str, ...]

    def __str__(self) -> str:
        """One sentence for a person."""
        if self.closest is None:
            return "no recording of this release and set-up has this method and path"
        return f"closest recording {self.closest}: {'; '.join(self.differences)}"


class Library:
    """All recordings of one release on one set-up, searchable by request."""

    def __init__(
        self, recordings: Collection[Recording], *, setup: str, ignored: Collection[str] = (), fallbacks: Collection[str] = ()
    ) -> None:
        """Keep `recordings`; compare JSON bodies without their top-level fields named in `ignored`.

        `fallbacks` are cases that answer every unrecorded request of their method, path and `stream`.

        Raises:
            BadTranscripts: a fallback is no case of this release.
        """
        self._all = {recording.case: recording for recording in recordings}
        self._ignored = frozenset(ignored)
        unknown = [name for name in fallbacks if name not in self._all]
        if unknown:
            raise BadTranscripts(f"--fallback {unknown[0]}: no such case in this release")
        self._fallbacks = [self._all[name] for name in fallbacks]
        self._own = [recording for recording in recordings if recording.setup == setup]
        self._probes = [recording for recording in recordings if recording.request.path in PROBES and recording.setup != setup]

    def case(self, name: str) -> Recording | None:
        """The recording of that name, from any set-up."""
        return self._all.get(name)

    def find(self, request: Request, *, checks_keys: bool = False) -> Recording | Miss:
        """The recording whose method, path and JSON body (key order free) equal the request's.

        Of several, the one that agrees in most ignored fields, then the one made with the same `Authorization`, then the one that was
        recorded first. A request without `Authorization` meets the answers given to the right key, unless the server `checks_keys`.
        """
        rank: list[tuple[int, bool, int]] = []
        found: list[Recording] = []
        for position, recording in enumerate([*self._own, *self._probes]):
            if (recording.request.method, recording.request.path) != (request.method, request.path):
                continue
            if comparable(recording.request.body, self._ignored) != comparable(request.body, self._ignored):
                continue
            rank.append((-self._agreement(recording, request), not _same_key(recording, request, checks_keys=checks_keys), position))
            found.append(recording)
        if found:
            return found[rank.index(min(rank))]
        fallback = next((one for one in self._fallbacks if _same_form(one.request, request)), None)
        return replace(fallback, by="fallback") if fallback else self._closest(request)

    def _agreement(self, recording: Recording, request: Request) -> int:
        ours, theirs = json_object(recording.request.body), json_object(request.body)
        return sum(canonical(ours.get(name)) == canonical(theirs.get(name)) for name in self._ignored)

    def _closest(self, request: Request) -> Miss:
        same_route = [one for one in self._own if (one.request.method, one.request.path) == (request.method, request.path)]
        if not same_route:
            return Miss(closest=None, differences=())
        listed = [(tuple(self._differences(one.request.body, request.body)), one.case) for one in same_route]
        differences, case = min(listed, key=lambda entry: len(entry[0]))
        return Miss(closest=case, differences=differences)

    def _differences(self, recorded: bytes, got: bytes) -> Iterator[str]:
        ours, theirs = json_object(recorded), json_object(got)
        if not ours or not theirs:
            yield f"body recorded {_short(recorded.decode(errors='replace'))}, got {_short(got.decode(errors='replace'))}"
            return
        for name in sorted({*ours, *theirs} - self._ignored):
            before = canonical(ours[name]) if name in ours else _ABSENT
            after = canonical(theirs[name]) if name in theirs else _ABSENT
            if before != after:
                yield f"{name} recorded {_short(before)}, got {_short(after)}"


def load(folder: Path) -> list[Recording]:
    """Read every case of `folder`, in the order of its `index.json` (which may name cases that were not kept).

    Raises:
        BadTranscripts: there is no such folder, no case in it, or a file is not of the expected form.
    """
    if not folder.is_dir():
        there = sorted(path.name for path in folder.parent.glob("*") if path.is_dir()) if folder.parent.is_dir() else []
        raise BadTranscripts(f"{folder}: no such folder of transcripts; there are: {', '.join(there) or 'none'}")
    index = folder / "index.json"
    order = {entry["name"]: position for position, entry in enumerate(json.loads(index.read_bytes()))} if index.exists() else {}
    cases = sorted(folder.glob("*.txt"), key=lambda path: (order.get(path.stem, len(order)), path.stem))
    if not cases:
        raise BadTranscripts(f"{folder}: no *.txt in it")
    return [read_case(path) for path in cases]


def read_case(path: Path) -> Recording:
    """Read one case from its `.txt` and the `.raw` beside it.

    Raises:
        BadTranscripts: the request part is missing or its length is not the one it states.
    """
    _, start, rest = path.read_bytes().partition(b"##### REQUEST\n")
    head, blank, body = rest.partition(b"\r\n\r\n")
    if not start or not blank:
        raise BadTranscripts(f"{path}: expected '##### REQUEST' and a request head after it")
    request = parse_head(head)
    length = int(request.headers.get("content-length", "0"))
    if body[length:].lstrip(b"\n")[:5] != b"#####":
        raise BadTranscripts(
            f"{path}: expected '##### RESPONSE HEADERS' after {length} bytes of request body, got {body[length : length + 40]!r}"
        )
    return Recording(case=path.stem, request=request.with_body(body[:length]), raw=path.with_suffix(".raw").read_bytes())


def canonical(value: object) -> str:
    """One text for equal JSON values: key order does not count, and 1, 1.0 and true differ."""
    return json.dumps(value, sort_keys=True)


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`, or an empty one if there is none."""
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def comparable(body: bytes, ignored: Collection[str]) -> str | bytes:
    """What two bodies are compared by: canonical JSON without the ignored fields, or the bytes if it is no JSON object."""
    value = json_object(body)
    return canonical({name: value[name] for name in value if name not in ignored}) if value else body


def _same_form(recorded: Request, request: Request) -> bool:
    streams = [json_object(one.body).get("stream") is True for one in (recorded, request)]
    return (recorded.method, recorded.path, streams[0]) == (request.method, request.path, streams[1])


def _same_key(recording: Recording, request: Request, *, checks_keys: bool) -> bool:
    sent = request.headers.get("authorization")
    if sent is None and not checks_keys:
        return not recording.refused_key
    return recording.request.headers.get("authorization") == sent


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
