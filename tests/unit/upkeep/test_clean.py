"""Removing what the toolkit made, and nothing else."""

from __future__ import annotations

import io
import tarfile
import uuid
from collections.abc import Iterator

import pytest

from scripts.errors import ToolkitError
from scripts.machine import engine
from scripts.pins.settings import Settings
from scripts.sources import trees
from scripts.upkeep import clean
from tests.conftest import needs_docker


@pytest.fixture
def label() -> Iterator[str]:
    """Return a label of this test alone, on a container, a network and an image."""
    needs_docker()
    name = f"toolkit-test-{uuid.uuid4().hex[:8]}"
    empty = io.BytesIO()
    with tarfile.open(fileobj=empty, mode="w"):
        pass
    with engine.connect() as client:
        for kind in (name, f"{name}-other"):
            data = empty.getvalue()
            client.api.import_image_from_data(data, repository=kind, tag="x", changes=[f"LABEL {kind}=image"])
            client.containers.create(f"{kind}:x", command="/none", name=kind, labels={kind: "true"})
            client.networks.create(kind, labels={kind: "true"})
        yield name
        for kind in (name, f"{name}-other"):
            engine.remove(client, kind)
            for image in engine.images(client, label=kind):
                client.images.remove(image.id, force=True)


def kinds(label: str) -> tuple[int, int, int]:
    """Return the number of containers, networks and images with `label`."""
    with engine.connect() as client:
        networks = client.networks.list(filters={"label": label})
        return len(engine.containers(client, label)), len(networks), len(engine.images(client, label=label))


def test_clean_removes_only_what_has_the_label(settings: Settings, label: str) -> None:
    trees.clone(settings.sources, settings.patches)
    (settings.build_directory / "report").mkdir()
    removed = clean.clean(settings, label=label)
    assert kinds(label) == (0, 0, 0)
    assert kinds(f"{label}-other") == (1, 1, 1)
    assert not settings.build_directory.exists()
    assert {f"removed container {label}", f"removed network {label}", f"removed image {label}:x"} < set(removed)
    assert clean.clean(settings, label=label) == []


def test_container_that_somebody_runs_from_the_image_stays(settings: Settings, label: str) -> None:
    with engine.connect() as client:
        # As `docker run` makes it: with the labels of its image.
        client.containers.create(f"{label}:x", command="/none", name=f"{label}-production")
        try:
            removed = clean.clean(settings, label=label)
            assert f"kept image {label}:x: container {label}-production was made of it" in removed
            assert kinds(label) == (1, 0, 1)
            assert client.containers.get(f"{label}-production")
        finally:
            client.containers.get(f"{label}-production").remove(force=True)
    assert f"removed image {label}:x" in clean.clean(settings, label=label)


def test_clean_keeps_what_it_is_told_to(settings: Settings, label: str) -> None:
    trees.clone(settings.sources, settings.patches)
    (settings.build_directory / "report").mkdir()
    clean.clean(settings, sources=False, images=False, label=label)
    assert kinds(label) == (0, 0, 1)
    assert [path.name for path in settings.build_directory.iterdir()] == ["sources"]
    assert all(source.path.exists() for source in settings.sources)


def test_clean_spares_local_changes(settings: Settings, label: str) -> None:
    trees.clone(settings.sources, settings.patches)
    file = settings.sources[1].path / "README"
    file.write_text("mine\n")
    with pytest.raises(ToolkitError, match=r"two: .* has local changes \(README\).*--force"):
        clean.clean(settings, label=label)
    assert kinds(label) == (1, 1, 1)
    assert file.read_text() == "mine\n" and settings.sources[0].path.exists()
    clean.clean(settings, force=True, label=label)
    assert not file.exists()


def test_clean_never_removes_a_directory_of_the_user(settings: Settings, label: str) -> None:
    settings.sources[0].path.mkdir(parents=True)
    with pytest.raises(ToolkitError, match=r"was not made by `inv clone`"):
        clean.clean(settings, force=True, label=label)
    assert settings.sources[0].path.exists()


def test_clean_without_docker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    trees.clone(settings.sources, settings.patches)
    with pytest.raises(ToolkitError, match=r"Docker engine not reachable .*DOCKER_HOST"):
        clean.clean(settings)
    assert all(source.path.exists() for source in settings.sources)
