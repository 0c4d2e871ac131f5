from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import InvalidSettings
from handler.settings import TABLE, BatchLimits, Secret, Settings, Variable, read_settings
from tests.strategies import SETTINGS

NOWHERE = Path("/nonexistent/local_model_args.json")
NAMES = [name for variable in TABLE for name in (variable.name, *variable.aliases)]
TEXTS = st.one_of(
    st.text(max_size=10), st.sampled_from(["0", "1", "-1", "1e9", "true", "nan", "inf", "{}", " ", "cpu", "INFO", "org/name"])
)


def read(**environment: str) -> Settings:
    return read_settings(environment, baked=NOWHERE)


def problems(**environment: str) -> list[str]:
    with pytest.raises(InvalidSettings) as caught:
        read(**environment)
    return caught.value.problems


@SETTINGS
@given(st.dictionaries(st.sampled_from(NAMES), TEXTS))
def test_any_environment_gives_settings_or_names_every_wrong_variable(environment: dict[str, str]) -> None:
    """Rule: "every problem reported at once with name, value, expectation, nearest known name"."""
    try:
        read_settings(environment, baked=NOWHERE)
    except InvalidSettings as error:
        for problem in error.problems:
            name, _, rest = problem.partition(": ")
            assert name in NAMES
            assert "expected" in rest
            if name in environment and not name.endswith("TOKEN") and environment[name].strip():
                assert repr(environment[name].strip()) in rest or "expected at most" in rest
        # each problem is one variable's own: alone it is reported too
        for name, text in environment.items():
            alone = {"MODEL": "m", name: text} if name not in ("MODEL", "MODEL_NAME", "MODEL_REPO") else {name: text}
            try:
                read_settings(alone, baked=NOWHERE)
            except InvalidSettings as single:
                assert any(problem.startswith(name) for problem in single.problems) or "MODEL" in str(single) or "MIN_BATCH" in str(single)


@pytest.mark.parametrize(
    ("environment", "baked", "expected"),
    [
        ({}, {"MODEL": "baked/m"}, ("baked/m", 8)),
        ({"MODEL": "env/m"}, {"MODEL": "baked/m"}, ("baked/m", 8)),
        ({"MODEL": "env/m"}, {"MAX_NUM_SEQS": 3}, ("env/m", 3)),
        ({"MODEL": "env/m", "MAX_NUM_SEQS": "5"}, {"MODEL_NAME": "baked/m"}, ("baked/m", 5)),
        ({"MODEL": "env/m", "MAX_NUM_SEQS": "5"}, {"MAX_NUM_SEQS": None}, ("env/m", 5)),
        ({"MODEL_NAME": "alias/m", "MODEL": " "}, {}, ("alias/m", 8)),
        ({"MODEL_NAME": "same/m", "MODEL": " same/m"}, {}, ("same/m", 8)),
    ],
)
def test_baked_settings_win_over_the_environment_and_it_over_defaults(
    tmp_path: Path, environment: dict[str, str], baked: dict[str, Any], expected: tuple[str, int]
) -> None:
    file = tmp_path / "local_model_args.json"
    file.write_text(json.dumps(baked))
    settings = read_settings(environment, baked=file)
    assert (settings.model.source, settings.engine.max_num_seqs) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected a JSON object with names of variables"),
        ("[1]", "got list, expected a JSON object"),
        ('{"MODEL": "m", "MODLE": "n"}', "MODLE: unknown; did you mean MODEL?"),
        ('{"MODEL": "m", "xyz": 1}', "xyz: unknown"),
        ('{"MODEL": "m", "MAX_NUM_SEQS": true}', "MAX_NUM_SEQS: got 'true', expected a whole number"),
        ('{"MODEL": "m", "MAX_NUM_SEQS": 2, "MAX_NUM_SEQS": 2}', "MAX_NUM_SEQS: given twice, expected once"),
        ('{"MODEL": "m", "SPECULATIVE_CONFIG": {"method": "mtp", "method": "ngram"}}', "method: given twice, expected once"),
        ('{"MODEL": "a/m", "MODEL_NAME": "b/m"}', "MODEL_NAME: got 'b/m', expected the same as MODEL, which is 'a/m': set one of them"),
        ('{"MODEL": "m", "CONTEXT_LENGTH": 512}', "CONTEXT_LENGTH: unknown; set MAX_MODEL_LEN"),
        ('{"MODEL": "m", "LORA_MODULES": []}', "LORA_MODULES: unknown; the worker serves no LoRA adapters"),
        ('{"MODEL": "m", "FD_A=B": "1"}', "FD_A=B: unknown"),
        ('{"MODEL": "m", "FD_A\\u0000": "1"}', r"'FD_A\\x00': unknown"),
        ('{"MODEL": "m", "x\\nerror: y": "1"}', r"'x\\nerror: y': unknown"),
    ],
)
def test_a_bad_baked_file_is_named_with_what_is_wrong_in_it(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "local_model_args.json"
    file.write_text(text)
    with pytest.raises(InvalidSettings, match=words.replace("?", r"\?")):
        read_settings({"MODEL": "m"}, baked=file, engine_names=["SPECULATIVE_CONFIG"])


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("depth", [1, 100, 400, 900, 990, 1000, 5000, 200_000])
def test_a_baked_file_is_read_or_is_nested_too_deeply_whatever_its_depth(tmp_path: Path, opening: str, closing: str, depth: int) -> None:
    file = tmp_path / "local_model_args.json"
    file.write_text('{"EARLY_STOP_CONFIG": ' + opening * depth + "1" + closing * depth + "}")
    try:
        settings = read_settings({"MODEL": "m"}, baked=file, engine_names=["EARLY_STOP_CONFIG"])
    except InvalidSettings as error:
        assert depth > 100, "Python's own limit differs between versions"
        assert error.problems == [f"{file}: nested too deeply, expected a JSON object with names of variables"]
    else:
        assert depth < 200_000
        assert settings.texts["EARLY_STOP_CONFIG"].replace(" ", "") == opening * depth + "1" + closing * depth


TEXT_VARIABLES = [variable.name for variable in TABLE if variable.kind == "text"]
ANY_TEXT = st.text(st.characters() | st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), min_size=1, max_size=8)


