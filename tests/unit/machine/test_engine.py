from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import DockerClient
from docker.models.networks import NetworkCollection
from requests.exceptions import ReadTimeout

from scripts.errors import ToolkitError
from scripts.machine import engine
from tests.conftest import needs_docker


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
