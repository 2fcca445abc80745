"""tcpdump next to a container: what it sees, and that nothing of it fails."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

import docker
import pytest
from docker.models.containers import Container, ContainerCollection

from scripts.freeswitch import capture
from scripts.freeswitch.capture import Capture, Sniffer
from scripts.freeswitch.packets import dissect
from scripts.machine import engine
from scripts.machine.engine import LABEL
from scripts.pins.settings import Settings
from tests.conftest import PATIENCE

# One connection that is refused: a SYN and an RST.
KNOCK = "exec 3<>/dev/tcp/127.0.0.1/5060"


@pytest.fixture
def target(built: Settings, client: docker.DockerClient) -> Iterator[Container]:
    container = client.containers.run(
        f"{built.image}:sipp",
        entrypoint=["sleep"],
        command=["infinity"],
        init=True,
        detach=True,
        labels={LABEL: "true"},
    )
    try:
        yield container
    finally:
        container.remove(force=True)


def sniffer(client: docker.DockerClient, image: str, target: Container) -> Sniffer:
    name = f"tp-error-capture-{secrets.token_hex(4)}"
    return Sniffer(client, image, target, "tcp and not port 8021", name, {LABEL: "true"})


def test_packets_of_the_other_container_are_seen(
    built: Settings, client: docker.DockerClient, target: Container
) -> None:
    found = sniffer(client, f"{built.image}:sipp", target)
    try:
        found.start()
        assert found.problem == ""
        engine.execute(target, ["bash", "-c", KNOCK])
        pcap, problem = found.read()
        assert problem == ""
        packets = list(dissect(Capture("tcp", "127.0.0.1", pcap=pcap)))
        assert [packet.flags for packet in packets[:2]] == ["SYN", "RST ACK"]
        assert all(packet.target.endswith(":5060") or packet.source.endswith(":5060") for packet in packets)
    finally:
        found.remove()
    assert not client.containers.list(all=True, filters={"name": found.name})


@pytest.mark.parametrize(("buffer", "loses"), [(capture.BUFFER, False), ((), True)])
def test_packets_wait_for_a_tcpdump_that_gets_no_cpu(
    built: Settings,
    client: docker.DockerClient,
    target: Container,
    monkeypatch: pytest.MonkeyPatch,
    buffer: tuple[str, ...],
    loses: bool,
) -> None:
    monkeypatch.setattr(capture, "BUFFER", buffer)
    found = sniffer(client, f"{built.image}:sipp", target)
    # Of each a SYN and an RST.
    knocks = 50
    try:
        found.start()
        assert found.problem == "" and found.container
        found.container.pause()
        engine.execute(target, ["bash", "-c", f"for i in {{1..{knocks}}}; do {KNOCK}; done"])
        found.container.unpause()
        seen, deadline = 0, time.monotonic() + (0.5 if loses else PATIENCE)
        while seen < 2 * knocks and time.monotonic() < deadline:
            pcap, problem = found.read()
            assert problem == ""
            seen = len(list(dissect(Capture("tcp", "127.0.0.1", pcap=pcap))))
        assert (seen < 2 * knocks) == loses
    finally:
        found.remove()


def test_tcpdump_that_ends_in_the_middle_is_a_line(
    built: Settings, client: docker.DockerClient, target: Container
) -> None:
    found = sniffer(client, f"{built.image}:sipp", target)
    try:
        found.start()
        assert found.container
        found.container.kill()
        found.container.wait()
        assert found.read() == (b"", "the capture is not whole: tcpdump ended in the middle")
    finally:
        found.remove()


def test_image_without_tcpdump_is_a_line(built: Settings, client: docker.DockerClient, target: Container) -> None:
    found = sniffer(client, f"{built.image}:stock", target)
    try:
        found.start()
        assert found.problem == "nothing was captured: its image has no tcpdump: `inv build` makes it anew"
        assert found.read() == (b"", found.problem)
    finally:
        found.remove()


def test_missing_right_is_a_line(
    built: Settings, client: docker.DockerClient, target: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = ContainerCollection.create

    def create_without(self: ContainerCollection, *arguments: Any, **options: Any) -> Container:
        return create(self, *arguments, **options, cap_drop=["NET_RAW"])

    monkeypatch.setattr(ContainerCollection, "create", create_without)
    found = sniffer(client, f"{built.image}:sipp", target)
    try:
        found.start()
        assert found.problem.startswith("nothing was captured: ") and "\n" not in found.problem
        assert "permission" in found.problem
    finally:
        found.remove()


def test_removed_in_the_middle_is_a_line(built: Settings, client: docker.DockerClient, target: Container) -> None:
    found = sniffer(client, f"{built.image}:sipp", target)
    found.start()
    assert found.container
    found.container.remove(force=True)
    pcap, problem = found.read()
    assert pcap == b"" and problem.startswith("the capture could not be read: ") and "\n" not in problem
    found.remove()
    assert found.problem == ""