@SETTINGS
@given(st.dictionaries(st.sampled_from(TEXT_VARIABLES) | ANY_TEXT, ANY_TEXT), st.dictionaries(st.sampled_from(TEXT_VARIABLES), ANY_TEXT))
def test_no_text_of_a_baked_file_or_of_the_environment_can_forge_a_line_of_the_log(
    tmp_path_factory: pytest.TempPathFactory, written: dict[str, str], environment: dict[str, str]
) -> None:
    """Rule: "control characters in any text variable are a problem naming the variable"; NUL and half a surrogate pair are such."""
    file = tmp_path_factory.getbasetemp() / "local_model_args.json"
    file.write_text(json.dumps(written))
    try:
        settings = read_settings({"MODEL": "m"} | environment, baked=file)
    except InvalidSettings as error:
        assert all(problem.isprintable() for problem in error.problems)
    else:
        texts = [settings.model.source, settings.model.served_name, settings.model.home, settings.engine.python, settings.health_path]
        assert all(text.isprintable() and text.encode() is not None for text in texts)


@pytest.mark.parametrize("name", TEXT_VARIABLES)
@pytest.mark.parametrize("text", ["a\nerror: b", "a\x00b", "a\ud800b", "a\x1b[31mb", "a\u202eb", "a\u2028b"])
def test_a_text_variable_that_is_not_one_printable_line_is_refused_by_its_name(name: str, text: str) -> None:
    found = problems(**{"MODEL": "m", name: text})
    assert found[0] == f"{name}: got {text!r}, expected one line of printable text"


ALIASES = [(variable.name, alias) for variable in TABLE for alias in variable.aliases]


@pytest.mark.parametrize(("name", "alias"), ALIASES)
def test_two_names_of_one_variable_hold_one_value_or_both_values_are_named(name: str, alias: str) -> None:
    settings = read(**{"MODEL": "m", name: "m", alias: " m "})
    assert settings == replace(read(**{"MODEL": "m", name: "m"}), texts=settings.texts)
    one, other = ("***", "***") if name == "HF_TOKEN" else ("'m'", "'other/m'")
    wanted = f"{alias}: got {other}, expected the same as {name}, which is {one}: set one of them"
    assert problems(**{"MODEL": "m", name: "m", alias: "other/m"}) == [wanted]


