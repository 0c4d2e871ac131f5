"""Values for the laws, and the one profile they run under."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SETTINGS = settings(
    max_examples=int(os.environ.get("LAW_EXAMPLES", "200")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])

# Characters that other line splitters take for line ends, that take several bytes, or that end in a byte of another.
TEXTS = st.text(
    alphabet=st.one_of(st.characters(codec="utf-8", exclude_characters="\r\n"), st.sampled_from("\u2028\u2029\x85\x0b日😀é\ufeff"))
)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """One whole frame: one to three lines, each with its end, and a blank line."""
    lines = draw(st.lists(TEXTS.filter(bool).map(lambda text: ("data: " + text).encode()), min_size=1, max_size=3))
    end = draw(LINE_ENDS)
    return end.join(lines) + end + end


def cuts(stream: bytes) -> st.SearchStrategy[list[bytes]]:
    """Any way to cut a byte string into chunks, empty ones included."""
    positions = st.lists(st.integers(0, len(stream)), max_size=12).map(sorted)
    return positions.map(lambda at: [stream[a:b] for a, b in zip([0, *at], [*at, len(stream)], strict=True)])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
