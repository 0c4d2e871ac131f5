"""Deploy an image from the command line: `ci/just deploy key=value ...`.

Exit code 0: done. 1: failed, and taken back as far as it says. 2: refused, nothing was sent. 130, 143: stopped by SIGINT, SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from images.arguments import Command, call, complain
from images.build_errors import UnknownChoice
from images.gpu_types import read_gpu_types
from tools.deploy.api import DEFAULT_URL, RunPod, check_url
from tools.deploy.order import KEYS, Order, conflicts, read_order
from tools.deploy.outcomes import ApiError, DeployError, Refused, Superseded, Unsure
from tools.deploy.pushed_image import Image, look_up
from tools.deploy.questions import Proof, read_proofs
from tools.deploy.redact import Mask
from tools.deploy.release import Deployment, remove

ROOT = Path(__file__).resolve().parents[2]


def run(values: Mapping[str, str]) -> int:
    """Deploy, and return the exit code."""
    environment = os.environ
    key = environment.get("RUNPOD_API_KEY", "").strip()
    mask = Mask([key])
    try:
        order = read_order(values, default_tests=ROOT / ".runpod" / "tests.json", environment=environment)
        servers = _servers(environment, key, needs_key=order.delete or not order.dry_run)
        proofs = read_proofs(order.tests) if order.tests and not order.delete else ()
        # Before the loop: a Ctrl-C ends it at once, and there is nothing to take back.
        image = None if order.delete else look_up(order.image, environment)
        return asyncio.run(_until_stopped(order, image, proofs, servers, mask))
    except KeyboardInterrupt:
        print("deploy: stopped: nothing was sent", file=sys.stderr)
        return 130
    except Refused as error:
        raise UnknownChoice(mask(str(error))) from None
    except DeployError as error:
        return complain("deploy", DeployError(mask(str(error))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Where RunPod is, and the key to it."""

    url: str
    base: str | None
    key: str = field(repr=False)


def _servers(environment: Mapping[str, str], key: str, *, needs_key: bool) -> Servers:
    if needs_key and not key:
        raise Refused("RUNPOD_API_KEY: not set, expected a key of RunPod's that may read and write the REST API")
    url = check_url("RUNPOD_API_BASE_URL", environment.get("RUNPOD_API_BASE_URL") or DEFAULT_URL)
    base = environment.get("RUNPOD_ENDPOINT_BASE_URL") or None
    return Servers(url=url, base=check_url("RUNPOD_ENDPOINT_BASE_URL", base) if base else None, key=key)


async def _until_stopped(order: Order, image: Image | None, proofs: tuple[Proof, ...], servers: Servers, mask: Mask) -> int:
    """Carry the order out; a Ctrl-C or a TERM ends it with a sentence about what is left."""
    stopped: list[signal.Signals] = []
    left = ["nothing was sent"]
    task = asyncio.ensure_future(_carry_out(order, image, proofs, servers, mask, left))

    def stop(number: signal.Signals) -> None:
        stopped.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        await task
    except (ApiError, Superseded, Unsure) as error:
        raise type(error)(f"{error}\nwhat is left: {left[0]}") from None
    except asyncio.CancelledError:
        if not stopped:
            raise
        print(f"deploy: stopped: {mask(left[0])}", file=sys.stderr)
        return 128 + stopped[0]
    return 0


async def _carry_out(order: Order, image: Image | None, proofs: tuple[Proof, ...], servers: Servers, mask: Mask, left: list[str]) -> None:
    def say(text: str) -> None:
        try:
            print(mask(text), flush=True)
        except BrokenPipeError:  # whoever read has left; a deployment goes on to its end, or to its way back
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    async with aiohttp.ClientSession() as session:
        api = RunPod(session, servers.url, servers.key, say=say, patience=order.patience, pause=min(1.0, order.poll))
        if image is None:
            await remove(api, order.endpoint, dry_run=order.dry_run, say=say)
            return
        deployment = Deployment(
            order=order,
            image=image,
            gpus=read_gpu_types(),
            proofs=proofs,
            api=api,
            session=session,
            key=servers.key,
            base=servers.base,
            say=say,
            mask=mask,
        )
        try:
            await deployment.run()
        finally:
            left[0] = deployment.left


COMMAND = Command(
    name="deploy",
    help="""\
Put an image on a RunPod endpoint, test that it answers, and go back if it does not.

RUNPOD_API_KEY holds the key, and is never printed. RUNPOD_API_BASE_URL and RUNPOD_ENDPOINT_BASE_URL name other servers.""",
    keys=KEYS,
    run=run,
    conflicts=conflicts,
)


if __name__ == "__main__":
    sys.exit(call(COMMAND, sys.argv[1:]))
