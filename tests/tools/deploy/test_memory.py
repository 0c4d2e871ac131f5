"""A model that the GPUs cannot hold is refused before anything is created, and the disk is as large as its download."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.deploy.child import deploy
from tests.tools.plan.known import config_of, stored
from tests.twins.model_hub import ModelHub
from tests.twins.rest_api import Twin

pytestmark = pytest.mark.anyio
NAME = "baidu/ERNIE-4.5-21B-A3B-Paddle"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ModelHub]:
    (tmp_path / "config.json").write_text(json.dumps(config_of("ernie-4.5-21b-a3b")), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(bytes(20000))
    with ModelHub() as running:
        running.add(NAME, tmp_path)
        running.claim(NAME, "model.safetensors", stored("ernie-4.5-21b-a3b"))
        yield running


def order(twin: Twin, *words: str) -> tuple[str, ...]:
    return (f"image={twin.address}/me/worker:1", "endpoint=mine", f"env.MODEL={NAME}", *words)


async def test_a_model_that_does_not_fit_is_refused_with_what_would(twin: Twin, hub: ModelHub) -> None:
    said = await deploy(twin, *order(twin, "gpu=ADA_24"), **hub.environment())
    assert said.code == 2, said
    assert f"gpu: {NAME} does not run on ADA_24: 23.8 GB are missing on each GPU; give env.QUANTIZATION=wint4, or another gpu=" in said.err
    assert not twin.changes
    fits = await deploy(twin, *order(twin, "gpu=ADA_24", "env.QUANTIZATION=wint4", "dry-run=yes"), **hub.environment())
    assert fits.code == 0, fits


async def test_every_pool_that_a_worker_may_get_must_hold_the_model(twin: Twin, hub: ModelHub) -> None:
    said = await deploy(twin, *order(twin, "gpu=ADA_80_PRO,ADA_24,AMPERE_48"), **hub.environment())
    assert said.code == 2, said
    assert "does not run on ADA_24: " in said.err
    assert "does not run on AMPERE_48: " in said.err
    assert "ADA_80_PRO" not in said.err


async def test_who_knows_better_goes_on(twin: Twin, hub: ModelHub) -> None:
    said = await deploy(twin, *order(twin, "gpu=ADA_24", "anyway=yes"), **hub.environment())
    assert said.code == 0, said
    assert "does not run on ADA_24: 23.8 GB are missing on each GPU" in said.out
    assert "going on, since anyway=yes" in said.out


@pytest.mark.parametrize(
    ("words", "disk"), [((), 60), (("disk=100",), 100), (("volume=vol1",), None)], ids=["planned", "asked for", "on a volume"]
)
async def test_the_container_disk_holds_the_download(twin: Twin, hub: ModelHub, words: tuple[str, ...], disk: int | None) -> None:
    said = await deploy(twin, *order(twin, "gpu=ADA_80_PRO", *words), **hub.environment())
    assert said.code == 0, said
    [(_, _, body)] = twin.changes
    assert body.get("disk") == disk


async def test_an_endpoints_disk_grows_and_never_shrinks(twin: Twin, hub: ModelHub) -> None:
    twin.add("mine", gpu={"pools": ["ADA_80_PRO"]}, disk=20)
    twin.add("large", gpu={"pools": ["ADA_80_PRO"]}, disk=200)
    for name, disk in (("mine", 60), ("large", 200)):
        words = [word.replace("endpoint=mine", f"endpoint={name}") for word in order(twin)]
        said = await deploy(twin, *words, **hub.environment())
        assert said.code == 0, said
        again = await deploy(twin, *words, **hub.environment())
        assert "nothing to send" in again.out
        [endpoint] = [one for one in twin.endpoints.values() if one["name"] == name]
        assert endpoint["disk"] == disk


async def test_what_cannot_be_looked_at_is_said_and_stops_nothing(twin: Twin) -> None:
    unreachable = await deploy(twin, *order(twin, "gpu=ADA_24", "dry-run=yes"))
    baked = twin.push("baked", "1", IMAGE_ARCHITECTURES="89", BAKED_MODELS="/models", MODEL="")
    inside = await deploy(twin, f"image={baked}", "gpu=ADA_24", "dry-run=yes")
    assert (unreachable.code, inside.code) == (0, 0), (unreachable, inside)
    assert f"whether the model fits was not checked: MODEL={NAME}: http://127.0.0.1:9 cannot be reached" in unreachable.out
    assert "whether the model fits was not checked: it is not on the hub" in inside.out


async def test_a_release_that_does_not_serve_the_model_is_refused(twin: Twin, hub: ModelHub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of("qwen3-8b") | {"architectures": ["LlamaForCausalLM"]}), encoding="utf-8")
    hub.add("org/llama", tmp_path)
    said = await deploy(twin, f"image={twin.address}/me/worker:1", "gpu=ADA_80_PRO", "env.MODEL=org/llama", **hub.environment())
    assert said.code == 2, said
    assert "gpu: org/llama does not run on ADA_80_PRO: its architecture is LlamaForCausalLM, which FastDeploy 2.3 does not" in said.err
    assert "give an image of release=2.5.0" in said.err
