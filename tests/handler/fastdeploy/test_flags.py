"""Laws of the way from variables to argv, checked with an argparse parser rebuilt from each release's table."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handler.errors import InvalidSettings
from handler.fastdeploy.flags import (
    EXTRA_ARGS,
    OWN,
    RELEASES,
    Flag,
    collect_flags,
    flag_table,
    to_argv,
    variable_names,
)
from tests.handler.fastdeploy.parser_from_table import FlexibleArgumentParser, build
from tests.handler.fastdeploy.stand_in import entries
from tests.strategies import SETTINGS

NAMES = sorted(variable_names() | {"MODEL", "PORT", "MAX_MODEL_LEN", "HOME", "API_KEY"})
POOL = [
    *("0", "1", "-1", "2", "0.5", "-0.5", "1e-5", "1e9", "9" * 400, "nan", "inf", "true", "False", "TRUE", "maybe"),
    *("{}", '{"a": [1, null, "\\ud800\\u0000"]}', "[1]", '{"quantization": "wint4"}', '{"quantization": "no"}', '{"a": NaN}', "{"),
    *("auto", "xgrammar", "guidance", "wint4", "WINT8", "BF16", "none", "mxfp4", "default", "dummy", "mixed", "raw_logits"),
    *("8001", "8001,8002", "80010", "a,b", "a,,b", "-x", "--", "--host", "-x y", "a b", " ", "=", "-tp=2", "\0", "\ud800", "日本"),
]
TEXTS = st.one_of(st.sampled_from(POOL), st.text(max_size=8), st.integers().map(str), st.floats().map(repr))
RELEASE = st.sampled_from(RELEASES)


@functools.cache
def parser(release: str) -> FlexibleArgumentParser:
    # exit_on_error would not cover unknown words; error() is where all of argparse's refusals meet
    class Strict(FlexibleArgumentParser):
        def error(self, message: str) -> Any:
            raise AssertionError(message)

    made = Strict(allow_abbrev=False)
    build(entries(release), made)
    return made


def accepted(argv: list[str], release: str) -> dict[str, Any]:
    found: dict[str, Any] = vars(parser(release).parse_args(argv))
    queues = found["cache_queue_port"]  # numbers, alone of all lists of ports
    return found | {"cache_queue_port": [str(port) for port in queues] if queues else queues}


def defaults(release: str) -> dict[str, Any]:
    return accepted([], release)


@SETTINGS
@given(st.dictionaries(st.sampled_from(NAMES), TEXTS), RELEASE)
@example(texts={"TOKENIZER": "--"}, release="2.3")
@example(texts={"WRITE_POLICY": "{}"}, release="2.5")
def test_any_variables_give_an_argv_that_the_parser_accepts_or_every_offender_by_name(texts: dict[str, str], release: str) -> None:
    """Rule: "any mapping of variables gives an argv which the release's table accepts, or an error that names every offending variable"."""
    values, problems = collect_flags(texts, release)
    named = {problem.partition(":")[0] for problem in problems}
    assert named == {name for name, text in texts.items() if collect_flags({name: text}, release)[1]}
    for problem in problems:
        assert problem.startswith(f"{EXTRA_ARGS}: ") or ": got " in problem
    # what the good ones ask for stands, and the parser reads it as it was meant
    assert accepted(to_argv(values, flag_table(release)), release) == defaults(release) | values


def values_of(flag: Flag) -> st.SearchStrategy[Any]:
    words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda text: text.strip() not in ("", "--"))
    if not flag.takes_value:
        return st.booleans() if flag.action == "optional" else st.just(value=True)
    if flag.dest == "guided_decoding_disable_any_whitespace":
        return st.just("true")
    if flag.type == "quantization":
        return st.sampled_from(flag.choices).map(lambda name: {"quantization": name}) | st.just({"quantization": "w4a8", "more": [1]})
    if flag.choices:
        return st.sampled_from(flag.choices)
    if flag.many:
        return st.lists(st.from_regex(r"[\w.:]+", fullmatch=True), min_size=1)
    of_type: dict[str, st.SearchStrategy[Any]] = {
        "str": words,
        "nullable_str": words,
        "int": st.integers(),
        "float": st.floats(allow_nan=False, allow_infinity=False),
        "json": st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.text()),
        "list": st.lists(st.integers(0, 65535).map(str), min_size=1),
    }
    return st.lists(words, min_size=1) if flag.action == "append" else of_type[flag.type]


@st.composite
def settings_of_a_release(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    release = draw(RELEASE)
    table = flag_table(release)
    chosen = draw(st.lists(st.sampled_from(sorted(table)), unique=True))
    return release, {dest: draw(values_of(table[dest])) for dest in chosen}


@SETTINGS
@given(settings_of_a_release())
def test_argv_parsed_again_gives_the_same_values(case: tuple[str, dict[str, Any]]) -> None:
    """Rule: "argv -> parsed -> same settings", by the release's own parser; ours is held to it by the next law."""
    release, values = case
    assert accepted(to_argv(values, flag_table(release)), release) == defaults(release) | values


