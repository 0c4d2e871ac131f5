"""A worker of ten lines on the real SDK: yields what the job's input says, or does what it is told to."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import runpod


async def handler(job: dict[str, Any]) -> AsyncIterator[Any]:
    asked = job["input"]
    try:
        for value in asked["yield"]:
            await asyncio.sleep(asked.get("every_s", 0))
            yield value
        await asyncio.sleep(asked.get("then_sleep_s", 0))
        if asked.get("raise"):
            raise RuntimeError(asked["raise"])
    except (asyncio.CancelledError, GeneratorExit):  # the latter if the stop hits the SDK inside a POST
        print(f"cancelled {job['id']}", flush=True)
        raise


if __name__ == "__main__":
    print(f"worker {os.environ['RUNPOD_POD_ID']} starts", flush=True)
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda _: 8, "return_aggregate_stream": True})
    print("start returned", flush=True)
