from __future__ import annotations

import socket
import socketserver
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import DockerClient
from docker.errors import APIError
from docker.models.networks import NetworkCollection
from requests.exceptions import ReadTimeout

from scripts.errors import ToolkitError
from scripts.machine import engine
from tests.conftest import PATIENCE, needs_docker


def connect() -> ToolkitError:
    with pytest.raises(ToolkitError) as raised, engine.connect():
        pass
    return raised.value


def test_engine_that_hangs_is_told_from_one_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ANSWER", 0.2)
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    try:
        raise ReadTimeout
    except ReadTimeout:
        # Of something else.
        error = connect()
    assert "not reachable" in error.what and str(path) in error.what
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(path))
        hanging.listen()
        error = connect()
    assert f"{path} takes connections and does not answer" in error.what
    assert "restart" in error.remedy


@pytest.mark.parametrize(
    ("answer", "words", "remedy"),
    [
        (None, "has stopped answering", "restart it there if it hangs"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "has stopped answering", "restart it there if it hangs"),
        (b"", "is gone (", "systemctl start docker"),
    ],
    ids=["mute", "mute in the middle", "gone"],
)
def test_engine_that_fails_later_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, words: str, remedy: str
) -> None:
    path, ended = tmp_path / "docker.sock", threading.Event()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")

    class Engine(socketserver.BaseRequestHandler):
        """Answers until it is asked for /info."""

        def handle(self) -> None:
            while (request := self.request.recv(10_000)) and b"/info" not in request:
                body = b'{"ApiVersion": "1.45"}' if b"/version" in request else b"OK"
                self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            if request and answer != b"":
                self.request.sendall(answer or b"")
                ended.wait(PATIENCE)

    with socketserver.ThreadingUnixStreamServer(str(path), Engine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ToolkitError) as raised, engine.connect() as client:
            client.api.timeout = 1
            client.info()
        ended.set()
        server.shutdown()
    assert f"Docker engine at unix://{path} {words}" in raised.value.what
    assert remedy in raised.value.remedy and "HTTPConnectionPool" not in str(raised.value)


def test_later_failure_of_another_kind_keeps_its_words() -> None:
    try:
        raise ReadTimeout
    except ReadTimeout as outside:
        try:
            raise APIError("x", explanation="no such image")
        except APIError as error:
            assert str(engine.failure(error, outside)) == "Docker refused: no such image"


@pytest.fixture
def three() -> Iterator[tuple[DockerClient, str]]:
    """Yield a client and a label of an image of nothing, of two containers of it, and of a network."""
    needs_docker()
    name = f"toolkit-test-{uuid.uuid4().hex[:8]}"
    with engine.connect() as client:
        client.api.import_image_from_data(engine.tar({}), repository=name, tag="x", changes=[f"LABEL {name}=true"])
        for number in range(2):
            client.containers.create(f"{name}:x", command="/none", name=f"{name}-{number}")
        client.networks.create(name, labels={name: "true"})
        yield client, name
        engine.remove(client, name)
        for image in engine.images(client, label=name):
            client.images.remove(image.id, force=True)


def test_list_leaves_out_what_goes_meanwhile(three: tuple[DockerClient, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine answers with names first; what it is asked for each of them comes too late for some."""
    client, name = three
    containers = client.api.containers(all=True, filters={"label": name})
    images = client.api.images(filters={"label": name})
    assert len(engine.containers(client, name)) == 2
    client.containers.get(f"{name}-0").remove()
    # For the assertion only: who removes by such a list removes everything.
    with monkeypatch.context() as patch:
        patch.setattr(client.api, "containers", lambda **_: containers)
        assert f"{name}-0" not in {container.name for container in engine.containers(client)}
    client.containers.get(f"{name}-1").remove()
    client.images.remove(f"{name}:x")
    with monkeypatch.context() as patch:
        patch.setattr(client.api, "images", lambda **_: images)
        assert f"{name}:x" not in {tag for image in engine.images(client) for tag in image.tags}


def test_what_somebody_else_removes_is_not_removed(
    three: tuple[DockerClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, name = three
    found = engine.containers(client, name)
    networks = client.networks.list(filters={"label": name})
    client.containers.get(f"{name}-0").remove()
    client.networks.get(name).remove()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "containers", lambda *_: found)
        patch.setattr(NetworkCollection, "list", lambda *_, **__: networks)
        assert engine.remove(client, name) == [f"container {name}-1"]
    assert engine.remove(client, name) == []
