"""tcpdump next to a container: what it sees, and that nothing of it fails."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import docker
import pytest
from docker.errors import APIError, DockerException
from docker.models.containers import Container, ContainerCollection
from requests.exceptions import ConnectionError as RequestsConnectionError

from scripts.freeswitch import capture
from scripts.freeswitch.capture import Capture, Sniffer
from scripts.freeswitch.packets import dissect
from scripts.machine import engine
from scripts.machine.engine import LABEL
from scripts.pins.settings import Settings

# One connection that is refused: a SYN and an RST.
KNOCK = "exec 3<>/dev/tcp/127.0.0.1/5060"


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    with engine.connect() as connection:
        yield connection


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


class Broken:
    """An engine or a container that fails in all it is asked."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.id = "0"

    def __getattr__(self, name: str) -> Any:
        if name == "containers":
            return self

        def fail(*arguments: object, **options: object) -> None:
            raise self.error

        return fail


@pytest.mark.parametrize(
    "error",
    [DockerException("went\naway"), RequestsConnectionError("gone"), APIError("boom", explanation="no such network")],
)
def test_broken_engine_is_a_line(error: Exception) -> None:
    broken: Any = Broken(error)
    found = Sniffer(broken, "image", broken, "tcp", "name", {})
    found.start()
    assert found.problem.startswith("nothing was captured: ") and "\n" not in found.problem
    assert found.read() == (b"", found.problem)
    found.remove()
    found.container, found.problem = broken, ""
    assert found.read()[1].startswith("the capture could not be read: ")
    found.remove()
    assert found.problem.startswith("tcpdump's container stays: ")


class Ended(Broken):
    """A container that has logged its last words."""

    status = "exited"

    def __init__(self, words: bytes) -> None:
        super().__init__(DockerException())
        self.words = words

    def create(self, *arguments: object, **options: object) -> Ended:
        return self

    def start(self) -> None: ...

    def reload(self) -> None: ...

    def logs(self) -> bytes:
        return self.words


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (b"tcpdump: eth0: You don't have permission\n(socket: Operation not permitted)\n", "tcpdump: eth0: You"),
        (b"\n", "tcpdump ended at once"),
    ],
)
def test_tcpdump_that_ends_says_why(words: bytes, problem: str) -> None:
    ended: Any = Ended(words)
    found = Sniffer(ended, "image", ended, "tcp", "name", {})
    found.start()
    assert found.problem.startswith(f"nothing was captured: {problem}")


def test_tcpdump_that_never_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "START_TIMEOUT", 0.1)
    monkeypatch.setattr(Ended, "status", "running")
    ended: Any = Ended(b"hm\n")
    found = Sniffer(ended, "image", ended, "tcp", "name", {})
    found.start()
    assert found.problem == "nothing was captured: tcpdump was not ready after 0.1 s"
