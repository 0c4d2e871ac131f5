"""Laws of stop strings: what is shown never depends on how the text is cut."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_engine.stopping import StopStrings

LAWS = settings(max_examples=500, deadline=None)
# Few letters, so that stops overlap with the text and with each other.
SMALL = st.text("ab你", max_size=20)
STOPS = st.lists(st.text("ab你", max_size=4), max_size=4)


def run(pieces: list[str], stops: list[str], *, include: bool = False) -> tuple[str, bool]:
    """Feed the pieces until a stop is found; return all that was shown and whether one was."""
    matcher = StopStrings(stops, include=include)
    shown = ""
    for piece in pieces:
        text, stopped = matcher.feed(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + matcher.flush(), False


@given(SMALL, STOPS, st.lists(st.integers(0, 20), max_size=5), st.booleans())
@LAWS
def test_any_cutting_shows_the_same_text(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    """Rule: re-chunking the text changes nothing."""
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    assert run(pieces, stops, include=include) == run(list(text), stops, include=include) == run([text], stops, include=include)


@given(SMALL, STOPS)
@LAWS
def test_what_is_shown_is_the_text_up_to_the_first_complete_stop(text: str, stops: list[str]) -> None:
    """Rule: shown text is a prefix without any stop in it; with no stop in the text it is the whole."""
    shown, stopped = run(list(text), stops)
    real = [stop for stop in stops if stop]
    assert stopped == any(stop in text for stop in real)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in real)
    assert stopped or shown == text


@given(SMALL, STOPS)
@LAWS
def test_including_the_stop_adds_just_the_stop(text: str, stops: list[str]) -> None:
    """Rule: include_stop_str_in_output shows the stop string itself and nothing after it."""
    without, stopped = run(list(text), stops)
    shown, _ = run(list(text), stops, include=True)
    if stopped:
        assert shown[len(without) :] in stops
    else:
        assert shown == without


@given(SMALL, STOPS)
@LAWS
def test_no_more_is_held_back_than_a_stop_could_need(text: str, stops: list[str]) -> None:
    """Rule: text that cannot become a stop is shown at once."""
    matcher = StopStrings(stops, include=False)
    shown, stopped = matcher.feed(text)
    held = "" if stopped else matcher.flush()
    assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
    assert stopped or shown + held == text
