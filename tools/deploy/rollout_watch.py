"""A release followed until workers run it, or until it is known why they do not."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tools.deploy.api_answers import Endpoint, WorkerList
from tools.deploy.deploy_errors import RolloutFailed, Superseded
from tools.deploy.runpod_api import RunPodApi

__all__ = ["RolloutWatch", "Snapshot", "judge", "snapshot_of"]

Verdict = Literal["wait", "ready", "none wanted", "old workers left"]

_STRIKES = 3
"""Snapshots in a row with an unhealthy new worker before the release is given up: one alone may be a moment between two states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The workers at one moment: those of the newest version by their state, and how many still run an older one."""

    version: int | None
    fresh: Counter[str]
    stale: int
    fresh_ids: tuple[str, ...] = ()

    @property
    def ready(self) -> int:
        """Workers of the newest version that take requests."""
        return self.fresh["IDLE"] + self.fresh["RUNNING"]

    def __str__(self) -> str:
        states = [f"{number} {state.lower()}" for state, number in sorted(self.fresh.items())]
        states += [f"{self.stale} still on an older version"] if self.stale else []
        return ", ".join(states) or "none"


def snapshot_of(listing: WorkerList, image: str) -> Snapshot:
    """Read the API's list of workers. One whose image is known, and is another, is stale whatever its flag says."""
    fresh = [w for w in listing["workers"] if not w["isStale"] and w.get("image") in (None, image)]
    return Snapshot(
        version=listing.get("endpointVersion"),
        fresh=Counter(worker["status"] for worker in fresh),
        stale=len(listing["workers"]) - len(fresh),
        fresh_ids=tuple(worker["id"] for worker in fresh),
    )


def judge(snapshot: Snapshot, least: int) -> Verdict:
    """Return what a snapshot means for an endpoint that keeps at least `least` workers.

    "none wanted" is an endpoint that starts workers for requests only; "old workers left" one that works, while workers of an older version
    finish their requests.
    """
    if snapshot.ready:
        return "old workers left" if snapshot.stale else "ready"
    if not snapshot.fresh and not snapshot.stale and least == 0:
        return "none wanted"
    return "wait"


class RolloutWatch:
    """The workers of one endpoint and of the release that has `image`, asked for every `poll` seconds; prints what has changed."""

    def __init__(self, api: RunPodApi, endpoint: Endpoint, image: str, *, poll: float, patience: float, say: Callable[[str], None]) -> None:
        self._api, self._id, self._image, self._say = api, endpoint["id"], image, say
        self._least = (endpoint.get("workers") or {}).get("min", 0)
        self._poll, self._patience = poll, patience
        self._version: int | None = None
        self._shown, self._strikes = "", 0
        self.seen: dict[str, None] = {}
        """Ids of the workers of this release, in the order of their coming."""

    async def until_ready(self, after: int | None) -> None:
        """Return once workers run the release, or none will before a request comes; `after` is the version that it replaces, if it does.

        Raises:
            RolloutFailed: when its workers are unhealthy, or are not there in time.
            Superseded: when another release came in between.
        """
        deadline, announced = time.monotonic() + self._patience, False
        while True:
            snapshot = await self.look()
            begun = after is None or snapshot.version is None or snapshot.version > after
            verdict = judge(snapshot, self._least) if begun else "wait"
            if begun and not announced:
                self._version, announced = snapshot.version, True
                self._say(f"release {snapshot.version} is there" if snapshot.version is not None else "the release is there")
            if verdict in {"ready", "none wanted"}:
                self._say("workers run it" if verdict == "ready" else "no worker runs before the first request comes")
                return
            if time.monotonic() > deadline:
                if verdict == "old workers left":
                    self._say(f"workers run it; {snapshot.stale} still finish requests on an older version")
                    return
                raise RolloutFailed(self._late(snapshot, begun=begun))
            await asyncio.sleep(self._poll)

    async def until_broken(self) -> None:
        """Look until a worker of the release is unhealthy, or another release came; never returns.

        Raises:
            RolloutFailed: when its workers are unhealthy.
            Superseded: when another release came in between.
        """
        while True:
            await self.look()
            await asyncio.sleep(self._poll)

    async def look(self) -> Snapshot:
        """Look once."""
        snapshot = snapshot_of(await self._api.workers(self._id), self._image)
        if self._version is not None and snapshot.version is not None and snapshot.version > self._version:
            await self._check_still_ours(snapshot.version)
        self.seen |= dict.fromkeys(snapshot.fresh_ids)
        if str(snapshot) != self._shown:
            self._shown = str(snapshot)
            self._say(f"workers: {snapshot}")
        self._strikes = self._strikes + 1 if snapshot.fresh["UNHEALTHY"] and not snapshot.ready else 0
        if self._strikes >= _STRIKES:
            raise RolloutFailed(f"unhealthy workers of the new release: {snapshot.fresh['UNHEALTHY']}, and none is ready")
        return snapshot

    async def _check_still_ours(self, version: int) -> None:
        """Go on with a newer release if it has the same image: RunPod may make two of one change."""
        image = (await self._api.get(self._id)).get("image")
        if image != self._image:
            raise Superseded(f"release {self._version} was replaced from elsewhere while it was followed, by {version} with {image}")
        self._version = version

    def _late(self, snapshot: Snapshot, *, begun: bool) -> str:
        if not begun:
            return f"RunPod made no new release within patience={self._patience:g} seconds"
        why = ""
        if snapshot.fresh["THROTTLED"]:
            why = "; RunPod has no free GPU of these pools: name more pools by gpu=, or wait"
        return f"no worker was ready within patience={self._patience:g} seconds: {snapshot}{why}"
