"""Docker, a registry, the miniature vendor and its images, once for all processes of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ci.hosts.shared import Hosts, shared_hosts
from tests.images.made import Made, make_all
from tests.twins.vendor.vendor import Vendor, miniature


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Hosts]:
    """Docker, the registry and the base, shared with the other processes of this run."""
    own = tmp_path_factory.getbasetemp()
    with shared_hosts((own if worker_id == "master" else own.parent) / "hosts") as found:
        yield found


@pytest.fixture(scope="session")
def vendor(hosts: Hosts) -> Iterator[Vendor]:
    """The vendor in miniature: its registry is the shared one, its index and its hub are this process's own."""
    with tempfile.TemporaryDirectory(prefix="vendor-") as folder, miniature(hosts, Path(folder)) as found:
        yield found


@pytest.fixture(scope="session")
def made(hosts: Hosts, vendor: Vendor) -> Made:
    """Every image of the miniature, built and pushed by whichever process asks first."""
    return make_all(hosts, vendor)
