"""Entries and paths for the laws, and the one profile they run under."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from images.entries import LayerEntry, data_entry

SETTINGS = settings(
    max_examples=int(os.environ.get("LAW_EXAMPLES", "100")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)

# Short and long names, names at the edges of the header's fields, and names that are not ASCII.
_SHORT = st.text(alphabet="abcxyz019_-.", min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..") and not name.startswith(".wh.")
)
_LONG = st.sampled_from([50, 99, 100, 101, 154, 155, 156, 200, 255]).map(lambda length: "n" * length)
_FOREIGN = st.sampled_from(["模型", "größe", "модель", "é", "😀"])
NAMES = st.one_of(_SHORT, _SHORT, _LONG, _FOREIGN)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@st.composite
def file_sets(draw: st.DrawFn, max_size: int = 8) -> dict[str, bytes]:
    """Files that can stand in one layer together, by their paths."""
    found: dict[str, bytes] = {}
    for path in draw(st.lists(PATHS, max_size=max_size)):
        taken = [*found]
        if any(path == other or other.startswith(path + "/") or path.startswith(other + "/") for other in taken):
            continue
        found[path] = draw(st.binary(max_size=40) | st.sampled_from([511, 512, 513, 1 << 16]).map(bytes))
    return found


def entries_of(files: dict[str, bytes], executable: frozenset[str] = frozenset()) -> list[LayerEntry]:
    made = {path: data_entry(path, data) for path, data in files.items()}
    return [
        LayerEntry(path=entry.path, size=entry.size, executable=path in executable, digest=entry.digest, open=entry.open)
        for path, entry in made.items()
    ]
