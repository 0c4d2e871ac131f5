"""What RunPod asks for an hour of each pool's GPUs today, from its catalog, where a key may read it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import aiohttp

from tools.deploy.deploy_errors import DeployError
from tools.deploy.runpod_api import DEFAULT_URL, RunPodApi, check_url

__all__ = ["read_prices"]

_PATIENCE = 10.0
"""Seconds: a plan is worth having without prices."""


def read_prices(environment: Mapping[str, str]) -> tuple[dict[str, float], str]:
    """Return the price of one GPU of each pool in USD an hour, and why there is none, if so."""
    key = environment.get("RUNPOD_API_KEY", "").strip()
    if not key:
        return {}, "set RUNPOD_API_KEY to see prices"
    try:
        url = check_url("RUNPOD_API_BASE_URL", environment.get("RUNPOD_API_BASE_URL") or DEFAULT_URL)
        return asyncio.run(asyncio.wait_for(_read(url, key), _PATIENCE)), ""
    except (DeployError, asyncio.TimeoutError) as error:
        return {}, f"no prices: {str(error) or 'RunPod did not answer in time'}".replace(key, "***")


async def _read(url: str, key: str) -> dict[str, float]:
    async with aiohttp.ClientSession() as session:
        offers = await RunPodApi(session, url, key, say=lambda _: None, patience=_PATIENCE, pause=0.5).gpu_offers()
    found: dict[str, float] = {}
    for offer in offers:
        pool, price = offer.get("pool"), (offer.get("price") or {}).get("serverless")
        if pool and price is not None:
            found[pool] = max(price, found.get(pool, 0.0))
    return found
