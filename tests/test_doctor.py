"""The checks of this machine."""

from __future__ import annotations

import dataclasses
import io
import socket
import time
from pathlib import Path

import pytest
from rich.console import Console

from scripts import doctor
from scripts.settings import Settings
from tests.conftest import needs_docker


def lines(settings: Settings, **arguments: object) -> tuple[bool, list[str]]:
    """Return doctor's verdict and the lines that it prints."""
    output = io.StringIO()
    passed = doctor.doctor(settings, Console(file=output), **arguments)  # type: ignore[arg-type]
    return passed, output.getvalue().splitlines()


def test_without_docker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    start = time.monotonic()
    passed, output = lines(settings, ports=[])
    assert time.monotonic() - start < 15
    assert not passed
    failed = [line for line in output if line.startswith("✗")]
    assert len(failed) == 1
    assert "Docker" in failed[0] and ("not reachable" in failed[0] or "no docker command" in failed[0])
    assert "✓ source one: " in "\n".join(output)


def test_port_in_use(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        passed, output = lines(dataclasses.replace(settings, watch_port=port))
    assert not passed
    assert any(line.startswith(f"✗ port {port}: address already in use: stop what uses it") for line in output)


def test_unreachable_source(settings: Settings, tmp_path: Path) -> None:
    first, second = settings.sources
    gone = dataclasses.replace(first, url=f"file://{tmp_path}/nowhere")
    passed, output = lines(dataclasses.replace(settings, sources=(gone, second)), ports=[])
    assert not passed
    assert any(line.startswith("✗ source one: ") and "--set sources.one.url=" in line for line in output)
    assert any(line.startswith("✓ source two: ") for line in output)


def test_missing_base_image_names_the_way_out(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_docker()
    monkeypatch.setattr(doctor, "debootstrap", lambda: None)
    missing = dataclasses.replace(settings, base_image="localhost:9/nowhere:none")
    passed, output = lines(missing, ports=[])
    assert not passed
    assert any(
        line.startswith("✗ base image localhost:9/nowhere:none: ") and "apt-get install" in line for line in output
    )


def test_all_is_well(settings: Settings) -> None:
    needs_docker()
    passed, output = lines(settings, ports=[])
    unmet = [line for line in output if line.startswith("✗")]
    if unmet and all("disk space" in line or "base image" in line for line in unmet):
        pytest.skip(f"this machine: {unmet[0]}")
    assert passed, output
    assert len(output) == 9
