"""The gateway in this process on a real port, its client, and the hands of a worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from tools.serve.gateway import gateway
from tools.serve.job_server import JobServer
from tools.serve.job_table import JobTable, PlatformLimits

KEY = "key"
JSON = {"Content-Type": "application/json"}


@dataclass(kw_only=True)
class Gateway:
    """A client of the gateway, and a worker's hands."""

    table: JobTable
    client: aiohttp.ClientSession
    worker: aiohttp.ClientSession
    base: str

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        async with self.client.request(method, f"{self.base}/{path}", json=body, headers=headers) as response:
            return response.status, await response.json()

    async def run(self, job_input: Any, **more: Any) -> str:
        status, answer = await self.call("POST", "run", {"input": job_input, **more})
        assert (status, answer["status"]) == (200, "IN_QUEUE")
        return str(answer["id"])

    async def status(self, job: str) -> dict[str, Any]:
        status, answer = await self.call("GET", f"status/{job}")
        assert status == 200, answer
        return dict(answer)

    async def take(self) -> dict[str, Any]:
        async with self.worker.get(f"{self.base}/job-take/w?gpu=x&job_in_progress=0") as response:
            assert response.status == 200
            return dict(await response.json())

    async def say(self, job: str, value: Any) -> None:
        async with self.worker.post(f"{self.base}/job-stream/w/{job}", data=json.dumps({"output": value})) as response:
            assert response.status == 200

    async def end(self, job: str, **result: Any) -> None:
        async with self.worker.post(f"{self.base}/job-done/w/{job}?isStream=true", data=json.dumps(result)) as response:
            assert response.status == 200

    async def told_to_stop(self) -> list[str]:
        async with self.worker.get(f"{self.base}/job-stop/w") as response:
            assert response.status == 200
            return list((await response.json())["jobsToStop"])

    async def gone(self, job: str) -> None:
        async def until() -> None:
            while (await self.call("GET", f"status/{job}"))[0] != 404:
                pass  # a round trip each

        await asyncio.wait_for(until(), 5)

    async def state(self, job: str, wanted: str) -> dict[str, Any]:
        async def until() -> dict[str, Any]:
            while (shown := await self.status(job))["status"] != wanted:
                pass  # a round trip each
            return shown

        return await asyncio.wait_for(until(), 5)


@contextlib.asynccontextmanager
async def serving(**limits: float) -> AsyncIterator[Gateway]:
    jobs = JobServer(endpoint="ep", api_key="job-key", poll_s=5)
    async with JobTable(jobs, PlatformLimits(**limits)) as table:  # type: ignore[arg-type]
        runner = web.AppRunner(gateway(table, api_key=KEY, model="demo"), handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        jobs.port = runner.addresses[0][1]
        try:
            async with (
                aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as client,
                aiohttp.ClientSession(headers={"Authorization": "job-key"}) as worker,
            ):
                yield Gateway(table=table, client=client, worker=worker, base=f"{jobs.url}/v2/ep")
        finally:
            await runner.cleanup()
