"""Answers bound to a form: what comes is of that form, streamed or whole, and what cannot be a form is a 400 that costs little."""

from __future__ import annotations

import atexit
import itertools
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_engine.answer_form import AnswerForm, read_form
from cpu_engine.call_text import CallText
from cpu_engine.checkpoint import load
from cpu_engine.constraint import Constraint, ConstraintError
from cpu_engine.json_fields import Fields
from cpu_engine.refusals import BadRequest
from tests import DEMO
from tests.cpu_engine.child import PATIENCE, Engine, Reply, running
from tests.strategies import SETTINGS

_, READER = load(DEMO, served_name=None, max_model_len=2000, threads=1, memory=None)
atexit.register(READER.close)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", 'b/\\"', "\u6771"]}, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags", "more"],
    "additionalProperties": False,
}
TREE = {"$defs": {"node": {"type": "object", "properties": {"left": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running("--served-model-name", "demo", "--max-model-len", "2048") as made:
        yield made


def said(reply: Reply) -> str:
    assert reply.status == 200, reply.body
    choices = [choice for event in (reply.events if reply.body.startswith(b"data: ") else [reply.json]) for choice in event["choices"]]
    return "".join(str(choice.get("text", (choice.get("delta") or choice.get("message") or {}).get("content"))) for choice in choices)


def is_person(text: str) -> bool:
    return jsonschema.Draft202012Validator(PERSON).is_valid(json.loads(text))


FORMS: list[tuple[dict[str, Any], Any]] = [
    ({"response_format": {"type": "json_object"}}, lambda text: isinstance(json.loads(text), dict)),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}},
        is_person,
    ),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}}, lambda text: isinstance(json.loads(text), dict)),
    ({"guided_json": PERSON}, is_person),
    ({"guided_json": json.dumps(PERSON)}, is_person),
    ({"guided_json": TREE}, lambda text: isinstance(json.loads(text), dict)),
    ({"guided_regex": r"[a-c]{3}/\d+(\.5)?"}, lambda text: re.fullmatch(r"[a-c]{3}/\d+(\.5)?", text)),
    ({"guided_regex": "日(本|語)\n?"}, lambda text: re.fullmatch("日(本|語)\n?", text)),
    ({"guided_choice": ["yes", 'no "\\', "東京\n"]}, lambda text: text in {"yes", 'no "\\', "東京\n"}),
    ({"guided_grammar": 'start: "a" b\nb: "b" | "c" b'}, lambda text: re.fullmatch("ac*b", text)),
    ({"guided_grammar": 'root ::= "a" | "b" root'}, lambda text: re.fullmatch("b*a", text)),
]


@pytest.mark.parametrize(("fields", "holds"), FORMS, ids=[json.dumps(fields)[:60] for fields, _ in FORMS])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_has_the_form_that_was_asked_for_streamed_or_whole(
    engine: Engine, fields: dict[str, Any], holds: Any, temperature: float
) -> None:
    asked = {"max_tokens": 400, "temperature": temperature, "seed": 3, **fields}
    for reply in (engine.chat(**asked), engine.chat(**asked, stream=True), engine.complete(**asked)):
        text = said(reply)
        assert text
        if reply.body.find(b'"finish_reason":"length"') < 0:
            assert holds(text), text
    assert said(engine.chat(**asked)) == said(engine.chat(**asked, stream=True))


def test_each_of_several_choices_is_bound_and_other_requests_are_not(engine: Engine) -> None:
    reply = engine.chat(n=4, temperature=1.5, seed=1, guided_choice=["yes", "no", "perhaps"])
    texts = [choice["message"]["content"] for choice in reply.json["choices"]]
    assert set(texts) <= {"yes", "no", "perhaps"}
    assert said(engine.chat()) == said(engine.chat())
    assert "FastDeploy" in said(engine.chat())


def test_a_form_that_is_whole_ends_the_answer_and_one_cut_by_max_tokens_is_told_so(engine: Engine) -> None:
    whole = engine.chat(guided_regex="ab", max_tokens=50).json["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == ("ab", "stop")
    longer = engine.chat(guided_regex="ab", min_tokens=20, max_tokens=50).json["choices"][0]
    assert (longer["message"]["content"], longer["finish_reason"]) == ("ab", "stop")
    cut = engine.chat(guided_json=PERSON, max_tokens=2).json["choices"][0]
    assert cut["finish_reason"] == "length"


def function(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **({"parameters": parameters} if parameters else {})}}


CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "東京"]}}, "required": ["city"], "additionalProperties": False}
TOOLS = [function("weather", **CITY), function("clock"), function('odd "\\ name', type="object", properties={}, additionalProperties=False)]


