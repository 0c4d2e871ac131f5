"""A deployment from its first look to its last line, with the way back when a step fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from images.releases import GpuType
from tools.deploy.api import Json, RunPod
from tools.deploy.changes import create_body, differences, makes_release, merge, patch_for, undo
from tools.deploy.fitness import check_gpus, check_variables, fitting_pools, rented
from tools.deploy.order import Order
from tools.deploy.outcomes import ApiError, DeployError, Refused, RolloutFailed, Unsure
from tools.deploy.pushed_image import Image
from tools.deploy.questions import Client, Proof
from tools.deploy.redact import DEFAULT_ENDPOINTS, Mask, openai_url, secrets_of, snippet
from tools.deploy.rollout import Watch

__all__ = ["Deployment", "remove"]

_LOOKS_FOR_LOST = 4
"""How often a creation whose answer was lost is looked for by name, `poll` seconds apart, before it counts as not done."""
_LOGS = 3
"""Workers whose log is shown after a failure."""


@dataclass(slots=True, kw_only=True)
class Deployment:
    """One order being carried out. `left` says at any moment what an interruption would leave behind."""

    order: Order
    image: Image
    gpus: Sequence[GpuType]
    proofs: Sequence[Proof]
    api: RunPod
    session: aiohttp.ClientSession
    key: str
    base: str | None
    """Stands in for RunPod's own address of endpoints."""
    say: Callable[[str], None]
    mask: Mask
    left: str = "nothing was sent"
    _watch: Watch | None = field(default=None, init=False)
    _unknown: Mapping[str, str] = field(default_factory=dict, init=False)

    async def run(self) -> None:
        """Carry the order out.

        Raises:
            DeployError: saying what went wrong; what could be taken back has been by then.
        """
        order, name = self.order, self.order.endpoint or self.image.repository
        await self._look_at_pools()
        self.say(f"image {self.image.reference} is {self.image.pinned}, {self.image.size / 1e9:.2f} GB")
        # Without a key a dry run still says what a new endpoint would be given.
        current = await self.api.find(name) if self.key else None
        if current is None:
            await self._make(name)
        else:
            self.mask.learn(secrets_of(current.get("env") or {}))
            await self._change(current)
        if order.dry_run:
            self.say("dry run: nothing was sent")

    async def _look_at_pools(self) -> None:
        """Take the pools from RunPod's own catalog, where the key may read it."""
        if not self.key:
            return
        try:
            self.gpus, self._unknown = rented(await self.api.gpu_types(), self.gpus)
        except ApiError as error:
            if error.status == 401:
                raise
            self.say(f"{error}; pools are taken from images/gpus.toml")

    def _check_gpus(self, pools: Sequence[str], excluded: Collection[str]) -> None:
        check_gpus(self.image, pools, excluded, self.gpus)
        for name, pool in self._unknown.items():
            if pool in pools and name not in excluded:
                self.say(f"{name}, of pool {pool}, is not in images/gpus.toml: whether the image runs on it was not checked")

    async def _make(self, name: str) -> None:
        order, image = self.order, self.image
        if not order.gpu:
            fits = ", ".join(fitting_pools(image, self.gpus)) or "none that RunPod has"
            raise Refused(f"gpu: missing: no endpoint has the name or id {name!r}, and a new one needs gpu=POOL; the image runs on: {fits}")
        self._check_gpus(order.gpu, order.exclude)
        env = merge({}, order.env)
        settings = check_variables(image, env, order.env, order.count or 1)
        body = create_body(
            order,
            name=name,
            image=image.pinned,
            cuda=image.cuda,
            requests=settings.engine.max_num_seqs,
            startup=settings.engine.startup_timeout,
        )
        self.say(f"creating endpoint {name}:\n{json.dumps(body, indent=2)}")
        if order.dry_run:
            return
        self.left = f"endpoint {name} may have been created; the same command goes on from there"
        endpoint = await self._create_once(name, body)
        self.left = f"endpoint {name} ({endpoint['id']}) was made, and nothing is proved yet; {_removal(name)}"
        try:
            await self._prove(endpoint, after=None)
        except RolloutFailed as error:
            await self._show_logs(endpoint)
            self.left = f"endpoint {name} ({endpoint['id']}) was made and does not work; {_removal(name)}"
            await self.api.delete(endpoint["id"])
            self.left = "nothing is left"
            raise RolloutFailed(f"{error}\nendpoint {name} ({endpoint['id']}) was removed again: it was made by this command") from None

    async def _create_once(self, name: str, body: Json) -> Json:
        """Create the endpoint; where the answer is lost, look whether it is there, and never send it twice."""
        try:
            return await self.api.create(body)
        except Unsure as unsure:
            self.say(f"{unsure}; looking whether {name} is there nevertheless")
            for _ in range(_LOOKS_FOR_LOST):
                found = await self.api.find(name)
                if found is not None and found.get("image") == body["image"]:
                    self.say(f"it is, as {found['id']}")
                    return found
                await asyncio.sleep(self.order.poll)
            self.left = f"no endpoint {name} was there when it was last looked for; look at the console before the next try"
            raise DeployError(f"{unsure}; no endpoint {name} has appeared. It was not sent again, so that there are never two") from None

    async def _change(self, current: Json) -> None:
        order, image, name = self.order, self.image, current.get("name") or current["id"]
        patch = patch_for(order, image=image.pinned, cuda=image.cuda, endpoint=current)
        pools = order.gpu or tuple((current.get("gpu") or {}).get("pools") or ())
        excluded = order.exclude if order.gpu else (current.get("gpu") or {}).get("excludedTypes") or ()
        self._check_gpus(pools, excluded)
        env: Mapping[str, str] = (patch if "env" in patch else current).get("env") or {}
        check_variables(image, env, order.env, order.count or (current.get("gpu") or {}).get("count") or 1)
        self.mask.learn(secrets_of(env))
        if patch:
            self.say("\n".join([f"changing endpoint {name} ({current['id']}):", *(f"  {line}" for line in differences(patch, current))]))
        else:
            self.say(f"endpoint {name} ({current['id']}) is as it should be: nothing to send")
        if order.dry_run:
            return
        before = (await self.api.releases(current["id"])).get("endpointVersion")
        try:
            endpoint = await self._update_surely(current, patch) if patch else current
            await self._prove(endpoint, after=before if makes_release(patch) else None)
        except RolloutFailed as error:
            await self._show_logs(current)
            raise RolloutFailed(f"{error}\n{await self._go_back(current, patch)}") from None

    async def _update_surely(self, current: Json, patch: Json) -> Json:
        """Send the patch until the endpoint is what it says: the same patch twice does no harm."""
        name, ways = current.get("name"), _ways_on(current)
        self.left = f"endpoint {name} ({current['id']}) may have been changed; {ways}"
        for _ in range(_LOOKS_FOR_LOST):
            try:
                endpoint = await self.api.update(current["id"], patch)
            except Unsure as unsure:
                self.say(f"{unsure}; looking whether it was changed nevertheless")
                now = await self.api.get(current["id"])
                if not differences(patch, now):
                    self.say("it was")
                    endpoint = now
                else:
                    await asyncio.sleep(self.order.poll)
                    continue
            self.left = f"endpoint {name} ({current['id']}) was changed, and RunPod goes on with its release; {ways}"
            return endpoint
        raise RolloutFailed(f"endpoint {name} could not be changed: RunPod failed {_LOOKS_FOR_LOST} times")

    async def _prove(self, endpoint: Json, *, after: int | None) -> None:
        order, name = self.order, endpoint.get("name")
        watch = Watch(self.api, endpoint, poll=order.poll, patience=order.patience, say=self.say)
        self._watch = watch
        await watch.until_ready(after)
        url = openai_url(endpoint, base=self.base)
        balanced = endpoint.get("type") == "LOAD_BALANCER"
        jobs = "" if balanced else f"{self.base or DEFAULT_ENDPOINTS}/{endpoint['id']}"
        client = Client(self.session, self.key, url=url, jobs=jobs, pause=order.poll, say=self.say)
        if self.proofs:
            await _first_to_end(client.run(tuple(self.proofs), cold_start=order.patience), watch.until_broken())
            if not watch.seen:
                self.say("the tests passed, but no worker of this release was seen meanwhile")
        self.left = f"endpoint {name} ({endpoint['id']}) runs {endpoint.get('image')}"
        model = (await client.model() if self.proofs else "") or (endpoint.get("env") or {}).get("SERVED_MODEL_NAME") or "MODEL"
        self.say(f"endpoint {name} ({endpoint['id']}) runs {endpoint.get('image')}\n\n{url}\n\n{snippet(url, model)}")

    async def _show_logs(self, endpoint: Json) -> None:
        seen = list(self._watch.seen)[-_LOGS:] if self._watch else []
        if not seen:
            self.say("no worker of this release was seen, so there is no log")
        for worker in seen:
            lines = await self.api.worker_log(endpoint["id"], worker)
            self.say("\n".join([f"log of worker {worker}:", *(f"  {line}" for line in lines)]))

    async def _go_back(self, current: Json, patch: Json) -> str:
        """Return what has become of the endpoint after its old values were sent."""
        name = f"{current.get('name')} ({current['id']})"
        if not patch:
            return f"endpoint {name} was not changed by this command, so there is nothing to take back"
        back = undo(patch, current)
        self.say("\n".join([f"going back on endpoint {name}:", *(f"  {line}" for line in differences(back, {**current, **patch}))]))
        try:
            with contextlib.suppress(Unsure):
                await self.api.update(current["id"], back)
            now = await self.api.get(current["id"])
        except (ApiError, Unsure) as error:
            return f"endpoint {name} could NOT be taken back to {current.get('image')}: {error}"
        if now.get("image") != current.get("image"):
            return f"endpoint {name} could NOT be taken back to {current.get('image')}: it has {now.get('image')}"
        self.left = f"endpoint {name} is back on {current.get('image')}"
        return f"endpoint {name} was taken back to {current.get('image')}"


async def remove(api: RunPod, name: str, *, dry_run: bool, say: Callable[[str], None]) -> None:
    """Delete the endpoint of that name or id; none is fine."""
    found = await api.find(name)
    if found is None:
        say(f"no endpoint has the name or id {name!r}: nothing to remove")
    elif dry_run:
        say(f"dry run: endpoint {name} ({found['id']}) would be removed")
    else:
        await api.delete(found["id"])
        say(f"endpoint {name} ({found['id']}) was removed")


def _ways_on(current: Json) -> str:
    return f"the same command watches on, and ci/just deploy endpoint={current.get('name')} image={current.get('image')} goes back"


def _removal(name: object) -> str:
    return f"the same command goes on from there, and ci/just deploy endpoint={name} delete=yes removes it"


async def _first_to_end(work: Coroutine[None, None, None], watch: Coroutine[None, None, None]) -> None:
    """Wait for `work`, unless `watch` fails before it has ended."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(watch)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
