"""The example of examples/compose, used as a newcomer would."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from scripts import example
from scripts.errors import ToolkitError
from scripts.machine import engine
from scripts.pins.settings import Settings


class Compose:
    """The example under a project name of its own."""

    def __init__(self, settings: Settings) -> None:
        self.command = engine.compose_command().split()
        self.project = f"tp-error-example-{secrets.token_hex(4)}"
        self.timeout = settings.start_timeout
        self.environment = {
            **os.environ,
            "IMAGE": settings.image,
            "ESL_EVENT": settings.esl_event,
            # Whatever port is free, and a network that isn't likely to be there.
            "SIP_PORT": "0",
            "EVENTS_SUBNET": f"10.{secrets.randbelow(256)}.{secrets.randbelow(256)}.0/24",
        }

    def __call__(self, *arguments: str) -> str:
        every = [
            *self.command, "--project-name", self.project, "--file", str(example.DIRECTORY / "compose.yaml"),
            "--profile", "phone", *arguments,
        ]  # fmt: skip
        outcome = subprocess.run(every, env=self.environment, capture_output=True, text=True, check=False)
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout

    def wait(self, service: str, text: str) -> str:
        """Return the log of `service` once `text` is in it."""
        deadline = time.monotonic() + self.timeout
        while text not in (log := self("logs", "--no-color", service)):
            assert time.monotonic() < deadline, f"no '{text}' in {self('logs', '--no-color')}"
            time.sleep(0.5)
        return log


@pytest.fixture(scope="module")
def compose(built: Settings) -> Iterator[Compose]:
    try:
        compose = Compose(built)
    except ToolkitError as error:
        pytest.skip(str(error))
    example.build_images(built, Console(quiet=True))
    try:
        compose("up", "--detach", "init", "freeswitch", "subscriber")
        yield compose
    finally:
        compose("down", "--volumes", "--timeout", "5")


def test_killed_phone_is_printed(compose: Compose) -> None:
    assert "alice@example.test has the password " in compose.wait("init", "password")
    compose.wait("subscriber", "watching freeswitch:8021")
    compose("up", "--detach", "phone")
    registered = ["exec", "-T", "freeswitch", "fs_cli", "-x", "sofia status profile internal reg"]
    deadline = time.monotonic() + compose.timeout
    while "alice@example.test" not in compose(*registered):
        assert time.monotonic() < deadline, compose("logs", "--no-color", "phone")
        time.sleep(0.5)
    compose("kill", "phone")
    log = compose.wait("subscriber", "alice@example.test")
    (line,) = (line for line in log.splitlines() if "alice@example.test" in line)
    assert "tcp" in line and "offline" in line


def test_subscriber_comes_back(compose: Compose) -> None:
    before = compose.wait("subscriber", "watching freeswitch:8021").count("watching")
    compose("restart", "freeswitch")
    deadline = time.monotonic() + compose.timeout
    while (log := compose("logs", "--no-color", "subscriber")).count("watching") <= before:
        assert time.monotonic() < deadline, log
        time.sleep(0.5)


def test_only_the_phone_port_is_published(compose: Compose) -> None:
    names = compose("ps", "-q").split()
    with engine.connect() as client:
        ports = [port for name in names for port, at in client.containers.get(name).ports.items() if at]
    assert set(ports) == {"5060/tcp", "5060/udp"}


def test_every_volume_has_a_name(compose: Compose) -> None:
    """One without would stay when the example ends, and nobody would know whose it is."""
    with engine.connect() as client:
        mine = {"label": f"com.docker.compose.project={compose.project}"}
        containers = client.containers.list(all=True, filters=mine)
        mounts = [mount for container in containers for mount in container.attrs["Mounts"]]
    assert any(container.labels["com.docker.compose.service"] == "init" for container in containers)
    volumes = {mount["Name"] for mount in mounts if mount["Type"] == "volume"}
    assert volumes == {f"{compose.project}_{name}" for name in ("secrets", "users", "state", "logs")}