@SETTINGS
@given(settings_of_a_release())
def test_extra_words_mean_what_the_variables_mean(case: tuple[str, dict[str, Any]]) -> None:
    """Rule: "parsed against the same table, wins over variables, same checks"."""
    release, values = case
    table = flag_table(release)
    values = {dest: value for dest, value in values.items() if dest not in OWN}
    found, problems = collect_flags({EXTRA_ARGS: shlex.join(to_argv(values, table))}, release)
    assert all("expected a number " in problem for problem in problems)
    if not problems:
        assert found == values


@SETTINGS
@given(
    RELEASE,
    st.lists(st.one_of(st.sampled_from([*POOL, "--host", "-tp", "--max-logprobs", "--enable-eplb", "--config"]), st.text(max_size=6))),
)
def test_any_extra_words_are_read_or_refused_in_the_variable_s_name(release: str, words: list[str]) -> None:
    for text in (" ".join(words), shlex.join(words)):
        values, problems = collect_flags({EXTRA_ARGS: text}, release)
        assert all(problem.startswith(f"{EXTRA_ARGS}: ") for problem in problems)
        assert accepted(to_argv(values, flag_table(release)), release) == defaults(release) | values


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("texts", "expected"), [
    ({"MAX_LOGPROBS": "5"}, {"max_logprobs": 5}),
    ({"MAX_LOGPROBS": "5", EXTRA_ARGS: "--max-logprobs 7"}, {"max_logprobs": 7}),
    ({EXTRA_ARGS: "-tp 2 --controller-port -1"}, {"tensor_parallel_size": 2, "controller_port": -1}),
    ({EXTRA_ARGS: "-tp=2 --max-model-len=4096"}, {"tensor_parallel_size": 2, "max_model_len": 4096}),
    ({"TOKENIZER_NAME": "a/b"}, {"tokenizer": "a/b"}),
    ({"TOKENIZER_NAME": "a/b", "TOKENIZER": "c/d"}, {"tokenizer": "c/d"}),
    ({"QUANTIZATION": "bf16"}, {}),
    ({"QUANTIZATION": "None"}, {}),
    ({"QUANTIZATION": "WINT4"}, {"quantization": {"quantization": "wint4"}}),
    ({"QUANTIZATION": "wint4", EXTRA_ARGS: "--quantization none"}, {}),
    ({"ENABLE_LOGPROB": "1"}, {"enable_logprob": True}),
    ({"ENABLE_LOGPROB": "FALSE"}, {}),
    ({"LM_HEAD_FP32": "true"}, {"lm_head_fp32": True}),
    ({"ENABLE_MM": "true"}, {"enable_mm": True}),
    ({"LOGITS_PROCESSORS": "a:B, c:D"}, {"logits_processors": ["a:B", "c:D"]}),
    ({"SPECULATIVE_CONFIG": '{"method": "mtp"}'}, {"speculative_config": {"method": "mtp"}}),
    ({"CHAT_TEMPLATE": "--{{ messages }}"}, {"chat_template": "--{{ messages }}"}),
    ({EXTRA_ARGS: "--no-enable-prefix-caching --enable-logprob"}, {"enable_prefix_caching": False, "enable_logprob": True}),
    ({"ENABLE_PREFIX_CACHING": "  ", "MAX_LOGPROBS": ""}, {}),
])  # fmt: skip
def test_what_is_asked_for_is_what_the_parser_stores(release: str, texts: Mapping[str, str], expected: dict[str, Any]) -> None:
    values, problems = collect_flags(texts, release)
    assert (values, problems) == (expected, [])
    assert accepted(to_argv(values, flag_table(release)), release) == defaults(release) | expected


