"""What a page of another site can have a browser send: nothing of it is answered."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from tests.tools.serve.by_hand import JSON, Gateway, serving

pytestmark = pytest.mark.anyio

JOB = json.dumps({"input": {"prompt": "Hello"}})


async def send(gateway: Gateway, method: str, path: str, data: str | None = None, **headers: str) -> tuple[int, Any]:
    """Send a request whose headers are those given, with `_` for `-`, and JSON as its type unless another is given."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    url = path if path.startswith("http") else f"{gateway.base}/{path}"
    async with gateway.client.request(method, url, data=data, headers=JSON | given) as response:
        return response.status, await response.json(content_type=None) if response.content_type == "application/json" else None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:1", "127.evil.example", ""]
)
@pytest.mark.parametrize("path", ["health", "run", "openai/v1/models", "", "about.json"])
async def test_a_name_that_was_made_to_lead_here_reaches_nothing(host: str, path: str) -> None:
    """DNS rebinding: the page's own site has this address for a moment, so that its requests are of the same origin."""
    async with serving() as gateway:
        root = gateway.base.partition("/v2/")[0]
        where = f"{root}/{path}" if path in ("", "about.json") else path
        status, answer = await send(gateway, "POST" if path == "run" else "GET", where, JOB if path == "run" else None, Host=host)
        assert status == 403
        assert f"Host: got {host!r}, expected 127.0.0.1 or localhost" in json.dumps(answer)
        assert not gateway.table.entries


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:9000", "[::1]:8000", "127.0.0.1:"])
async def test_this_machines_own_names_are_answered_whatever_the_port(host: str) -> None:
    async with serving() as gateway:
        assert (await send(gateway, "GET", "health", Host=host))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000", "Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Origin": "https://127.0.0.1"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "run"), ("POST", "runsync"), ("POST", "openai/v1/chat/completions"), ("GET", "openai/v1/models"), ("POST", "purge-queue")],
)
async def test_a_page_of_another_site_has_nothing_done(headers: dict[str, str], method: str, path: str) -> None:
    async with serving() as gateway:
        queued = await gateway.run({"prompt": "x"})
        status, answer = await send(gateway, method, path, JOB if method == "POST" else None, **headers)
        assert status == 403
        assert "pages of other sites may not use this server" in json.dumps(answer)
        assert list(gateway.table.entries) == [queued]
        assert (await gateway.status(queued))["status"] == "IN_QUEUE"


async def test_the_page_of_this_server_and_programs_are_answered() -> None:
    async with serving() as gateway:
        own = gateway.base.partition("/v2/")[0]
        for headers in ({"Origin": own, "Sec_Fetch_Site": "same-origin"}, {"Sec_Fetch_Site": "none"}, {}):
            assert (await send(gateway, "POST", "run", JOB, **headers))[0] == 200
        # A link from another site to the page is no request of that site's page.
        async with gateway.client.get(f"{own}/", headers={"Sec-Fetch-Site": "cross-site"}) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain; x=application/json"]
)
@pytest.mark.parametrize("path", ["run", "runsync", "openai/v1/chat/completions"])
async def test_a_body_that_a_form_could_send_is_refused(kind: str, path: str) -> None:
    async with serving() as gateway:
        status, answer = await send(gateway, "POST", path, JOB, Content_Type=kind)
        assert status == 415
        assert f"Content-Type: got '{kind}', expected application/json" in json.dumps(answer)
        assert not gateway.table.entries


async def test_a_charset_beside_the_type_changes_nothing() -> None:
    async with serving() as gateway:
        assert (await send(gateway, "POST", "run", JOB, Content_Type="application/json; charset=utf-8"))[0] == 200


async def test_no_answer_allows_another_origin_to_read_it() -> None:
    async with serving() as gateway, aiohttp.ClientSession() as stranger:
        asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        async with stranger.options(f"{gateway.base}/run", headers=asked) as response:
            assert response.status == 403
            assert not [name for name in response.headers if name.startswith("Access-Control-")]
