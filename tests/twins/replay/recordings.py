"""Recorded requests and answers of each FastDeploy release, and which of them answers a given request.

`tests/transcripts/RELEASE.jsonl` has one case a line: its name, the request, and the answer as it stood on the wire (empty where the server
never answered). Text stands for its UTF-8 bytes; a byte that is no UTF-8 is written `\\udcXX`, so that every byte comes back. The first
part of a case's name is the server set-up it was recorded on: `base` (no key, any model name), `b` (key `sk-test`, model `my-model`,
reasoning parser qwen3, logprobs), `c` (logprobs, no parser), `x1` (ernie-x1 parsers).
"""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import Any, Final, Literal

from multidict import CIMultiDict

from tests import TRANSCRIPTS

from .wire import Request, split

RELEASES: Final = tuple(sorted(path.stem for path in TRANSCRIPTS.glob("*.jsonl")))
SETUPS: Final = ("base", "b", "c", "x1")
PROBES: Final = ("/health", "/ping", "/v1/models")  # answered whatever the set-up, from whichever recording there is
_ABSENT = "(absent)"


class BadTranscripts(Exception):
    """No such recordings, or a line that is none; the message names release, line or case, and what there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One recorded exchange."""

    case: str
    note: str = ""
    """What was to be seen, in a word, where the name does not say it."""
    duration_s: float
    """Until the answer was whole, or the recording gave up."""
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
    def status(self) -> int | None:
        """The answer's HTTP status; None if the server never answered."""
        return int(self.raw[9:12]) if self.raw else None

    @property
    def body(self) -> bytes:
        """The answer's body, out of its chunks."""
        return b"".join(split(self.raw).pieces)

    @property
    def is_stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.status == 200 and self.body.startswith(b"data: ")

    @property
    def refused_key(self) -> bool:
        """Whether the answer is about a wrong or missing API key."""
        return self.status == 401


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

    def __init__(self, recordings: Collection[Recording], *, setup: str, fallbacks: Collection[str] = ()) -> None:
        """Keep `recordings`; `fallbacks` are cases that answer every unrecorded request of their method, path and `stream`.

        Raises:
            BadTranscripts: a fallback is no case of this release.
        """
        self._all = {recording.case: recording for recording in recordings}
        unknown = [name for name in fallbacks if name not in self._all]
        if unknown:
            raise BadTranscripts(f"--fallback {unknown[0]}: no such case in this release")
        self._fallbacks = [self._all[name] for name in fallbacks]
        self._own = [recording for recording in recordings if recording.setup == setup]
        probes = [recording for recording in recordings if recording.request.path in PROBES and recording.setup != setup]
        self._questions = [(_question(one.request), one) for one in (*self._own, *probes)]

    def case(self, name: str) -> Recording | None:
        """The recording of that name, from any set-up."""
        return self._all.get(name)

    def find(self, request: Request, *, checks_keys: bool = False) -> Recording | Miss:
        """The recording whose method, path and JSON body (key order free) equal the request's.

        Of several, the one made with the same `Authorization`, then the one that was recorded first. A request without `Authorization`
        meets the answers given to the right key, unless the server `checks_keys`.
        """
        asked = _question(request)
        found = [one for question, one in self._questions if question == asked]
        if found:
            return min(found, key=lambda one: not _same_key(one, request, checks_keys=checks_keys))
        fallback = next((one for one in self._fallbacks if _same_form(one.request, request)), None)
        return replace(fallback, by="fallback") if fallback else self._closest(request)

    def _closest(self, request: Request) -> Miss:
        same_route = [one for one in self._own if (one.request.method, one.request.path) == (request.method, request.path)]
        if not same_route:
            return Miss(closest=None, differences=())
        listed = [(tuple(_differences(one.request.body, request.body)), one.case) for one in same_route]
        differences, case = min(listed, key=lambda entry: len(entry[0]))
        return Miss(closest=case, differences=differences)


@cache
def load(release: str) -> tuple[Recording, ...]:
    """Every case of a release, in the order in which they were recorded.

    Raises:
        BadTranscripts: there is no such release, or a line is no case.
    """
    if release not in RELEASES:
        raise BadTranscripts(f"no recordings of release {release!r}; there are: {', '.join(RELEASES)}")
    lines = (TRANSCRIPTS / f"{release}.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return tuple(from_line(line, f"{release}.jsonl, line {number}") for number, line in enumerate(lines, 1))


def named(release: str, case: str) -> Recording:
    """One case of a release.

    Raises:
        BadTranscripts: there is no such release or case; the message has the nearest name.
    """
    found = {one.case: one for one in load(release)}
    if case not in found:
        near = "".join(f" did you mean {name!r}?" for name in get_close_matches(case, found, n=1, cutoff=0.4))
        raise BadTranscripts(f"release {release} has no case {case!r};{near} `show {release}` lists all")
    return found[case]


def to_line(recording: Recording) -> str:
    """A line of a release's file, without its end; `load` reads it back, every byte."""
    request = recording.request
    sent = {"method": request.method, "path": request.path, "headers": dict(request.headers), "body": _text(request.body)}
    note = {"note": recording.note} if recording.note else {}
    value = {"case": recording.case, **note, "duration_s": recording.duration_s, "request": sent, "answer": _text(recording.raw)}
    return re.sub("[\udc80-\udcff]", lambda byte: f"\\u{ord(byte[0]):04x}", json.dumps(value, ensure_ascii=False))


def from_line(line: str, where: str = "a line") -> Recording:
    """Read one line; `where` is what an error says of its place.

    Raises:
        BadTranscripts: it is no case.
    """
    try:
        value = json.loads(line)
        sent = value["request"]
        request = Request(method=sent["method"], path=sent["path"], headers=CIMultiDict(sent["headers"]), body=_bytes(sent["body"]))
        about = {"case": value["case"], "note": value.get("note", ""), "duration_s": value["duration_s"]}
        return Recording(**about, request=request, raw=_bytes(value["answer"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadTranscripts(f"{where}: expected a case as `to_line` writes it, got {error!r} in {_short(line)}") from None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def show(release: str, case: str | None = None) -> bytes:
    """One case for a person to read, request and answer as they stood; without a case, a line for each.

    Raises:
        BadTranscripts: as `load` and `named`.
    """
    if case is None:
        rows = [f"{one.case:40} {one.status or 'none':>4}  {one.request.method} {one.request.path}  {one.note}" for one in load(release)]
        return "".join(row.rstrip() + "\n" for row in rows).encode()
    one = named(release, case)
    about = f"# {one.case}, FastDeploy {release}, {one.duration_s} s" + (f": {one.note}" if one.note else "")
    answer = one.raw or b"(never answered)"
    return b"\n".join([about.encode(), b"# request", one.request.wire, b"# answer", answer, b""])


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


def _question(request: Request) -> tuple[str, str, str | bytes]:
    """What two requests are compared by: their bodies as canonical JSON, or as bytes if that is no JSON object."""
    value = json_object(request.body)
    return request.method, request.path, canonical(value) if value else request.body


def _differences(recorded: bytes, got: bytes) -> Iterator[str]:
    ours, theirs = json_object(recorded), json_object(got)
    if not ours or not theirs:
        yield f"body recorded {_short(recorded.decode(errors='replace'))}, got {_short(got.decode(errors='replace'))}"
        return
    for name in sorted({*ours, *theirs}):
        before = canonical(ours[name]) if name in ours else _ABSENT
        after = canonical(theirs[name]) if name in theirs else _ABSENT
        if before != after:
            yield f"{name} recorded {_short(before)}, got {_short(after)}"


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
