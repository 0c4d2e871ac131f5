"""Follow a release until workers run it, or say why they do not."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tools.deploy.api import Json, RunPod
from tools.deploy.outcomes import RolloutFailed, Superseded

__all__ = ["Look", "Watch", "judge", "look_at"]

Verdict = Literal["wait", "ready", "nobody", "lingering"]

_STRIKES = 3
"""Looks in a row that find a new worker unhealthy before the release is given up: one alone may be a moment between two states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
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


def look_at(listing: Json, image: str) -> Look:
    """Read the API's list of workers. One whose image is known, and is another, is stale whatever its flag says."""
    fresh = [w for w in listing["workers"] if not w["isStale"] and w.get("image") in (None, image)]
    return Look(
        version=listing.get("endpointVersion"),
        fresh=Counter(worker["status"] for worker in fresh),
        stale=len(listing["workers"]) - len(fresh),
        fresh_ids=tuple(worker["id"] for worker in fresh),
    )


def judge(look: Look, least: int) -> Verdict:
    """Say what a look means for an endpoint that keeps at least `least` workers.

    "nobody" is an endpoint that starts workers for requests only; "lingering" one that works, beside workers which finish old requests.
    """
    if look.ready:
        return "lingering" if look.stale else "ready"
    if not look.fresh and not look.stale and least == 0:
        return "nobody"
    return "wait"


class Watch:
    """The workers of one endpoint, looked at every `poll` seconds; says what has changed since the last look."""

    def __init__(self, api: RunPod, endpoint: Json, *, poll: float, patience: float, say: Callable[[str], None]) -> None:
        self._api, self._id, self._image, self._say = api, endpoint["id"], endpoint["image"], say
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
        deadline = time.monotonic() + self._patience
        while True:
            look = await self.look()
            begun = after is None or look.version is None or look.version > after
            verdict = judge(look, self._least) if begun else "wait"
            if begun and self._version is None:
                self._version = look.version
                self._say(f"release {look.version} is there" if look.version is not None else "the release is there")
            if verdict in {"ready", "nobody"}:
                self._say("workers run it" if verdict == "ready" else "no worker runs before the first request comes")
                return
            if time.monotonic() > deadline:
                if verdict == "lingering":
                    self._say(f"workers run it; {look.stale} still finish requests on an older version")
                    return
                raise RolloutFailed(self._late(look, begun=begun))
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

    async def look(self) -> Look:
        """Look once."""
        look = look_at(await self._api.workers(self._id), self._image)
        if self._version is not None and look.version is not None and look.version > self._version:
            await self._check_still_ours(look.version)
        self.seen |= dict.fromkeys(look.fresh_ids)
        if str(look) != self._shown:
            self._shown = str(look)
            self._say(f"workers: {look}")
        self._strikes = self._strikes + 1 if look.fresh["UNHEALTHY"] and not look.ready else 0
        if self._strikes >= _STRIKES:
            raise RolloutFailed(f"unhealthy workers of the new release: {look.fresh['UNHEALTHY']}, and none is ready")
        return look

    async def _check_still_ours(self, version: int) -> None:
        """Go on with a newer release if it has the same image: RunPod may make two of one change."""
        image = (await self._api.get(self._id)).get("image")
        if image != self._image:
            raise Superseded(f"release {self._version} was replaced from elsewhere while it was followed, by {version} with {image}")
        self._version = version

    def _late(self, look: Look, *, begun: bool) -> str:
        if not begun:
            return f"RunPod made no new release within patience={self._patience:g} seconds"
        why = ""
        if look.fresh["THROTTLED"]:
            why = "; RunPod has no free GPU of these pools: name more pools by gpu=, or wait"
        return f"no worker was ready within patience={self._patience:g} seconds: {look}{why}"
