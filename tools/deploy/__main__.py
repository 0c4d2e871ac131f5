"""Deploy an image from the command line: `ci/just deploy key=value ...`.

Exit code 0: done. 1: failed, and taken back as far as it says. 2: refused, nothing was sent. 130, 143: stopped by SIGINT, SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from checkpoint.http_client import is_loopback
from checkpoint.hub import Hub
from images.arguments import Command, call, complain, mask_addresses
from images.build_errors import UnknownChoice
from images.gpu_types import read_gpu_types
from images.registry import ImageReference
from tools.deploy.acceptance import AcceptanceTest, read_tests
from tools.deploy.compatibility import GpuMarket, gpu_problems, variable_problems
from tools.deploy.deploy_errors import DeployError, DeployRefused, RolloutFailed
from tools.deploy.deploy_options import KEYS, DeployOptions, conflicts, read_deploy_options
from tools.deploy.deployment import Deployment, remove
from tools.deploy.masking import Mask
from tools.deploy.pushed_image import PushedImage, look_up, not_pushed
from tools.deploy.runpod_api import DEFAULT_URL, RunPodApi, check_url

__all__ = ["COMMAND"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is known before anything is asked; `base` stands in for RunPod's own address of endpoints."""

    options: DeployOptions
    url: str
    base: str | None
    key: str = field(repr=False)
    tests: tuple[AcceptanceTest, ...]


def run(values: Mapping[str, str]) -> int:
    """Deploy, and return the exit code."""
    key = os.environ.get("RUNPOD_API_KEY", "").strip()
    mask = Mask([key, os.environ.get("HF_TOKEN", "")])
    try:
        prepared = _prepare(read_deploy_options(values, default_tests=ROOT / ".runpod" / "tests.json", environment=os.environ), key)
        # Before the loop: a Ctrl-C ends it at once, and there is nothing to take back.
        image = None if prepared.options.delete else _look_up(prepared.options)
        return asyncio.run(_until_stopped(prepared, image, mask))
    except KeyboardInterrupt:
        print("deploy: stopped: nothing was sent", file=sys.stderr)
        return 130
    except DeployRefused as error:
        raise UnknownChoice(mask(str(error))) from None
    except DeployError as error:
        return complain("deploy", DeployError(mask(str(error))))


def _prepare(options: DeployOptions, key: str) -> Prepared:
    """Read everything that is on this machine.

    Raises:
        DeployRefused: naming every mistake that can be found so.
    """
    problems: list[str] = []
    if not key and (options.delete or not options.dry_run):
        problems.append("RUNPOD_API_KEY: not set, expected a key of RunPod's that may read and write the REST API")
    url, base = DEFAULT_URL, None
    tests: tuple[AcceptanceTest, ...] = ()
    try:
        url = check_url("RUNPOD_API_BASE_URL", os.environ.get("RUNPOD_API_BASE_URL") or DEFAULT_URL)
    except DeployRefused as error:
        problems += error.problems
    try:
        if given := os.environ.get("RUNPOD_ENDPOINT_BASE_URL"):
            base = check_url("RUNPOD_ENDPOINT_BASE_URL", given)
    except DeployRefused as error:
        problems += error.problems
    if not options.delete:
        try:
            tests = read_tests(options.tests) if options.tests else ()
        except DeployRefused as error:
            problems += error.problems
        problems += _image_problems(options.image, url)
        problems += gpu_problems(options.gpu, GpuMarket(read_gpu_types()))
        problems += variable_problems(options.env)
    if problems:
        raise DeployRefused(*problems)
    return Prepared(options=options, url=url, base=base, key=key, tests=tests)


def _image_problems(image: str, url: str) -> list[str]:
    try:
        registry = ImageReference.parse(image).registry
    except UnknownChoice as error:
        return [f"image: {error}"]
    # Where RunPod's API is on this machine too, it is a test's.
    if is_loopback(f"//{registry}") and not is_loopback(url):
        return [f"image: {image}: RunPod's hosts cannot reach a registry on this machine; push it to one that they can"]
    return []


def _look_up(options: DeployOptions) -> PushedImage:
    try:
        return look_up(options.image, os.environ)
    except DeployRefused as error:
        if not options.dry_run:
            raise
        print(mask_addresses(f"{error}\ndry run: going on without it; whether it fits GPUs and variables is not checked"), file=sys.stderr)
        return not_pushed(options.image)


async def _until_stopped(prepared: Prepared, image: PushedImage | None, mask: Mask) -> int:
    """Deploy; a Ctrl-C or a TERM ends it with a sentence about what is left."""
    stopped: list[signal.Signals] = []
    left = ["nothing was sent"]
    task = asyncio.ensure_future(_carry_out(prepared, image, mask, left))

    def stop(number: signal.Signals) -> None:
        stopped.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        await task
    except (DeployRefused, RolloutFailed):
        raise
    except DeployError as error:
        raise type(error)(f"{error}\nwhat is left: {left[0]}") from None
    except asyncio.CancelledError:
        if not stopped:
            raise
        print(f"deploy: stopped: {mask(left[0])}", file=sys.stderr)
        return 128 + stopped[0]
    except Exception:  # noqa: BLE001  # a mistake of this program: what is left must be printed all the same, and no secret
        print(mask(traceback.format_exc()), file=sys.stderr)
        raise DeployError(f"this is a mistake of deploy itself\nwhat is left: {left[0]}") from None
    return 0


async def _carry_out(prepared: Prepared, image: PushedImage | None, mask: Mask, left: list[str]) -> None:
    options = prepared.options

    def say(text: str) -> None:
        try:
            print(mask(text), flush=True)
        except BrokenPipeError:  # the reader has closed the pipe; a deployment still has to end, or to be taken back
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    async with aiohttp.ClientSession() as session:
        api = RunPodApi(session, prepared.url, prepared.key, say=say, patience=options.patience, pause=min(1.0, options.poll))
        if image is None:
            await remove(api, options.endpoint, dry_run=options.dry_run, say=say)
            return
        deployment = Deployment(
            options=options,
            image=image,
            gpu_types=read_gpu_types(),
            tests=prepared.tests,
            api=api,
            session=session,
            key=prepared.key,
            base=prepared.base,
            hub=Hub(endpoint=os.environ.get("HF_ENDPOINT", ""), token=os.environ.get("HF_TOKEN", "")),
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

RUNPOD_API_KEY holds the key, and is never printed; HF_TOKEN lets the size of a gated model be read.
RUNPOD_API_BASE_URL and RUNPOD_ENDPOINT_BASE_URL name other servers.""",
    keys=KEYS,
    run=run,
    conflicts=conflicts,
)


if __name__ == "__main__":
    sys.exit(call(COMMAND, sys.argv[1:]))
