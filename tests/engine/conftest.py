"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest

from scripts.machine import engine, registry


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    """Return a connection to the Docker engine."""
    with engine.connect(registry.TIMEOUT) as connection:
        yield connection
