"""The labs that the scenarios' tests share."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator

import pytest

from scripts.errors import ToolkitError
from scripts.machine import engine
from scripts.pins.settings import Settings
from scripts.scenario import lab as lab_module
from scripts.scenario.lab import Lab
from tests.deaths import CPUS, DEATHS

# What FreeSWITCH may take to start when several do and the machine is busy, seconds.
START = 300.0


@pytest.fixture(scope="package")
def labs(built: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Lab]]:
    """Return a function that returns the lab with the patched image and so many CPUs, always the same one.

    They end with the last of these tests: what idles takes a part of the CPU from what comes after it.
    """
    try:
        engine.compose_command()
    except ToolkitError as error:
        pytest.skip(str(error))
    patient = dataclasses.replace(built, start_timeout=START)
    with contextlib.ExitStack() as stack:

        @functools.cache
        def lab(cpus: int) -> Lab:
            directory = tmp_path_factory.mktemp("lab")
            return stack.enter_context(lab_module.start(patient, DEATHS, directory, spare=True, heap=True, cpus=cpus))

        yield lab


@pytest.fixture(scope="package")
def lab(labs: Callable[[int], Lab]) -> Lab:
    """Return the lab with few CPUs."""
    return labs(min(CPUS))
