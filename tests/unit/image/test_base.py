"""The base image. Bootstrapping a real one takes minutes and the network: `inv base` does."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.image import base
from scripts.machine import engine
from scripts.pins.settings import Settings
from tests.conftest import needs_docker


@pytest.fixture
def named(settings: Settings) -> Iterator[Settings]:
    """Return settings with a base image of this test alone, which is removed at the end."""
    needs_docker()
    name = f"localhost:9/toolkit-test-{uuid.uuid4().hex[:8]}:x"
    yield dataclasses.replace(settings, base_image=name)
    with engine.connect() as client:
        for image in engine.images(client, name):
            client.images.remove(image.id, force=True)


def fake_debootstrap(directory: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a debootstrap that runs `body` first into PATH; $3 is the target directory."""
    directory.mkdir()
    script = directory / "debootstrap"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def needs_root() -> None:
    """Skip the test without the rights to bootstrap."""
    if os.geteuid():
        pytest.skip("making the base image needs root")


def test_present_image_is_left_alone(named: Settings) -> None:
    empty = io.BytesIO()
    with tarfile.open(fileobj=empty, mode="w"):
        pass
    repository, _, tag = named.base_image.rpartition(":")
    with engine.connect() as client:
        client.api.import_image_from_data(empty.getvalue(), repository=repository, tag=tag)
        before = client.images.get(named.base_image).id
        base.ensure(named.base_image, named.base_suite, named.build_directory)
        assert client.images.get(named.base_image).id == before


def test_image_is_made_if_it_cannot_be_pulled(named: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_root()
    fake_debootstrap(
        tmp_path / "bin",
        monkeypatch,
        'echo "I: Retrieving"; mkdir -p "$3/etc" "$3/var/lib/apt/lists" "$3/var/cache/apt/archives"\n'
        'echo 12 > "$3/etc/debian_version"; touch "$3/var/lib/apt/lists/big" "$3/var/cache/apt/archives/a.deb"',
    )
    output = io.StringIO()
    base.ensure(named.base_image, named.base_suite, named.build_directory, Console(file=output))
    assert "cannot be pulled" in output.getvalue() and "debootstrap: Retrieving\n" in output.getvalue()
    with engine.connect() as client:
        image = client.images.get(named.base_image)
        assert image.labels == engine.IMAGE_LABEL
        container = client.containers.create(image, command="/none")
        try:
            content = io.BytesIO(b"".join(container.export()))
        finally:
            container.remove()
    with tarfile.open(fileobj=content) as tar:
        names = {name.removeprefix("./") for name in tar.getnames()}
    assert {"etc/debian_version", "var/lib/apt/lists", "var/cache/apt/archives"} <= names
    assert not {"var/lib/apt/lists/big", "var/cache/apt/archives/a.deb"} & names
    assert not named.build_directory.exists()


def test_failure_of_debootstrap(named: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_root()
    body = 'mkdir -p "$3/etc"; echo "E: No such script: $2"; exit 1'
    fake_debootstrap(tmp_path / "bin", monkeypatch, body)
    with pytest.raises(ToolkitError, match=r"debootstrap failed \(No such script: bookworm\)"):
        base.make(named.base_image, named.base_suite, named.build_directory)
    assert not named.build_directory.exists()
    with engine.connect() as client:
        assert engine.images(client, named.base_image) == []


def test_missing_debootstrap_that_cannot_be_downloaded(
    named: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package debootstrap' >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(base, "debootstrap", lambda: None)
    with pytest.raises(ToolkitError, match=r"debootstrap is missing.*Unable to locate.*apt-get install debootstrap"):
        base.make(named.base_image, named.base_suite, named.build_directory)
    assert not named.build_directory.exists()


def test_missing_debootstrap_is_downloaded(named: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an ordinary user can: what is in the package runs from where it was unpacked."""
    needs_root()
    for name, body in {
        "apt-get": 'test "$1" = download && touch debootstrap_1.deb',
        "dpkg-deb": 'test "$1 $3" = "-x ." && mkdir -p usr/sbin usr/share/debootstrap && cp "$SCRIPT" '
        "usr/sbin/debootstrap",
        "script": 'test -d "$DEBOOTSTRAP_DIR" && mkdir -p "$3/etc" && echo 12 >"$3/etc/debian_version"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("SCRIPT", str(tmp_path / "script"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(base, "debootstrap", lambda: None)
    output = io.StringIO()
    base.make(named.base_image, named.base_suite, named.build_directory, Console(file=output))
    assert "debootstrap: not installed, downloading debootstrap" in output.getvalue()
    with engine.connect() as client:
        assert client.images.get(named.base_image).labels == engine.IMAGE_LABEL
    assert not named.build_directory.exists()


def test_without_docker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(ToolkitError, match="Docker engine not reachable"):
        base.ensure(settings.base_image, settings.base_suite, settings.build_directory)
