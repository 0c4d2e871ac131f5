"""Every recorded request once more, through the worker and the official client: the recorded answer, or the error that fits the mistake.

A worker process with its HTTP face stands before a replay of each release and server set-up that was recorded. The expected error of each
mistake is written down here from what the caller did, never read off the worker.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from tests.handler.test_http import ready, serving
from tests.handler.worker_process import replayed_engine
from tests.twins.replay.recordings import RELEASES, Recording, json_object, load, named
from tests.twins.replay.said import Call, Choice, Said, said_recorded, said_streamed, said_whole

LONGEST_S = 10.0
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LIBRARY = {release: load(release) for release in RELEASES}
ALL = [(release, one) for release, recordings in LIBRARY.items() for one in recordings if not one.case.endswith("_on_generate")]
"""All but two requests that FastDeploy refused for want of a model, which the worker names: of what it says then there is no recording."""

SERVED = {"base": "tiny-qwen3", "b": "my-model", "c": "my-model", "x1": "tiny-x1"}
FLAGS = {
    "base": {},
    "b": {"REASONING_PARSER": "qwen3", "ENABLE_LOGPROB": "1"},
    "c": {"ENABLE_LOGPROB": "1"},
    "x1": {"REASONING_PARSER": "ernie-x1", "TOOL_CALL_PARSER": "ernie-x1"},
}

BAD, LOST, FAILED = openai.BadRequestError, openai.NotFoundError, openai.InternalServerError
OURS, THEIRS = "worker", "engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A request that fails: by what the caller did, as which class, and who says so."""

    error: type[openai.APIStatusError] | tuple[type[openai.APIStatusError], ...]
    by: str
    why: str
    releases: tuple[str, ...] = tuple(LIBRARY)


REFUSED_HERE = {
    "base_chat_stop_too_many": "more stops than the engine takes",
    "base_chat_logprobs": "logprobs where the deployment gives none",
    "base_chat_logprobs_stream": "logprobs where the deployment gives none",
    "base_cmpl_logprobs": "logprobs where the deployment gives none",
    "base_cmpl_empty_prompt": "an empty prompt",
    "base_cmpl_no_prompt": "no prompt",
    "base_err_empty_messages": "no message",
    "base_err_bad_json": "no JSON",
    "base_err_body_list": "no object",
    "base_err_no_body": "no body",
    "base_err_temperature_neg": "a temperature below 0",
    "base_err_temperature_str": "a temperature that is no number",
    "base_err_top_p": "a top_p above 1",
    "base_err_max_tokens_0": "no token to be made",
    "base_err_max_tokens_neg": "less than no token to be made",
    "base_err_min_tokens_neg": "min_tokens below 0, which FastDeploy never answers",
    "base_err_n_0": "no answer to be made, which FastDeploy answers with nothing",
    "base_err_stream_options_no_stream": "stream_options without a stream",
    "base_err_top_logprobs_no_logprobs": "top_logprobs without logprobs",
    "base_err_two_guided": "two grammars",
    "base_err_message_no_role": "a message without a role",
    "base_err_message_str": "a message that is no object",
    "base_err_messages_str": "messages that are no list",
    "base_err_prompt_token_ids_oov": "a token id that is none",
    "b_logprobs_21": "more alternatives than the engine gives",
    "c_logprobs_21": "more alternatives than the engine gives",
}

REFUSED_THERE = {
    "base_chat_stop_too_long": "a stop of more tokens than the engine takes",
    "base_err_too_long": "a prompt longer than the context",
    "base_err_too_long_stream": "a prompt longer than the context",
    "base_err_cmpl_too_long": "a prompt longer than the context",
}


