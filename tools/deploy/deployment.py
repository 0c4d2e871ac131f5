"""A deployment from its first question to its last line, with the way back when a step fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace

import aiohttp

from checkpoint.hub import Hub
from handler.settings import Settings
from images.gpu_types import GpuType
from tools.deploy.acceptance import AcceptanceTest, EndpointClient
from tools.deploy.api_answers import Endpoint
from tools.deploy.client_code import DEFAULT_ENDPOINTS, openai_url, snippet
from tools.deploy.compatibility import GpuMarket, check_gpus, check_variables, choose_gpus, fitting_pools
from tools.deploy.deploy_errors import ApiError, DeployError, DeployRefused, OutcomeUnknown, RolloutFailed
from tools.deploy.deploy_options import DeployOptions
from tools.deploy.endpoint_changes import create_body, differences, makes_release, merge, patch_for, undo
from tools.deploy.masking import Mask, secrets_of
from tools.deploy.memory_check import check_memory
from tools.deploy.pushed_image import PushedImage
from tools.deploy.rollout_watch import RolloutWatch
from tools.deploy.runpod_api import Json, RunPodApi

__all__ = ["Deployment", "remove"]

_LOOKS_FOR_LOST = 4
"""How often a creation whose answer was lost is looked for by name, `poll` seconds apart, before it counts as not done."""
_LOGS = 3
"""Workers whose log is shown after a failure."""


@dataclass(slots=True, kw_only=True)
class Deployment:
    """One deployment in progress. `left` says at any moment what an interruption would leave behind."""

    options: DeployOptions
    image: PushedImage
    gpu_types: Sequence[GpuType]
    """The GPUs of images/gpus.toml."""
    tests: Sequence[AcceptanceTest]
    api: RunPodApi
    session: aiohttp.ClientSession
    key: str
    base: str | None
    """Stands in for RunPod's own address of endpoints."""
    hub: Hub
    say: Callable[[str], None]
    mask: Mask
    left: str = "nothing was sent"
    _market: GpuMarket = field(default_factory=lambda: GpuMarket(()), init=False)
    _watch: RolloutWatch | None = field(default=None, init=False)

    async def run(self) -> None:
        """Deploy.

        Raises:
            DeployError: saying what went wrong; what could be taken back has been by then.
        """
        name = self.options.endpoint or self.image.repository
        await self._read_market()
        self.say(f"image {self.image.reference} is {self.image.pinned}, {self.image.size / 1e9:.2f} GB")
        # Without a key a dry run still shows what a new endpoint would get.
        current = await self.api.find(name) if self.key else None
        if current is None:
            await self._make(name)
        else:
            self.mask.learn(secrets_of(current.get("env") or {}))
            await self._change(current)
        if self.options.dry_run:
            self.say("dry run: nothing was sent")

    async def _read_market(self) -> None:
        """Take the pools from RunPod's own catalog, where the key may read it."""
        self._market = GpuMarket(self.gpu_types)
        if not self.key:
            return
        try:
            self._market = GpuMarket.of(await self.api.gpu_offers(), self.gpu_types)
        except ApiError as error:
            if error.status == 401:
                raise
            self.say(f"{error}; pools are taken from images/gpus.toml")

    async def _check(self, pools: Sequence[str], excluded: Sequence[str], env: Mapping[str, str], gpus: int) -> tuple[Settings, int | None]:
        """Return what the worker will make of its variables, and the gigabytes of disk that the model takes, where that is known.

        Raises:
            DeployRefused: when image, GPUs, variables and model cannot work together.
        """
        if self.image.is_known and not self.options.cpu and pools:
            check_gpus(self.image, pools, excluded, self._market)
            for name, pool in self._market.unknown.items():
                if pool in pools and name not in excluded:
                    self.say(f"{name}, of pool {pool}, is not in images/gpus.toml: whether the image runs on it was not checked")
        if self.image.is_known and not pools and not self.image.is_cpu:
            raise DeployRefused(f"cpu: {self.image.reference} holds FastDeploy, which needs a GPU; expected an image of arch=cpu")
        settings = check_variables(self.image, env, gpus)
        if self.image.is_cpu or not self.image.is_known:
            return settings, None
        return settings, await self._check_memory(settings, pools, excluded, env, gpus)

    async def _check_memory(
        self, settings: Settings, pools: Sequence[str], excluded: Sequence[str], env: Mapping[str, str], gpus: int
    ) -> int | None:
        inside = {pool: [gpu for gpu in self._market.types if gpu.pool == pool and gpu.name not in excluded] for pool in pools}
        known = {pool: types for pool, types in inside.items() if types}
        found = await asyncio.to_thread(check_memory, settings, {**self.image.variables, **env}, known, gpus, self.hub)
        if found.note:
            self.say(found.note)
        if found.problems and not self.options.anyway:
            raise DeployRefused(*found.problems, "anyway=yes deploys it all the same")
        for problem in found.problems:
            self.say(f"{problem}; going on, since anyway=yes")
        return found.disk

    async def _make(self, name: str) -> None:
        if not self.options.gpu and not self.options.cpu:
            fits = ", ".join(fitting_pools(self.image, self._market)) or "no GPU that RunPod has"
            raise DeployRefused(
                f"gpu: missing: no endpoint has the name or id {name!r}, and a new one needs gpu=POOL or cpu=FLAVOR:VCPUS; "
                f"the image runs on: {fits}"
            )
        pools, excluded = choose_gpus(self.options.gpu, self.options.exclude, self._market)
        options = replace(self.options, gpu=pools, exclude=excluded)
        settings, disk = await self._check(pools, excluded, merge({}, options.env), options.count or 1)
        if options.disk is None and not options.volume:
            options = replace(options, disk=disk)
        engine = settings.engine
        body = create_body(
            options,
            name=name,
            image=self.image.pinned,
            cuda=self.image.cuda,
            requests=engine.max_num_seqs,
            startup=engine.startup_timeout,
        )
        self.say(f"creating endpoint {name}:\n{json.dumps(body, indent=2)}")
        if options.dry_run:
            return
        endpoint = await self._create_once(name, body)
        described = f"endpoint {name} ({endpoint['id']})"
        self.left = f"{described} was created, and not tested yet; {_removal(name)}"
        try:
            await self._prove(endpoint, after=None)
        except RolloutFailed as error:
            await self._show_logs(endpoint)
            self.left = f"{described} was created and does not work; {_removal(name)}"
            await self.api.delete(endpoint["id"])
            self.left = "nothing is left"
            raise RolloutFailed(f"{error}\n{described} was removed again: this command had created it") from None

    async def _create_once(self, name: str, body: Json) -> Endpoint:
        """Create the endpoint; where the answer is lost, look whether it is there, and never send it twice."""
        before = {one["id"] for one in await self.api.endpoints()}
        self.left = f"endpoint {name} may have been created; the same command continues from there"
        try:
            return await self._create(body, before)
        except OutcomeUnknown as unknown:
            self.say(f"{unknown}; looking for {name} by its name")
            for _ in range(_LOOKS_FOR_LOST):
                found = await self.api.find(name)
                if found is not None and found.get("image") == body["image"] and found["id"] not in before:
                    self.say(f"it is, as {found['id']}")
                    return found
                await asyncio.sleep(self.options.poll)
            self.left = f"no endpoint {name} was there when it was last looked for; look at the console before the next try"
            raise DeployError(f"{unknown}; no endpoint {name} has appeared. It was not sent again, so that there are never two") from None

    async def _create(self, body: Json, before: Collection[str]) -> Endpoint:
        created = await self.api.create(body)
        if created["id"] in before:
            raise OutcomeUnknown(f"could not create endpoint {body['name']}: the answer names {created['id']}, which was there before")
        return created

    async def _change(self, current: Endpoint) -> None:
        options, image, name = self.options, self.image, current["name"]
        gpu = current.get("gpu") or {}
        if options.gpu:
            pools, excluded = choose_gpus(options.gpu, options.exclude, self._market)
            options = replace(options, gpu=pools, exclude=excluded)
        else:
            pools, excluded = tuple(gpu.get("pools") or ()), tuple(gpu.get("excludedTypes") or ())
        env = merge(current.get("env") or {}, options.env)
        self.mask.learn(secrets_of(env))
        _, disk = await self._check(pools, excluded, env, options.count or gpu.get("count") or 1)
        if options.disk is None and disk and not (options.volume or current.get("networkVolumes")):
            options = replace(options, disk=disk if disk > current.get("disk", disk) else None)
        patch = patch_for(options, image=image.pinned, cuda=image.cuda, endpoint=current)
        if patch:
            self.say("\n".join([f"changing endpoint {name} ({current['id']}):", *(f"  {line}" for line in differences(patch, current))]))
        else:
            self.say(f"endpoint {name} ({current['id']}) is as it should be: nothing to send")
        if options.dry_run:
            return
        before = await self.api.version(current["id"])
        try:
            if patch:
                await self._update_surely(current, patch)
            await self._prove(current, after=before if makes_release(patch) else None)
        except RolloutFailed as error:
            await self._show_logs(current)
            raise RolloutFailed(f"{error}\n{await self._go_back(current, patch)}") from None

    async def _update_surely(self, current: Endpoint, patch: Json) -> None:
        """Send the patch until the endpoint is what it says: the same patch twice does no harm."""
        name, ways = current["name"], _ways_on(current)
        self.left = f"endpoint {name} ({current['id']}) may have been changed; {ways}"
        for _ in range(_LOOKS_FOR_LOST):
            try:
                await self.api.update(current["id"], patch)
            except OutcomeUnknown as unknown:
                self.say(f"{unknown}; looking whether it was changed")
                if differences(patch, await self.api.get(current["id"])):
                    await asyncio.sleep(self.options.poll)
                    continue
                self.say("it was")
            self.left = f"endpoint {name} ({current['id']}) was changed, and RunPod continues its release; {ways}"
            return
        raise RolloutFailed(f"endpoint {name} could not be changed: RunPod failed {_LOOKS_FOR_LOST} times")

    async def _prove(self, endpoint: Endpoint, *, after: int | None) -> None:
        """Return once the endpoint has answered every test, and print how to use it."""
        options, described = self.options, f"endpoint {endpoint['name']} ({endpoint['id']})"
        watch = RolloutWatch(self.api, endpoint, self.image.pinned, poll=options.poll, patience=options.patience, say=self.say)
        self._watch = watch
        await watch.until_ready(after)
        url = openai_url(endpoint, base=self.base)
        balanced = endpoint.get("type") == "LOAD_BALANCER"
        jobs = "" if balanced else f"{self.base or DEFAULT_ENDPOINTS}/{endpoint['id']}"
        client = EndpointClient(self.session, self.key, url=url, jobs=jobs, pause=options.poll, say=self.say)
        if self.tests:
            await _first_to_end(client.run(tuple(self.tests), cold_start=options.patience), watch.until_broken())
            if not watch.seen:
                self.say("the tests passed, but no worker of this release was seen meanwhile")
        self.left = f"{described} runs {self.image.pinned}"
        model = (await client.model() if self.tests else "") or (endpoint.get("env") or {}).get("SERVED_MODEL_NAME") or "MODEL"
        self.say(f"{described} runs {self.image.pinned}\n\n{url}\n\n{snippet(url, model)}")

    async def _show_logs(self, endpoint: Endpoint) -> None:
        seen = list(self._watch.seen)[-_LOGS:] if self._watch else []
        if not seen:
            self.say("no worker of this release was seen, so there is no log")
        for worker in seen:
            lines = await self.api.worker_log(endpoint["id"], worker)
            self.say("\n".join([f"log of worker {worker}:", *(f"  {line}" for line in lines)]))

    async def _go_back(self, current: Endpoint, patch: Json) -> str:
        """Return what has become of the endpoint after its old values were sent."""
        name = f"{current['name']} ({current['id']})"
        if not patch:
            return f"endpoint {name} was not changed by this command, so there is nothing to take back"
        back = undo(patch, current)
        self.say("\n".join([f"going back on endpoint {name}:", *(f"  {line}" for line in differences(back, {**current, **patch}))]))
        try:
            with contextlib.suppress(OutcomeUnknown):
                await self.api.update(current["id"], back)
            now = await self.api.get(current["id"])
        except ApiError as error:
            return f"endpoint {name} could NOT be taken back to {current.get('image')}: {error}"
        if now.get("image") != current.get("image"):
            return f"endpoint {name} could NOT be taken back to {current.get('image')}: it has {now.get('image')}"
        self.left = f"endpoint {name} is back on {current.get('image')}"
        return f"endpoint {name} was taken back to {current.get('image')}"


async def remove(api: RunPodApi, name: str, *, dry_run: bool, say: Callable[[str], None]) -> None:
    """Delete the endpoint of that name or id; none is fine."""
    found = await api.find(name)
    if found is None:
        say(f"no endpoint has the name or id {name!r}: nothing to remove")
    elif dry_run:
        say(f"dry run: endpoint {name} ({found['id']}) would be removed")
    else:
        await api.delete(found["id"])
        say(f"endpoint {name} ({found['id']}) was removed")


def _ways_on(current: Endpoint) -> str:
    name, image = current["name"], current.get("image")
    return f"the same command continues to watch, and ci/just deploy endpoint={name} image={image} goes back"


def _removal(name: object) -> str:
    return f"the same command continues from there, and ci/just deploy endpoint={name} delete=yes removes it"


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