@pytest.mark.parametrize("choice", ["required", *({"type": "function", "function": {"name": tool["function"]["name"]}} for tool in TOOLS)])
def test_a_demanded_call_is_a_call_of_a_tool_with_arguments_of_its_schema_streamed_or_whole(engine: Engine, choice: Any) -> None:
    asked = {"tools": TOOLS, "tool_choice": choice, "temperature": 1, "seed": 2, "max_tokens": 300}
    schemas = {tool["function"]["name"]: tool["function"].get("parameters", {"type": "object"}) for tool in TOOLS}
    whole = engine.chat(**asked).json["choices"][0]
    (call,) = whole["message"]["tool_calls"]
    assert (call["type"], whole["message"]["content"]) == ("function", "")
    if whole["finish_reason"] != "length":
        assert whole["finish_reason"] == "tool_calls"
        jsonschema.validate(json.loads(call["function"]["arguments"]), schemas[call["function"]["name"]])
    if choice != "required":
        assert call["function"]["name"] == choice["function"]["name"]
    deltas = [event["choices"][0] for event in engine.chat(**asked, stream=True).events]
    pieces = [piece for delta in deltas for piece in delta["delta"].get("tool_calls") or []]
    assert pieces[0]["id"]
    assert [piece["index"] for piece in pieces] == [0] * len(pieces)
    assert [piece["function"]["name"] for piece in pieces if "name" in piece["function"]] == [call["function"]["name"]]
    assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]
    assert "".join(delta["delta"]["content"] for delta in deltas) == ""
    assert deltas[-1]["finish_reason"] == whole["finish_reason"]


def test_a_call_that_is_cut_keeps_the_arguments_that_it_has(engine: Engine) -> None:
    choice = engine.chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}}, max_tokens=1).json["choices"][0]
    assert (choice["finish_reason"], choice["message"]["tool_calls"]) == ("length", None)


def test_the_official_client_parses_a_schema_and_runs_a_tool(engine: Engine) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{engine.port}/v1", api_key="none", timeout=PATIENCE, max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "What is the weather?"}]
        tools: Any = TOOLS[:1]
        first = client.chat.completions.create(model="demo", messages=messages, tools=tools, tool_choice="required", temperature=0)
        (call,) = first.choices[0].message.tool_calls or []
        messages += [first.choices[0].message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": '{"now": "sunny"}'}]
        second = client.chat.completions.create(model="demo", messages=messages, tools=tools, max_tokens=20)
        assert second.choices[0].finish_reason in {"stop", "length"}


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}}),
    ("response_format.json_schema", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}}),
    ("response_format", {"response_format": {"type": "xml"}}),
    ("response_format", {"response_format": "json"}),
    ("guided_json", {"guided_json": {"not": {"type": "string"}}}),
    ("guided_json", {"guided_json": {"$ref": "http://127.0.0.1/schema"}}),
    ("guided_json", {"guided_json": {"$ref": "#"}}),
    ("guided_json", {"guided_json": {"$ref": "#/nowhere"}}),
    ("guided_json", {"guided_json": {"type": "string", "pattern": "("}}),
    ("guided_json", {"guided_json": "{"}),
    ("guided_json", {"guided_json": 5}),
    ("guided_regex", {"guided_regex": "a("}),
    ("guided_regex", {"guided_regex": "(?=a)b"}),
    ("guided_regex", {"guided_regex": ["a"]}),
    ("guided_choice", {"guided_choice": []}),
    ("guided_choice", {"guided_choice": "yes"}),
    ("guided_grammar", {"guided_grammar": "no grammar"}),
    ("guided_grammar", {"guided_grammar": "root ::= ((("}),
    ("guided_grammar", {"guided_grammar": "start: start"}),
    ("guided_regex", {"guided_regex": "a", "guided_json": {}}),
    ("guided_regex", {"guided_regex": "a", "response_format": {"type": "json_object"}}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tool_choice", {"tool_choice": "always", "tools": TOOLS}),
    ("tool_choice", {"tool_choice": {"type": "function"}, "tools": TOOLS}),
    ("tool_choice", {"tool_choice": {"type": "function", "function": {"name": "unknown"}}, "tools": TOOLS}),
    ("tool_choice", {"tool_choice": "required", "tools": TOOLS, "guided_regex": "a"}),
    ("tools", {"tool_choice": "required", "tools": [TOOLS[0], TOOLS[0]]}),
    ("tools", {"tool_choice": "required", "tools": [{"type": "function"}]}),
    ("tool_choice", {"tool_choice": "required", "tools": [function("f", type="object", properties={"a": {"type": "nothing"}})]}),
]