def _mistakes() -> Iterator[tuple[str, Mistake]]:
    names = ("base_chat_model_any", "b_model_bad", "b_model_bad_stream", "b_model_bad_cmpl", "b_model_empty")
    closed = "health load unknown_route openapi version config_info_main update_model_weight clear_load_weight".split()
    yield from ((case, Mistake(error=BAD, by=OURS, why=why)) for case, why in REFUSED_HERE.items())
    yield from ((case, Mistake(error=BAD, by=THEIRS, why=why)) for case, why in REFUSED_THERE.items())
    yield from ((case, Mistake(error=LOST, by=OURS, why="a model that is not served")) for case in names)
    yield from ((f"base_get_{case}", Mistake(error=LOST, by=OURS, why="a route that stays inside")) for case in closed)
    yield "b_auth_none_health", Mistake(error=LOST, by=OURS, why="a route that stays inside")
    yield "b_auth_none_metrics_like", Mistake(error=LOST, by=OURS, why="a route that stays inside")
    yield "base_err_no_messages", Mistake(error=(BAD, LOST), by=OURS, why="no messages, and a model that is not served")
    yield "base_err_reasoning_max_tokens_0", Mistake(error=BAD, by=OURS, why="no token to think, which 2.4 allows", releases=("2.3",))
    yield "base_get_is_paused", Mistake(error=LOST, by=OURS, why="a route that stays inside")
    yield "base_get_wrong_method_chat", Mistake(error=openai.APIStatusError, by=OURS, why="GET, where POST is wanted")
    yield "base_post_ping", Mistake(error=openai.APIStatusError, by=OURS, why="POST, where GET is wanted")
    # No mistake at all: FastDeploy's parser qwen3 fails on its own, and of these no stream was recorded, which would not fail.
    yield from ((case, Mistake(error=FAILED, by=THEIRS, why="none")) for case in ("b_logprobs_0", "b_logprobs_notop"))
    yield "b_prompt_logprobs", Mistake(error=FAILED, by=THEIRS, why="none, 2.3 does not know of prompt_logprobs", releases=("2.3",))
    yield "b_prompt_logprobs", Mistake(error=BAD, by=THEIRS, why="prompt_logprobs that the deployment cannot give", releases=("2.4",))


MISTAKES = list(_mistakes())
STATUS = {"base_get_wrong_method_chat": 405, "base_post_ping": 405}

ESCAPED = {
    **dict.fromkeys(("b_auth_none_chat", "b_auth_bad_chat", "b_auth_basic_chat"), "b_think_nothink_stream"),
    **dict.fromkeys(("b_model_named", "b_model_default", "b_model_missing", "b_model_null", "b_think_nothink"), "b_think_nothink_stream"),
    "b_logprobs": "b_logprobs_stream",
    "b_cmpl_logprobs": "b_cmpl_logprobs_stream",
    "base_err_seed_neg": "base_chat_basic",
    "base_chat_metadata": "base_chat_template_kwargs",
}
"""Failures that the worker's callers do not meet, and what was recorded of what they get instead: the parser qwen3 fails on whole answers
only, keys are the platform's business and not the engine's, a null model is no model, a seed of -1 is no seed, and `enable_thinking` in
metadata reached no template."""

SPACED = ("b_think_implicit", "b_think_tool")
"""Whole answers around whose parts the parser strips white space that a stream keeps, and counts among the thoughts."""

MODELS = ("base_get_v1_models", "b_auth_none_models", "b_auth_ok_models")
INSIDES = ("Traceback", "/opt/", "site-packages", '.py\\"', "pydantic", "fastdeploy.utils")


