"""The image whose containers are tried: the miniature's without a GPU, and with `-m gpu` the one that SMOKE_IMAGE names, on a GPU.

On a host with an NVIDIA GPU and Docker's NVIDIA runtime:

    SMOKE_IMAGE=registry/repository:sm89 SMOKE_MODEL=org/name python -m pytest tests/smoke -m gpu

SMOKE_IMAGE is an image for that GPU's architecture; SMOKE_MODEL is baked into it, or is downloaded by the container.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from ci.hosts.shared import Hosts
from tests.images.fixtures import hosts, made, vendor
from tests.images.made import Made
from tests.twins.vendor.vendor import MODEL

__all__ = ["Subject", "hosts", "made", "subject", "vendor"]

PORT = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is tried: a container of the image, made anew by each call, and the model that it serves."""

    container: Callable[[], DockerContainer]
    model: str
    patience: float
    """Seconds until it is ready."""
    gpu: bool


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU, unless it is asked for by its marker."""
    if "gpu" in (config.option.markexpr or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """Each image that is tried."""
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)  # its own clean-up is an image that would have to be pulled
    return _on_gpu() if request.param == "gpu" else _without_gpu(request, monkeypatch)


def _without_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Subject:
    shared: Hosts = request.getfixturevalue("hosts")
    images: Made = request.getfixturevalue("made")
    monkeypatch.setenv("DOCKER_HOST", shared.docker_host)
    reference = images.image("cpu", baked=True).reference
    return Subject(container=lambda: _container(reference), model=MODEL, patience=60, gpu=False)


def _on_gpu() -> Subject:
    image, model = os.environ.get("SMOKE_IMAGE", ""), os.environ.get("SMOKE_MODEL", "")
    if not image or not model:
        pytest.fail("SMOKE_IMAGE and SMOKE_MODEL: expected an image for this GPU and the model that it serves")
    from docker.types import DeviceRequest  # type: ignore[import-untyped, unused-ignore]  # comes with testcontainers

    def make() -> DockerContainer:
        given: dict[str, Any] = {"device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])], "shm_size": "16g"}
        return _container(image).with_env("MODEL", model).with_kwargs(**given)

    return Subject(container=make, model=model, patience=1500, gpu=True)


def _container(reference: str) -> DockerContainer:
    return DockerContainer(reference).with_env("PORT", str(PORT)).with_exposed_ports(PORT)