def test_every_alias_that_differs_is_named() -> None:
    assert [problem.partition(":")[0] for problem in problems(MODEL_NAME="a", MODEL_REPO="b", MODEL="c")] == ["MODEL_NAME", "MODEL_REPO"]
    assert problems(MODEL_NAME="a", MODEL_REPO="b") == [
        "MODEL_REPO: got 'b', expected the same as MODEL_NAME, which is 'a': set one of them"
    ]


def test_a_baked_file_that_cannot_be_read_is_a_problem_and_a_missing_one_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="cannot be read"):
        read_settings({"MODEL": "m"}, baked=tmp_path)
    assert read_settings({"MODEL": "m"}, baked=tmp_path / "none").model.source == "m"


def test_defaults_are_those_of_the_table() -> None:
    settings = read(MODEL="org/name")
    assert settings.batch.filled() is None, "nothing is held back unless the operator says so"
    assert settings.model.served_name == "org/name"
    assert settings.limits.max_concurrency == 4 * settings.engine.max_num_seqs == 32
    assert not settings.model.token


@pytest.mark.parametrize(
    ("texts", "bounds"),
    [
        ({"DEFAULT_BATCH_SIZE": "20"}, (1, 20, 3.0)),
        ({"DEFAULT_MIN_BATCH_SIZE": "5"}, (5, 50, 3.0)),
        ({"DEFAULT_MIN_BATCH_SIZE": "60"}, (60, 60, 3.0)),
        ({"DEFAULT_BATCH_SIZE_GROWTH_FACTOR": "2"}, (1, 50, 2.0)),
        ({"DEFAULT_BATCH_SIZE": "7", "DEFAULT_MIN_BATCH_SIZE": "2", "DEFAULT_BATCH_SIZE_GROWTH_FACTOR": "1.5"}, (2, 7, 1.5)),
    ],
)
def test_a_bound_on_pieces_that_is_set_brings_the_others_along(texts: dict[str, str], bounds: tuple[int, int, float]) -> None:
    """Rule: "The batching variables keep their meaning for those who set them." """
    assert read(MODEL="org/name", **texts).batch.filled() == BatchLimits(minimum=bounds[0], maximum=bounds[1], growth=bounds[2])


def test_a_growth_that_shrinks_is_refused() -> None:
    assert problems(MODEL="m", DEFAULT_BATCH_SIZE_GROWTH_FACTOR="0.9") == [
        "DEFAULT_BATCH_SIZE_GROWTH_FACTOR: got 0.9, expected a number from 1 to 1000, or 0"
    ]


def test_all_problems_come_at_once() -> None:
    found = problems(
        MAX_NUM_SEQS="many", ENGINE="gpu", MAX_MODEL_LN="9", DEFAULT_MIN_BATCH_SIZE="60", DEFAULT_BATCH_SIZE="50", LOG_LEVEL="loud"
    )
    assert sorted(problem.split(":")[0] for problem in found) == [
        "DEFAULT_MIN_BATCH_SIZE",
        "ENGINE",
        "LOG_LEVEL",
        "MAX_MODEL_LN",
        "MAX_NUM_SEQS",
        "MODEL",
    ]
    assert "MAX_MODEL_LN: unknown; did you mean MAX_MODEL_LEN?" in found
    assert "ENGINE: got 'gpu', expected one of auto, fastdeploy, cpu" in found
    assert "MAX_NUM_SEQS: got 'many', expected a whole number" in found


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "HOME",
        "MODEL_DIR",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "HOSTNAME",
        "PYTHONPATH",
        "LOG",
        "LANG",
        "CODE_REVISION",
    ],
)
def test_what_every_container_has_is_no_misspelt_variable(name: str) -> None:
    assert read_settings({"MODEL": "m", name: "x"}, baked=NOWHERE).model.source == "m"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("MAX_NUM_SEQS", "0", "expected a number from 1 to 256"),
        ("MAX_NUM_SEQS", "2.5", "expected a whole number"),
        ("ENGINE_STARTUP_TIMEOUT", "soon", "expected a number"),
        ("ENGINE_STARTUP_TIMEOUT", "nan", "expected a number from 1 to 86400"),
        ("ENGINE_STARTUP_TIMEOUT", "inf", "expected a number from 1 to 86400"),
        ("DEFAULT_BATCH_SIZE_GROWTH_FACTOR", "1001", "expected a number from 0 to 1000"),
        ("PORT", "70000", "expected a number from 0 to 65535"),
    ],
)
def test_a_value_out_of_range_says_what_was_expected(name: str, text: str, words: str) -> None:
    assert problems(MODEL="m", **{name: text}) == [f"{name}: got {text!r}, {words}"]