def mistake(release: str, one: Recording) -> Mistake | None:
    return next((told for case, told in MISTAKES if case == one.case and release in told.releases), None)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of one request."""

    said: Said | None = None
    value: Any = None
    """The answer of another route than the two for completions."""
    models: set[str] = field(default_factory=set)
    error: Exception | None = None
    text: str = ""
    """All that the client received."""
    seconds: float = 0.0
    engine: list[dict[str, Any]] = field(default_factory=list)
    """What the engine saw meanwhile."""


def outcomes(release: str, setup: str) -> dict[str, Outcome]:
    """What came of each request that was recorded on that set-up."""
    if (release, setup) not in RUNS:
        with ThreadPoolExecutor(1) as pool:
            RUNS[release, setup] = pool.submit(lambda: asyncio.run(ask_everything(release, setup)))
    return RUNS[release, setup].result()


RUNS: dict[tuple[str, str], Future[dict[str, Outcome]]] = {}
"""Each set-up is asked once, and whatever came of it is kept, a worker that does not start included."""


async def ask_everything(release: str, setup: str) -> dict[str, Outcome]:
    """Start the worker of one set-up, and send it each request that was recorded there, one after the other."""
    engine = replayed_engine("--setup", setup, "--twins", release=release, fallbacks=("base_cmpl_stream",))
    variables = engine | {"SERVED_MODEL_NAME": SERVED[setup], "MAX_MODEL_LEN": "4096", **FLAGS[setup]}
    found = {}
    async with serving(variables) as (worker, url), aiohttp.ClientSession() as session:
        await ready(session, url)
        seen = await seen_by(session, worker.engine_url)
        assert [entry["by"] for entry in seen if entry["method"] == "POST"] == ["fallback"], "only the worker's own question"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            for one in (one for one in LIBRARY[release] if one.setup == setup):
                found[one.case] = await outcome(client, one)
                before, seen = len(seen), await seen_by(session, worker.engine_url)
                found[one.case].engine = seen[before:]
    return found


async def seen_by(session: aiohttp.ClientSession, engine_url: str) -> list[dict[str, Any]]:
    async with session.get(f"{engine_url}/__seen") as answer:
        entries: list[dict[str, Any]] = await answer.json()
    return entries


async def outcome(client: openai.AsyncOpenAI, one: Recording) -> Outcome:
    made, started = Outcome(), time.monotonic()
    try:
        await asyncio.wait_for(ask(client, one, made), LONGEST_S)
    except openai.APIStatusError as error:
        made.error, made.text = error, error.response.text
    except (openai.APIError, asyncio.TimeoutError) as error:
        made.error = error
    made.seconds = time.monotonic() - started
    return made


async def ask(client: openai.AsyncOpenAI, one: Recording, made: Outcome) -> None:
    """Send a recorded request as the official client sends it, and read its answer with the client's own types."""
    body, path = json_object(one.request.body), one.request.path
    if one.request.method == "GET":
        made.value = await client.get(path, cast_to=object)
    elif path not in {CHAT, TEXT} or not body:
        headers = {"Content-Type": one.request.headers.get("content-type", "application/json")}
        made.value = await client.post(path, cast_to=object, content=one.request.body, options={"headers": headers})
    else:
        # Text completions are not validated in a stream: null for a reason that is yet to come, which OpenAI sends, is not in its type.
        is_lax = path == TEXT and body.get("stream")
        base = str(client.base_url).rstrip("/") + "/v1"
        strict = client.with_options(base_url=base, _extra_kwargs={"_strict_response_validation": not is_lax})
        await complete(strict, path, body, made)
    if made.value is not None:
        made.text = json.dumps(made.value)


async def complete(client: openai.AsyncOpenAI, path: str, body: dict[str, Any], made: Outcome) -> None:
    prompt = "messages" if path == CHAT else "prompt"
    named = {name: body.get(name, openai.omit) for name in ("model", prompt, "stream")}
    rest = {name: value for name, value in body.items() if name not in named}
    create: Any = client.chat.completions.create if path == CHAT else client.completions.create
    answer = await create(**named, extra_body=rest)
    if isinstance(answer, (ChatCompletion, Completion)):
        values, made.said = [answer.to_dict()], said_whole(answer.to_dict())
    else:
        values = [chunk.to_dict() async for chunk in answer]
        made.said = said_streamed(values)
    made.models = {str(value["model"]) for value in values}
    made.text = json.dumps(values)


def cases(*, fail: bool) -> pytest.MarkDecorator:
    chosen = [(release, one) for release, one in ALL if bool(mistake(release, one)) is fail]
    return pytest.mark.parametrize(("release", "one"), chosen, ids=[f"{release}-{one.case}" for release, one in chosen])


def expected(release: str, one: Recording) -> Said:
    """What was recorded of a request, or of the stream that its caller gets instead, with the repairs of what 2.3 does to tool calls."""
    case = ESCAPED.get(one.case, one.case)
    said = said_recorded(named(release, case).raw)
    assert said, f"{one.case} failed when it was recorded, and stands in no table"
    return replace(said, choices={index: replace(choice, calls=callable_calls(choice)) for index, choice in said.choices.items()})


def callable_calls(choice: Choice) -> tuple[Call, ...]:
    """Without the space before the arguments, and without a call that has no name."""
    return tuple(replace(call, arguments=call.arguments.lstrip()) for call in choice.calls if call.name)


def stripped(said: Said) -> Said:
    choices = {index: replace(one, text=one.text.strip(), thought=one.thought.strip()) for index, one in said.choices.items()}
    return Said(choices=choices, usage=said.usage and (*said.usage[:3], 0))


