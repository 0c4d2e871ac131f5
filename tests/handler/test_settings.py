from __future__ import annotations

import json
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
        ({"MODEL_NAME": "alias/m", "MODEL": "own/m"}, {}, ("own/m", 8)),
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
    ],
)
def test_a_bad_baked_file_is_named_with_what_is_wrong_in_it(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "local_model_args.json"
    file.write_text(text)
    with pytest.raises(InvalidSettings, match=words.replace("?", r"\?")):
        read_settings({"MODEL": "m"}, baked=file)


def test_a_baked_file_that_cannot_be_read_is_a_problem_and_a_missing_one_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="cannot be read"):
        read_settings({"MODEL": "m"}, baked=tmp_path)
    assert read_settings({"MODEL": "m"}, baked=tmp_path / "none").model.source == "m"


def test_defaults_are_those_of_the_table() -> None:
    settings = read(MODEL="org/name")
    assert settings.batch == BatchLimits(minimum=1, maximum=50, growth=3.0)
    assert settings.model.served_name == "org/name"
    assert settings.limits.max_concurrency == 4 * settings.engine.max_num_seqs == 32
    assert not settings.model.token


def test_all_problems_come_at_once() -> None:
    found = problems(MAX_NUM_SEQS="many", ENGINE="gpu", MAX_MODEL_LN="9", DEFAULT_MIN_BATCH_SIZE="60", LOG_LEVEL="loud")
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
        ("DEFAULT_BATCH_SIZE_GROWTH_FACTOR", "0.9", "expected a number from 1 to 1000"),
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
            assert variable.parse(str(variable.default)) == variable.default
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