A_BOOLEAN = Variable(name="A_BOOLEAN", kind="boolean", default=False, help="")
A_LIST = Variable(name="A_LIST", kind="list", default=(), help="")
AN_OBJECT = Variable(name="AN_OBJECT", kind="object", default={}, help="")


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        (A_BOOLEAN, "yes", "true, false, 1 or 0"),
        (A_BOOLEAN, "2", "true, false, 1 or 0"),
        (AN_OBJECT, "[1]", "a JSON object"),
        (AN_OBJECT, "null", "a JSON object"),
        (AN_OBJECT, "{", "a JSON object"),
        pytest.param(AN_OBJECT, "[" * 200_000, "a JSON object", id="deep"),
    ],
)
def test_booleans_and_objects_are_read_strictly(variable: Variable, text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected}$"):
        variable.parse(text)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        (A_BOOLEAN, "True", True),
        (A_BOOLEAN, "0", False),
        (A_LIST, "a, b,,", ("a", "b")),
        (A_LIST, ",", ()),
        (AN_OBJECT, '{"a": 1}', {"a": 1}),
    ],
)
def test_booleans_lists_and_objects_in_their_forms_are_taken(variable: Variable, text: str, value: Any) -> None:
    assert variable.parse(text) == value


def test_the_default_of_every_variable_is_a_value_of_its_kind_within_its_bounds() -> None:
    for variable in TABLE:
        if variable.default != "":
            text = ",".join(variable.default) if isinstance(variable.default, tuple) else str(variable.default)
            assert variable.parse(text) == variable.default
        assert (variable.kind in ("integer", "number")) == (variable.minimum is not None) == (variable.maximum is not None)


def test_a_secret_shows_itself_nowhere() -> None:
    settings = read(MODEL="m", HF_TOKEN="hf_very_secret")
    assert settings.model.token.reveal() == "hf_very_secret"
    assert "hf_very_secret" not in f"{settings} {settings!r} {settings.model.token} {settings.model.token!s}"
    assert bool(settings.model.token)
    assert not Secret()


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
@pytest.mark.parametrize(
    "token", ["hf_one\nhf_two", "hf_one\r\nX-Other: 1", "hf_one hf_two", "hf_one\thf_two", "hf_one…", "hf_one\x7f", "hf_oné"]
)
def test_a_secret_that_no_header_can_carry_is_refused_by_its_name_alone(name: str, token: str) -> None:
    found = problems(MODEL="m", **{name: token})
    assert found == [f"{name}: got ***, expected printable ASCII without blanks or line breaks"]


def test_white_space_around_a_secret_is_not_part_of_it() -> None:
    assert read(MODEL="m", HF_TOKEN=" hf_one\n").model.token.reveal() == "hf_one"


@pytest.mark.parametrize(
    "address",
    ["https://hub:port", "http://hub:99999", "hub.example.com", "ftp://hub", "http://", "https://[::1", "http://a b", "http://hü\u0308b"],
)
def test_an_address_that_no_hub_can_have_is_refused_with_the_other_problems(address: str) -> None:
    expected = f"HF_ENDPOINT: got {address!r}, expected the address of a hub, such as https://huggingface.co"
    assert problems(MODEL="m", HF_ENDPOINT=address, PORT="-1") == ["PORT: got '-1', expected a number from 0 to 65535", expected]


@pytest.mark.parametrize("address", ["https://hf-mirror.com", "http://127.0.0.1:8080/", "http://[::1]:80", "https://host/hub"])
def test_the_address_of_a_hub_is_taken_as_it_is(address: str) -> None:
    assert read(MODEL="m", HF_ENDPOINT=address).model.endpoint == address


def test_an_account_in_a_wrong_address_of_the_hub_is_not_repeated() -> None:
    found = problems(MODEL="m", HF_ENDPOINT="htps://me:sesame@hub.example.com")
    assert found == ["HF_ENDPOINT: got 'htps://hub.example.com', expected the address of a hub, such as https://huggingface.co"]