@pytest.mark.parametrize(("param", "fields"), WRONG, ids=[json.dumps(fields)[:70] for _, fields in WRONG])
def test_what_cannot_be_a_form_is_a_400_that_names_the_field(param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        READER.read("chat", json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode())
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(param)
    assert "\n" not in caught.value.message


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


HUGE: list[dict[str, Any]] = [
    {"guided_json": {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(5000)}}},
    {"guided_json": {"enum": [f"value {number}" for number in range(20_000)]}},
    {"guided_json": nested(300)},
    {"guided_choice": ["x" * 200_000]},
    {"guided_regex": "a" * 200_000},
    {"guided_grammar": "start: " + " | ".join('"a"' for _ in range(50_000))},
]


@pytest.mark.parametrize("fields", HUGE, ids=[next(iter(fields)) for fields in HUGE])
def test_an_enormous_form_is_refused_for_a_fraction_of_what_it_would_cost(fields: dict[str, Any]) -> None:
    """Rule: bounded in size, and so in processor time; llguidance takes 38 s for the first."""
    began = time.thread_time()
    with pytest.raises(BadRequest) as caught:
        READER.read("chat", json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode())
    assert time.thread_time() - began < 3
    assert caught.value.param == next(iter(fields))


LARGE: list[dict[str, Any]] = [
    {"guided_json": {"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"}},
    {"guided_json": {"type": "array", "minItems": 100_000, "items": {"type": "string"}}},
    {"guided_regex": "((((a|b){1,200}){1,200}){1,200}){1,200}"},
    {"guided_grammar": "start: a+\na: /[a-z]*/ | /[a-y]*/"},
    {"tool_choice": "required", "tools": [function(f"f{number}", **PERSON) for number in range(60)]},
]


@pytest.mark.parametrize("fields", LARGE, ids=[next(iter(fields)) for fields in LARGE])
def test_a_form_without_end_costs_each_step_little(fields: dict[str, Any]) -> None:
    request = READER.read("chat", json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode())
    constraint = request.specs[0].constraint
    assert constraint is not None
    began = time.thread_time()
    for _ in range(50):
        if constraint.finished:
            break
        constraint.take(int(constraint.allowed().argmax()))
    assert time.thread_time() - began < 3


def constraint_of(grammar: str) -> Constraint:
    return READER.constraints.compile(AnswerForm(field="guided_grammar", grammar=grammar, calls={}))


def test_a_token_that_is_not_allowed_and_a_special_one_are_no_part_of_a_form() -> None:
    constraint = constraint_of("start: /[a-z<>\\/]+/")
    allowed = constraint.allowed()
    assert not allowed[sorted(READER.tokenizer.special_ids - READER.eos_token_ids)].any()
    with pytest.raises(ConstraintError):
        constraint.take(int((~allowed).argmax()))


@SETTINGS
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True), st.randoms(use_true_random=False))
def test_every_way_through_a_choice_is_one_of_its_texts_and_each_text_is_a_way(texts: list[str], random: Any) -> None:
    """Law: what a form allows, step by step, is the set of texts that have the form."""
    form = read_form("completion", Fields({"guided_choice": texts}))
    assert form is not None
    start = READER.constraints.compile(form)
    constraint, tokens = start.copy(), list[int]()
    while not constraint.finished:
        token = random.choice(constraint.allowed().nonzero()[0].tolist())
        if token in READER.eos_token_ids:
            break
        constraint.take(token)
        tokens.append(token)
    assert b"".join(map(READER.tokenizer.bytes_of, tokens)).decode() in texts


@SETTINGS
@given(
    st.sampled_from(["weather", 'odd "\\ name']),
    st.recursive(st.none() | st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_a_call_says_the_same_however_its_text_is_cut(name: str, arguments: object, cuts: list[int]) -> None:
    """Law: the joined deltas of a call are its name and its arguments."""
    begins = {f'{{"name": {json.dumps(known)}, "arguments": ': known for known in ("weather", 'odd "\\ name')}
    told = json.dumps(arguments, ensure_ascii=False)
    text = f'{{"name": {json.dumps(name)}, "arguments": {told}}}'
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    call, deltas = CallText(begins), list[Any]()
    for first, last in itertools.pairwise(places):
        deltas += call.feed(text[first:last], finish="stop" if last == len(text) else None)
    assert [delta["function"]["name"] for delta in deltas if "name" in delta["function"]] == [name]
    assert "".join(delta["function"]["arguments"] for delta in deltas) == told
    (whole,) = call.whole() or []
    assert whole["function"] == {"name": name, "arguments": told}
