"""The checks of this machine."""

from __future__ import annotations

import dataclasses
import io
import shutil
import socket
import time
from pathlib import Path

import pytest
from rich.console import Console

from scripts.pins.schema import Watch
from scripts.pins.settings import Settings
from scripts.upkeep import doctor
from tests.conftest import PATIENCE, needs_docker


def lines(settings: Settings, **arguments: object) -> tuple[bool, list[str]]:
    """Return doctor's verdict and the lines that it prints."""
    output = io.StringIO()
    passed = doctor.doctor(settings, Console(file=output), **arguments)  # type: ignore[arg-type]
    return passed, output.getvalue().splitlines()


def test_without_docker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    start = time.monotonic()
    passed, output = lines(settings)
    assert time.monotonic() - start < PATIENCE
    assert not passed
    failed = [line for line in output if line.startswith("✗")]
    assert len(failed) == 1
    assert "Docker" in failed[0] and ("not reachable" in failed[0] or "no docker command" in failed[0])
    assert "✓ source one: " in "\n".join(output)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_port_of_the_example_in_use_is_told_but_no_failure(settings: Settings, kind: socket.SocketKind) -> None:
    with socket.socket(type=kind) as server:
        server.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            server.listen()
        port = server.getsockname()[1]
        _, output = lines(settings, port=port)
    expected = f"✓ port {port}: address already in use, start the example with another one (SIP_PORT=5070 inv example)"
    assert expected in output


def test_port_of_the_event_socket_is_nobodys_need(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _, output = lines(dataclasses.replace(settings, watch=Watch(host="127.0.0.1", port=port)))
    assert not [line for line in output if str(port) in line]


def test_unreachable_source(settings: Settings, tmp_path: Path) -> None:
    first, second = settings.sources
    gone = dataclasses.replace(first, url=f"file://{tmp_path}/nowhere")
    passed, output = lines(dataclasses.replace(settings, sources=(gone, second)))
    assert not passed
    assert any(line.startswith("✗ source one: ") and "--set sources.one.url=" in line for line in output)
    assert any(line.startswith("✓ source two: ") for line in output)


def test_disk_of_the_sources_is_checked_if_it_is_their_own(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    elsewhere = dataclasses.replace(
        settings,
        sources=tuple(dataclasses.replace(source, path=other / "trees" / source.name) for source in settings.sources),
    )
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full if path == other else usage(path))
    told = "disk space of sources: "
    assert not [line for line in lines(elsewhere)[1] if told in line]
    monkeypatch.setattr(doctor, "_disk", lambda path: int(path == other))
    passed, output = lines(elsewhere)
    assert not passed
    assert f"✗ {told}0.0 GB free at {other}: 1 GB are needed, make room (`inv clean`, `docker system prune`)" in output
    assert not [line for line in lines(settings)[1] if told in line]


def test_missing_base_image_names_the_way_out(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_docker()
    monkeypatch.setattr(doctor, "can_make", lambda: False)
    missing = dataclasses.replace(settings, base_image="localhost:9/nowhere:none")
    passed, output = lines(missing)
    assert not passed
    assert any(
        line.startswith("✗ base image localhost:9/nowhere:none: ") and "apt-get install" in line for line in output
    )


def test_all_is_well(settings: Settings) -> None:
    needs_docker()
    passed, output = lines(settings)
    unmet = [line for line in output if line.startswith("✗")]
    if unmet and all("disk space" in line or "base image" in line for line in unmet):
        pytest.skip(f"this machine: {unmet[0]}")
    assert passed, output
    assert len(output) == 10
