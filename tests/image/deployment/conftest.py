"""The container, and the tests that run side by side."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from scripts.machine import engine
from scripts.pins.settings import Settings
from scripts.scenario import lab as lab_module
from tests import aside
from tests.image.deployment.node import (
    Run,
    running,
)

# How many tests run at once.
LANES = 3


@pytest.fixture
def run(built: Settings) -> Iterator[Run]:
    """Return the function that `running` hands over."""
    with running(built) as start:
        yield start


@pytest.fixture(scope="package", autouse=True)
def side_by_side(request: pytest.FixtureRequest, built: Settings) -> Iterator[None]:
    """Run those tests at once that need a container of their own, and nothing else."""

    @contextlib.contextmanager
    def arguments(item: pytest.Function) -> Iterator[dict[str, Any]]:
        with running(built) as start:
            yield {"run": start, **aside.parameters(item)}

    def is_one(item: pytest.Function) -> bool:
        return set(inspect.signature(item.function).parameters) == {"run", *aside.parameters(item)}

    with aside.ahead(filter(is_one, aside.below(request)), arguments, LANES):
        yield


@pytest.fixture
def gateway(built: Settings) -> str:
    """Return this machine's address on the network of the containers."""
    with engine.connect() as client:
        return lab_module.gateway(client.networks.get("bridge"))
