"""The reader of key=value words: any order, both spellings, every mistake at once, and help that names every key."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images.arguments import Command, Key, Kind, asks_for_help, call, file_named, number, one_of, parse, some, whole, yes_or_no
from images.build_errors import ImageError, UnknownChoice
from tests.strategies import SETTINGS

DEMO = Command(
    name="demo",
    help="Show.",
    keys=(
        Key("arch", "The architecture.", required=True),
        Key("out", "A folder.", default="dist"),
        Key("dir", "A place.", bare=True),
        Key("dry-run", "Change nothing.", default="no", check=yes_or_no),
        Key("count", "GPUs.", check=whole(1, 8)),
        Key("env.NAME", "A variable.", check=some("a text"), secret=True),
    ),
    run=lambda _: 0,
    conflicts=lambda values: ["out, count: got both, expected one of them"] if values["count"] and values["out"] != "dist" else [],
)
DEFAULTS = {"arch": "cpu", "out": "dist", "dir": "", "dry-run": "no", "count": ""}


def test_words_may_come_in_any_order() -> None:
    for words in permutations(["arch=sm89", "out=x=y", "a folder", "env.A=1"]):
        assert parse(DEMO, words) == DEFAULTS | {"arch": "sm89", "out": "x=y", "dir": "a folder", "env.A": "1"}
    assert parse(DEMO, ["arch=cpu"]) == DEFAULTS


@pytest.mark.parametrize("word", ["dry-run=yes", "dry_run=yes", "--dry-run=yes", "--dry_run=yes", "--dry-run", "dry-run"])
def test_a_switch_is_read_however_it_is_spelt(word: str) -> None:
    assert parse(DEMO, ["arch=cpu", word])["dry-run"] == "yes"


@pytest.mark.parametrize("text", ["two words", "what is a=b?", "-5 + 3", "", "- a list", "a\nb=c"])
def test_a_bare_word_is_the_value_of_the_key_that_takes_one(text: str) -> None:
    assert parse(DEMO, ["arch=cpu", text])["dir"] == text


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["arhc=cpu"], r"arhc: unknown key; did you mean arch\?; expected one of arch, out, dir, dry-run, count, env.NAME"),
        (["arch=cpu", "--ot=1"], r"ot: unknown key; did you mean out\?"),
        (["arch=cpu", "x=1, solve"], "x: unknown key; expected one of .*, or dir=TEXT for a text with = in it"),
        (["arch=cpu", "dry_rum=yes"], r"dry_rum: unknown key; did you mean dry-run\?"),
        (["arch=cpu", "arch=sm89"], "arch: given twice, as 'cpu' and 'sm89'"),
        (["arch=cpu", "dry-run=no", "dry_run=no"], "dry-run: given twice"),
        (["out=x"], "arch: missing, expected arch=...: The architecture"),
        (["arch="], "^arch: missing, expected arch=...: The architecture.$"),
        (["arch=cpu", "one", "two"], "got 'two', expected key=value; dir is 'one' already: quote a text of several words"),
        (["arch=cpu", "taken", "count"], "got 'count', expected count=..."),
        (["arch=cpu", "--archh"], r"got '--archh', expected key=value; did you mean arch\?"),
        (["arch=cpu", "taken", "=x"], "got '=x', expected key=value"),
        (["arch=cpu", "count=9"], "count: got '9', expected a whole number from 1 to 8"),
        (["arch=cpu", "count="], "count: got '', expected a whole number from 1 to 8"),
        (["arhc=cpu", "ot=1", "count=x"], "(?s)arhc: .*ot: .*count: .*arch: missing"),
        (["arch=cpu", "out=x", "count=2"], "out, count: got both, expected one of them"),
        (["count=9", "out=x"], "(?s)count: got '9'.*arch: missing.*out, count: got both"),
    ],
)
def test_words_that_mean_nothing_are_refused_all_at_once(words: list[str], complaint: str) -> None:
    with pytest.raises(UnknownChoice, match=complaint):
        parse(DEMO, words)


@SETTINGS
@given(words=st.lists(st.text(max_size=8) | st.sampled_from(["arch=cpu", "count=3", "dry-run", "env.A=sesame", "env.A=sesame", "env.B="])))
def test_any_words_are_values_of_the_keys_or_refused_without_a_secret(words: list[str]) -> None:
    try:
        values = parse(DEMO, words)
    except UnknownChoice as refused:
        assert str(refused)
        assert "sesame" not in str(refused)
    else:
        assert values["arch"]
        assert {name for name in values if "." not in name} == set(DEFAULTS)


KINDS: list[tuple[Kind, dict[str, object], list[str]]] = [
    (whole(0, 65535), {"0": 0, "65535": 65535, "007": 7}, ["65536", "-1", "1.5", "٣", " 1", "", "1_0", "9" * 5000]),
    (whole(3), {"3": 3, "9" * 18: int("9" * 18)}, ["2", "x"]),
    (number(0.5, 10), {"0.5": 0.5, ".75": 0.75, "10": 10.0}, ["0.4", "11", "nan", "inf", "1e1", "-1", "", "."]),
    (number(0), {"0": 0.0, "123456.5": 123456.5}, ["-0.1", "x"]),
    (one_of("queue", "lb"), {"queue": "queue"}, ["", "QUEUE", "queu"]),
    (yes_or_no, {"yes": True, "no": False}, ["", "true", "Yes"]),
    (some("a file"), {"x": "x"}, ["", " "]),
]


@pytest.mark.parametrize(("kind", "good", "bad"), KINDS, ids=lambda value: value.expected if isinstance(value, Kind) else "")
def test_a_kind_reads_what_it_expects_and_says_so_of_anything_else(kind: Kind, good: dict[str, object], bad: list[str]) -> None:
    assert {text: kind(text) for text in good} == good
    for text in bad:
        with pytest.raises(UnknownChoice) as refused:
            kind(text)
        assert str(refused.value).startswith(f"got {text!r}, expected {kind.expected}")
    assert kind.expected != "one of queue, lb" or "did you mean queue?" in str(_refusal(kind, "queu"))


def _refusal(kind: Kind, text: str) -> UnknownChoice:
    with pytest.raises(UnknownChoice) as refused:
        kind(text)
    return refused.value


@pytest.mark.parametrize("words", [["help"], ["-h"], ["--help"], ["arch=cpu", "--help"], ["help", "arch=cpu"]])
def test_help_prints_every_key_with_its_default_and_ends_with_0(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(DEMO, words) == 0
    assert capsys.readouterr().out == (
        "usage: ci/just demo arch=... [key=value ...]\n"
        "\n"
        "Show.\n"
        "\n"
        "  arch      The architecture. (required)\n"
        "  out       A folder. (default: dist)\n"
        "  dir       A place. (may stand without dir=)\n"
        "  dry-run   Change nothing. (yes or no; default: no)\n"
        "  count     GPUs. (a whole number from 1 to 8)\n"
        "  env.NAME  A variable. (a text)\n"
    )


def test_help_is_the_first_word_and_no_value() -> None:
    assert not asks_for_help(["arch=cpu", "help"])
    assert parse(DEMO, ["arch=cpu", "help"])["dir"] == "help"


def test_a_command_without_keys_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    bare = Command(name="bare", help="Show.", keys=(), run=lambda _: 0)
    assert call(bare, []) == 0
    assert call(bare, ["--help"], typed="python -m bare") == 0
    assert capsys.readouterr().out == "usage: python -m bare\n\nShow.\n"
    assert call(bare, ["x=1"]) == 2
    assert "bare: x: unknown key; expected none" in capsys.readouterr().err


def ending(error: BaseException) -> Command:
    def run(_: Mapping[str, str]) -> int:
        raise error

    return Command(name="demo", help="Show.", keys=(Key("arch", "The architecture."),), run=run)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UnknownChoice("arch: no such"), 2, "demo: arch: no such\n"),
        (ImageError("two\n  lines"), 1, "demo: two\n  lines\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_stops_a_command_is_a_sentence_and_a_code(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(ending(error), ["arch=x"]) == code
    assert capsys.readouterr().err == says


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:sesame@hub.example/x cannot be reached", "https://***@hub.example/x cannot be reached"),
        ("got 'http://sesame@127.0.0.1:9', and ftp://a:sesame@b", "got 'http://***@127.0.0.1:9', and ftp://***@b"),
        ("https://a:sesame@b@hub.example", "https://***@hub.example"),
        ("mail me@hub.example about https://hub.example/@me?x=@y", "mail me@hub.example about https://hub.example/@me?x=@y"),
    ],
)
def test_no_message_of_a_command_holds_an_account_of_an_address(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (ImageError(text), UnknownChoice(text)):
        call(ending(error), ["arch=x"])
        assert capsys.readouterr().err == f"demo: {shown}\n"


def test_a_command_that_needs_words_and_gets_none_prints_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(DEMO, []) == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: ci/just demo arch=... [key=value ...]\n")
    assert said.endswith("demo: arch: missing, expected arch=...: The architecture.\n")


def test_files_are_meant_from_where_the_command_was_called() -> None:
    assert file_named("x/y", {"CALLED_FROM": "/there"}) == Path("/there/x/y")
    assert file_named("/abs", {"CALLED_FROM": "/there"}) == Path("/abs")
    assert file_named("x", {}) == Path("x")
