"""What the replay server answers: the recorded bytes, or an unmistakable miss."""

import json

import pytest

from tests.twins.replay.child import Child, running
from tests.twins.replay.recordings import RELEASES, SETUPS, Recording, load

pytestmark = pytest.mark.anyio

HELLO = {"messages": [{"role": "user", "content": '@@{"text":"Hello there, how are you today?"}@@'}]}
KEY = "Bearer sk-test"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"


def sent(path: str, body: object | None = None, **headers: str) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"Content-Length: {len(data)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


ALL = {release: load(release) for release in RELEASES}
SERVERS = [(release, setup) for release in ALL for setup in SETUPS if any(one.setup == setup for one in ALL[release])]


def of(release: str, setup: str) -> list[Recording]:
    return [one for one in ALL[release] if one.setup == setup]


def twins(recording: Recording, among: list[Recording]) -> list[bytes]:
    """The answers recorded for exactly this request; FastDeploy gives each its own ids."""
    ours = (recording.request.method, recording.request.path, recording.request.body, recording.request.headers.get("authorization"))
    return [
        one.raw
        for one in among
        if (one.request.method, one.request.path, one.request.body, one.request.headers.get("authorization")) == ours
    ]


@pytest.mark.parametrize(("release", "setup"), SERVERS, ids=[f"{release}-{setup}" for release, setup in SERVERS])
async def test_every_recorded_request_gets_the_recorded_bytes_and_probes_always_answer(release: str, setup: str) -> None:
    keys = ("--api-key", "sk-test") if setup in {"b", "c"} else ()
    async with running(release, "--setup", setup, *keys) as server:
        for recording in of(release, setup):
            if recording.raw:
                assert await server.exchange(recording.request.wire) in twins(recording, of(release, setup)), recording.case
        key = {"Authorization": KEY} if keys else {}
        assert [(await answer(server, path, **key))[0] for path in ("/health", "/ping", "/v1/models")] == [200, 200, 200]
        answered = [entry["case"] for entry in await server.seen()]
    assert len(answered) == sum(bool(recording.raw) for recording in of(release, setup)) + 3


def test_all_three_releases_are_there_with_every_set_up_they_were_recorded_on() -> None:
    assert {release: len(recordings) for release, recordings in ALL.items()} == {"2.3": 150, "2.4": 133, "2.5": 95}
    assert len(SERVERS) == 7


async def answer(server: Child, path: str, body: object | None = None, **headers: str) -> tuple[int, bytes]:
    raw = await server.exchange(sent(path, body, **headers))
    head, _, payload = raw.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), payload


async def test_an_unrecorded_request_is_a_501_that_names_the_closest_recording() -> None:
    async with running("2.3") as server:
        status, payload = await answer(server, "/v1/chat/completions", {**HELLO, "stream": True, "made_up": 1})
        unknown_status, unknown = await answer(server, "/v1/made-up", {})
    error = json.loads(payload)["error"]
    assert (status, error["type"], error["closest"]) == (501, "replay_miss", "base_chat_stream")
    assert error["differences"] == ["made_up recorded (absent), got 1"]
    assert unknown_status == 501
    assert json.loads(unknown)["error"]["closest"] is None
    assert sum(line.startswith("replay miss: POST /v1/") for line in server.lines) == 2


async def test_key_order_does_not_count_and_values_do() -> None:
    async with running("2.3") as server:
        status, payload = await answer(server, "/v1/chat/completions", {"stream": True, "messages": [{**HELLO["messages"][0]}]})
        assert (status, payload.count(b"data: ")) == (200, 18)
        assert (await answer(server, "/v1/chat/completions", {**HELLO, "stream": 1}))[0] == 501