@pytest.mark.parametrize(("release", "texts", "expected"), [
    ("2.5", {"KV_CACHE_RATIO": "2"}, ["KV_CACHE_RATIO: got '2', expected a number from 0 to 1"]),
    ("2.5", {"MAX_LOGPROBS": "many"}, ["MAX_LOGPROBS: got 'many', expected a whole number"]),
    ("2.5", {"MODEL_IMPL": "x"}, ["MODEL_IMPL: got 'x', expected one of auto, fastdeploy, paddleformers"]),
    ("2.3", {"GUIDED_DECODING_BACKEND": "guidance"}, ["GUIDED_DECODING_BACKEND: got 'guidance', expected one of off, auto, xgrammar"]),
    ("2.4", {"LOAD_CHOICES": "dummy"}, ["LOAD_CHOICES: got 'dummy', expected one of default, default_v1"]),
    ("2.3", {"ENABLE_EPLB": "1"}, [
        "ENABLE_EPLB: got '1', expected it unset: FastDeploy 2.3 has no --enable-eplb (2.4, 2.5 and 2.6 have it)",
    ]),
    ("2.5", {EXTRA_ARGS: "--max-logprob 3"}, [
        f"{EXTRA_ARGS}: --max-logprob: unknown to this release of FastDeploy; did you mean --max-logprobs?",
    ]),
    ("2.5", {EXTRA_ARGS: "--nope"}, [f"{EXTRA_ARGS}: --nope: unknown to this release of FastDeploy"]),
    ("2.5", {"IPS": "10.0.0.1"}, [
        "IPS: expected it unset, the flag is the worker's own: a worker is one machine, and the engine's queues must not listen beyond it",
    ]),
    ("2.5", {"SCHEDULER_PASSWORD": "needle"}, [
        f"SCHEDULER_PASSWORD: expected it unset, the flag is the worker's own: {OWN['scheduler_password']}",
    ]),
    ("2.5", {"IPS": " ", "SCHEDULER_PASSWORD": ""}, []),
    ("2.5", {EXTRA_ARGS: "--moe-gate-fp32"}, [f"{EXTRA_ARGS}: --moe-gate-fp32: this release of FastDeploy has no such flag (2.6 has it)"]),
    ("2.5", {EXTRA_ARGS: "--host 0.0.0.0"}, [f"{EXTRA_ARGS}: --host: the worker's own flag: the engine listens on loopback only"]),
    ("2.5", {EXTRA_ARGS: "--enable-logprob=1"}, [f"{EXTRA_ARGS}: --enable-logprob: got '1', expected no value: the flag is a switch"]),
    ("2.5", {EXTRA_ARGS: "--seed"}, [f"{EXTRA_ARGS}: --seed: got '', expected a value"]),
    ("2.5", {EXTRA_ARGS: "'"}, [f"{EXTRA_ARGS}: got \"'\", expected words as a shell reads them (No closing quotation)"]),
    ("2.5", {EXTRA_ARGS: "on"}, [f"{EXTRA_ARGS}: got 'on', expected a flag"]),
])  # fmt: skip
def test_a_refusal_says_what_it_got_and_what_it_expected(release: str, texts: Mapping[str, str], expected: list[str]) -> None:
    assert collect_flags(texts, release)[1] == expected


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_flag_of_the_worker_s_own_is_refused_with_the_reason(name: str) -> None:
    option = f"--{name.replace('_', '-')}"
    carried = {} if name in ("ips", "scheduler_password") else {name.upper(): "x"}  # what containers carry anyway is not read
    assert collect_flags({EXTRA_ARGS: f"{option} x", **carried}, "2.5")[1] == [
        f"{EXTRA_ARGS}: {option}: the worker's own flag: {OWN[name]}"
        if name != "port"
        else f"{EXTRA_ARGS}: --port: got 'x', expected a whole number"
    ]


def test_a_release_without_a_table_is_refused() -> None:
    with pytest.raises(InvalidSettings, match=r"FastDeploy: got release '2\.7', expected 2\.3, 2\.4 and 2\.5 or 2\.6"):
        flag_table("2.7")


def test_json_reaches_the_parser_whatever_it_holds() -> None:
    value = {"a": "\u2028😀 '\"\\", "b": [1.5, None, {"c": ""}]}
    values, _ = collect_flags({"EARLY_STOP_CONFIG": json.dumps(value)}, "2.5")
    assert accepted(to_argv(values, flag_table("2.5")), "2.5")["early_stop_config"] == value