@cases(fail=False)
def test_what_was_recorded_is_what_the_official_client_reads(release: str, one: Recording) -> None:
    came = outcomes(release, one.setup)[one.case]
    assert came.error is None, came.text or came.error
    if came.said is None:
        check_other_route(one, came)
        return
    wanted = expected(release, one)
    if one.case in SPACED:
        came.said, wanted = stripped(came.said), stripped(wanted)
    assert came.said.choices == wanted.choices
    if one.case not in ESCAPED:
        assert came.said.usage == wanted.usage
    asked = json_object(one.request.body)
    assert came.models == {asked.get("model") or SERVED[one.setup]}
    assert (came.said.usage is None) == (bool(asked.get("stream")) and not wants_usage(asked))


def wants_usage(asked: dict[str, Any]) -> bool:
    """FastDeploy's rule: stream_options of any kind, unless it says no, or wants it with every token."""
    options = asked.get("stream_options", {"include_usage": False})
    return bool(options.get("include_usage", True) or options.get("continuous_usage_stats"))


def check_other_route(one: Recording, came: Outcome) -> None:
    if one.request.path == "/ping":
        assert came.value == ""
    elif one.request.path == "/metrics":
        assert "worker_requests_total" in came.value, "the worker's own"
    elif one.case in MODELS:
        (model,) = came.value["data"]
        assert (model["object"], model["max_model_len"]) == ("model", 4096)
        assert model["id"] == model["root"] == SERVED[one.setup]
    else:
        assert came.value == json_object(one.body)


@cases(fail=True)
def test_a_mistake_arrives_as_the_class_of_error_that_it_is(release: str, one: Recording) -> None:
    came, told = outcomes(release, one.setup)[one.case], mistake(release, one)
    assert told
    assert isinstance(came.error, told.error), came.error
    assert isinstance(came.error, openai.APIStatusError)
    assert came.error.status_code == STATUS.get(one.case, came.error.status_code)
    if one.request.path.startswith("/v1/"):
        error = came.error.body
        assert isinstance(error, dict)
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert error["type"]


@pytest.mark.parametrize(("release", "one"), ALL, ids=[f"{release}-{one.case}" for release, one in ALL])
def test_nobody_waits_or_reads_of_the_engines_insides_and_the_engine_sees_only_what_it_can_answer(release: str, one: Recording) -> None:
    came, told = outcomes(release, one.setup)[one.case], mistake(release, one)
    assert came.seconds < LONGEST_S
    assert not [word for word in INSIDES if word in came.text], came.text
    here = one.request.path in {"/ping", "/metrics"} or (told and told.by == OURS)
    assert [entry["by"] in {"recording", "twin"} for entry in came.engine] == ([] if here else [True]), came.engine


@pytest.mark.parametrize(("release", "streamed"), [("2.3", True), ("2.4", False)])
def test_a_field_that_a_release_does_not_know_costs_nobody_the_stream_that_escapes_the_parsers_failure(
    release: str, streamed: bool
) -> None:
    (entry,) = outcomes(release, "b")["b_prompt_logprobs"].engine
    assert json.loads(entry["body"]).get("stream", False) is streamed


def test_a_request_for_embeddings_without_a_model_reaches_the_engine_with_the_one_that_is_served() -> None:
    for release in LIBRARY:
        (entry,) = outcomes(release, "base")["base_embeddings_on_generate"].engine
        assert json.loads(entry["body"]) == {"input": "hi", "model": SERVED["base"]}


def test_the_tables_name_recorded_cases_only() -> None:
    assert len(ALL) == 372
    assert {*(case for case, _ in MISTAKES), *ESCAPED, *ESCAPED.values(), *SPACED, *MODELS} <= {one.case for _, one in ALL}


@pytest.fixture(scope="module", autouse=True)
def _table() -> Iterator[None]:
    """Print what came of each set-up (seen with -s)."""
    yield
    print("\nrelease  set-up  cases  parsed  refused by the worker  errors")
    for (release, setup), run in RUNS.items():
        came = {} if run.exception() else run.result()
        errors = Counter(type(one.error).__name__ for one in came.values() if one.error)
        refused = sum(bool(one.error) and not one.engine for one in came.values())
        parsed = len(came) - errors.total()
        shown = ", ".join(f"{count} {name}" for name, count in errors.most_common())
        print(f"{release:7}  {setup:6}  {len(came):5}  {parsed:6}  {refused:21}  {shown}")
