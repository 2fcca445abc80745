"""Registries: names, the login, and what a refusal is answered with."""

from __future__ import annotations

import dataclasses
import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.image import base
from scripts.machine import engine
from scripts.machine import registry as registry_module
from scripts.pins.settings import Settings
from tests import registries as registries_module

USER, PASSWORD = "ann", "correct horse"


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def locked(registries: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a registry that wants a login, with a Docker configuration of its own; hand over its host and port."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with engine.connect() as client, registries_module.run(client, "locked.yml") as place:
        yield place


def test_mistyped_base_image_is_not_made(registry: str, registries: Settings) -> None:
    wrong = dataclasses.replace(registries, base_image=f"{registry}/debian:bokworm")
    with pytest.raises(ToolkitError, match=r"the registry has no such image .*: correct build.base_image"):
        base.ensure(wrong.base_image, wrong.base_suite, wrong.build_directory, quiet())


def test_login_opens_the_registry_and_logout_closes_it(
    locked: str, registries: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = f"{locked}/{uuid.uuid4().hex}:edge"
    with engine.connect() as client:
        image = registries_module.small_image(client, registries.base_image, reference)
    try:
        for action in (
            lambda client: registry_module.push(client, image, reference),
            lambda client: registry_module.pull(client, reference),
            lambda client: registry_module.digest(client, reference),
        ):
            with (
                engine.connect() as client,
                pytest.raises(ToolkitError, match=rf"{reference}: {locked} .*: log in \(`inv login`\)"),
            ):
                action(client)

        monkeypatch.setenv(registry_module.USER, USER)
        monkeypatch.setenv(registry_module.PASSWORD, "wrong")
        with pytest.raises(ToolkitError, match=rf"{locked} refuses the login of ann \(.*: check REGISTRY_USER and"):
            registry_module.login(reference, quiet())

        monkeypatch.setenv(registry_module.PASSWORD, PASSWORD)
        registry_module.login(reference, quiet())
        # Each client reads the passwords once.
        with engine.connect() as client:
            digest = registry_module.push(client, image, reference)
            assert registry_module.digest(client, reference) == digest
            pulled = registry_module.pull(client, reference)
            assert pulled is not None and pulled.id == image.id
            assert registry_module.digest(client, reference.replace(":edge", ":none")) == ""
            assert registry_module.pull(client, reference.replace(":edge", ":none")) is None

        registry_module.logout(reference, quiet())
        assert json.loads((tmp_path / "docker/config.json").read_text()).get("auths", {}) == {}
        with engine.connect() as client, pytest.raises(ToolkitError, match=r"log in \(`inv login`\)"):
            registry_module.digest(client, reference)
    finally:
        with engine.connect() as client:
            registries_module.forget(client, reference)


def test_push_that_fails_leaves_no_name(registries: Settings) -> None:
    """Neither on the image, nor another image without the name that it had."""
    name = f"127.0.0.1:9/{uuid.uuid4().hex}"
    names = [f"{name}:{tag}" for tag in ("mine", "other", "edge")]
    with engine.connect() as client:
        try:
            image, other = (registries_module.small_image(client, registries.base_image, name) for name in names[:2])
            for reference in names[1:]:
                with pytest.raises(ToolkitError, match=rf"{reference}: .* does not answer as it should"):
                    registry_module.push(client, image, reference)
            image.reload()
            other.reload()
            assert (image.tags, other.tags) == (names[:1], names[1:2])
        finally:
            registries_module.forget(client, *names)


def test_tag_that_is_not_there(registry: str) -> None:
    with engine.connect() as client:
        assert registry_module.digest(client, f"{registry}/nothing:edge") == ""
        assert registry_module.pull(client, f"{registry}/nothing:edge") is None