async def test_a_header_or_a_body_field_selects_a_recording_of_any_set_up() -> None:
    async with running("2.3") as server:
        by_header = await answer(server, "/v1/chat/completions", {}, X_Replay_Case="b_think_explicit_stream")
        by_field = await answer(server, "/v1/chat/completions", {"x_replay_case": "x1_tool1"})
        unknown = await answer(server, "/v1/chat/completions", {"x_replay_case": "x1_tool9"})
    assert by_header[0] == by_field[0] == 200
    assert json.loads(by_field[1])["choices"][0]["finish_reason"] == "tool_calls"
    assert unknown[0] == 501
    assert b"no such case: x1_tool9" in unknown[1]


async def test_a_fallback_answers_unrecorded_requests_of_its_form_only() -> None:
    async with running("2.3", "--fallback", "base_chat_stream_length") as server:
        probe = {"messages": [{"role": "user", "content": "ready?"}], "max_tokens": 1}
        assert (await answer(server, "/v1/chat/completions", {**probe, "stream": True}))[0] == 200
        assert (await answer(server, "/v1/chat/completions", probe))[0] == 501


async def test_the_same_request_is_answered_as_its_set_up_answered_it() -> None:
    named = {"model": "my-model", "messages": [{"role": "user", "content": '@@{"text":"Hello there"}@@'}]}
    async with running("2.3", "--setup", "b") as with_parser, running("2.3", "--setup", "c") as without:
        assert (await answer(with_parser, "/v1/chat/completions", named))[0] == 500  # the parser's bug without </think>
        assert (await answer(without, "/v1/chat/completions", named))[0] == 200


async def test_a_key_is_wanted_below_v1_only_and_only_if_the_server_was_given_one() -> None:
    thought = {"messages": [{"role": "user", "content": '@@{"text":"Hello there"}@@'}]}
    async with running("2.3", "--setup", "b", "--api-key", "sk-test") as guarded:
        assert (await answer(guarded, "/v1/chat/completions", thought))[0] == 401
        assert (await answer(guarded, "/v1/chat/completions", thought, Authorization=KEY))[0] == 500
        assert (await answer(guarded, "/v1/made-up"))[1] == b'{"error":"Unauthorized"}'
        assert (await answer(guarded, "/health"))[0] == 200
    async with running("2.3", "--setup", "b") as free, running("2.3", env={"FD_API_KEY": "k"}) as guarded_by_variable:
        assert (await answer(free, "/v1/chat/completions", thought))[0] == 500
        assert (await answer(guarded_by_variable, "/v1/models"))[0] == 401


async def test_a_request_that_was_never_answered_is_never_answered() -> None:
    body = {**HELLO, "min_tokens": -1}
    async with running("2.3") as server:
        await server.abandon(sent("/v1/chat/completions", body))
        (entry,) = await server.seen(ended=1)
    assert (entry["case"], entry["bytes"], entry["ended"]) == ("base_err_min_tokens_neg", 0, "aborted-by-client")


async def test_it_lists_what_it_saw() -> None:
    async with running("2.3") as server:
        await answer(server, "/v1/chat/completions", {**HELLO, "stream": True}, X_Test="1")
        (entry,) = await server.seen()
    assert (entry["method"], entry["path"], entry["headers"]["x-test"]) == ("POST", "/v1/chat/completions", "1")
    assert json.loads(entry["body"]) == {**HELLO, "stream": True}
    assert (entry["ended"], entry["events"], entry["events_total"]) == ("finished", 18, 18)
    assert entry["started"] <= entry["first_byte"] <= entry["last_event"] <= entry["ended_at"]


async def test_a_body_sent_in_chunks_is_read_as_one() -> None:
    data = json.dumps({**HELLO, "stream": True}).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (data[:7], data[7:]))
    async with running("2.3") as server:
        raw = await server.exchange(HEAD + chunks + b"0\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 200 OK")


async def test_what_is_no_request_closes_the_connection() -> None:
    async with running("2.3") as server:
        assert await server.exchange(b"hello\r\n\r\n") == b""
        assert (await answer(server, "/health"))[0] == 200
