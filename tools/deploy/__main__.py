"""Deploy an image from the command line: `python -m tools.deploy KEY=VALUE ...`.

Exit code 0: done. 1: failed, and taken back as far as it says. 2: refused, nothing was sent. 130, 143: stopped by SIGINT, SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from images.releases import read_gpus
from tools.deploy.api import DEFAULT_URL, RunPod, check_url
from tools.deploy.order import USAGE, Order, read_order
from tools.deploy.outcomes import ApiError, DeployError, Refused, Superseded, Unsure
from tools.deploy.pushed_image import Image, look_up
from tools.deploy.questions import Proof, read_proofs
from tools.deploy.redact import Mask
from tools.deploy.release import Deployment, remove

ROOT = Path(__file__).resolve().parents[2]


def main(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Carry out what `words` ask for and return the exit code."""
    if not words:
        print(USAGE, end="")
        return 2
    key = environment.get("RUNPOD_API_KEY", "").strip()
    mask = Mask([key])
    try:
        called_from = Path(environment.get("CALLED_FROM", "."))
        order = read_order(words, called_from=called_from, default_tests=ROOT / ".runpod" / "tests.json")
        if not key and not (order.dry_run and not order.delete):
            raise Refused("RUNPOD_API_KEY: not set, expected a key of RunPod's that may read and write the REST API")
        url = check_url("RUNPOD_API_BASE_URL", environment.get("RUNPOD_API_BASE_URL") or DEFAULT_URL)
        base = environment.get("RUNPOD_ENDPOINT_BASE_URL") or None
        servers = Servers(url=url, base=check_url("RUNPOD_ENDPOINT_BASE_URL", base) if base else None, key=key)
        proofs = read_proofs(order.tests) if order.tests and not order.delete else ()
        # Before the loop: a Ctrl-C ends it at once, and there is nothing to take back.
        image = None if order.delete else look_up(order.image, environment)
        return asyncio.run(_until_stopped(order, image, proofs, servers, mask))
    except KeyboardInterrupt:
        print("deploy: stopped: nothing was sent", file=sys.stderr)
        return 130
    except DeployError as error:
        print(f"deploy: {mask(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, Refused) else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Where RunPod is, and the key to it."""

    url: str
    base: str | None
    key: str = field(repr=False)


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
            gpus=read_gpus(),
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
