"""A pytest plugin: the lab as a fixture. Its tests get the marker `docker`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from rich.console import Console

from scripts import engine, image
from scripts.errors import ToolkitError
from scripts.settings import Settings, load
from tests import lab as lab_module
from tests.lab import Lab


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "docker: needs a Docker engine and the images")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "built" in getattr(item, "fixturenames", ()):
            item.add_marker("docker")


@pytest.fixture(scope="session")
def built() -> Settings:
    """Return the project's settings once the images are up to date; skip if they can't be made here."""
    settings = load(overrides=[line for line in os.environ.get("TOOLKIT_SET", "").splitlines() if line])
    try:
        with engine.connect(timeout=10):
            pass
        lab_module.compose_command()
        image.build(settings, Console(quiet=True))
    except ToolkitError as error:
        pytest.skip(str(error))
    return settings


@pytest.fixture(scope="session")
def lab(built: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Return the lab with the patched image."""
    with lab_module.start(built, tmp_path_factory.mktemp("lab"), spare=True) as found:
        yield found
