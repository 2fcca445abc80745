"""What may be pushed, under which tags, and what is recorded of it."""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.images import Image

from scripts.errors import ToolkitError
from scripts.machine import engine
from scripts.machine import registry as registry_module
from scripts.machine.engine import LABEL
from scripts.patchset import series
from scripts.pins.schema import Push
from scripts.pins.settings import Settings
from scripts.publish import push
from tests import registries as registries_module
from tests.conftest import git
from tests.publication import quiet, release, report


@pytest.fixture
def verified(settings: Settings, client: docker.DockerClient, registries: Settings) -> Iterator[Settings]:
    """Return settings of a name of their own, with a small image that passes for the verified one."""
    name = f"freeswitch-tp-error-test-{uuid.uuid4().hex[:8]}"
    mine = dataclasses.replace(settings, image=name, base_image=registries.base_image, push=Push(repository=""))
    make(client, mine)
    yield mine
    every = [tag for image in engine.images(client, label=f"{LABEL}.test={name}") for tag in image.tags]
    registries_module.forget(client, *every)


def make(client: docker.DockerClient, settings: Settings, **labels: str) -> Image:
    """Make a patched image of `settings`, and a report that it passed."""
    pins = {f"{LABEL}.{source.name}": source.commit for source in settings.sources}
    stamps = {f"{LABEL}.series": series.series_hash(settings), f"{LABEL}.test": settings.image}
    image = registries_module.small_image(
        client, settings.base_image, f"{settings.image}:patched", **{**pins, **stamps, **labels}
    )
    report(settings, str(image.id))
    return image


def manifest(place: str, repository: str, reference: str) -> tuple[str, Any]:
    """Ask the registry itself: return the digest that it gives, and the manifest."""
    request = urllib.request.Request(
        f"http://{place}/v2/{repository}/manifests/{reference}",
        headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers["Docker-Content-Digest"], json.load(answer)


def test_verified_image_is_pushed_and_pulled_back(
    verified: Settings, client: docker.DockerClient, registry: str, project: Path
) -> None:
    image = client.images.get(f"{verified.image}:patched")
    target = f"{registry}/voip/{uuid.uuid4().hex}"
    pushed = push.push(verified, target, console=quiet(), root=project)
    assert pushed.tags == ["1.2.3", "1.2", "1", "latest"]
    for tag in pushed.tags:
        digest, document = manifest(registry, target.partition("/")[2], tag)
        assert digest == pushed.digest
        assert document["config"]["digest"] == image.id == pushed.image

    registries_module.forget(client, *(f"{target}:{tag}" for tag in pushed.tags), f"{verified.image}:patched")
    pulled = client.images.pull(target, tag="1.2.3")
    assert pulled.id == pushed.image
    assert f"{target}@{pushed.digest}" in pulled.attrs["RepoDigests"]

    record = json.loads((verified.report_directory / "push.json").read_text())
    assert record == {
        "repository": target, "tags": list(pushed.tags), "digest": pushed.digest, "image": pushed.image
    }  # fmt: skip
    line = (verified.report_directory / "digest.txt").read_text()
    assert line == f"{pushed.digest.removeprefix('sha256:')}  {target}\n"


def test_version_of_what_is_inside_is_a_tag_too(
    verified: Settings, client: docker.DockerClient, registry: str, project: Path
) -> None:
    make(client, verified, **{"org.opencontainers.image.version": "1.11.1-tp1.2.3"})
    target = f"{registry}/{uuid.uuid4().hex}"
    pushed = push.push(verified, target, console=quiet(), root=project)
    assert pushed.tags == ["1.2.3", "1.11.1-tp1.2.3", "1.2", "1", "latest"]
    git(project, "tag", "--delete", "v1.2.3")
    release(project, "1.2.4")
    make(client, verified, **{"org.opencontainers.image.version": "1.11.1-tp1.2.3"})
    with pytest.raises(ToolkitError, match=r":1\.11\.1-tp1\.2\.3 is published already"):
        push.push(verified, target, console=quiet(), root=project)


def test_other_set_of_modules_has_tags_of_its_own(
    verified: Settings, client: docker.DockerClient, registry: str, project: Path
) -> None:
    target = f"{registry}/{uuid.uuid4().hex}"
    usual = push.push(verified, target, console=quiet(), root=project)
    labels = {"org.opencontainers.image.version": "1.11.1-tp1.2.3", f"{LABEL}.module-set": "full"}
    make(client, verified, **labels)
    full = push.push(verified, target, console=quiet(), root=project)
    assert full.tags == ["1.2.3-full", "1.11.1-tp1.2.3-full", "1.2-full", "1-full", "latest-full"]
    assert manifest(registry, target.partition("/")[2], "latest")[0] == usual.digest != full.digest


def test_image_that_was_not_verified_is_not_pushed(
    verified: Settings, client: docker.DockerClient, registry: str
) -> None:
    """Another image under the same tag, whatever its labels say."""
    old = json.loads((verified.report_directory / "verify.json").read_text())
    other = make(client, verified)
    (verified.report_directory / "verify.json").write_text(json.dumps(old))
    name = uuid.uuid4().hex
    with pytest.raises(ToolkitError, match=rf"is {other.id}, but sha256:\w+ was verified .*: run `inv verify`"):
        push.push(verified, f"{registry}/{name}", ["edge"], console=quiet())
    with engine.connect() as connection:
        assert registry_module.digest(connection, f"{registry}/{name}:edge") == ""
    assert not (verified.report_directory / "push.json").exists()
    with pytest.raises(ToolkitError, match="was verified"):
        push.save(verified, quiet())
    assert not (verified.build_directory / "image.tar").exists()


def test_missing_image_is_not_pushed(verified: Settings, client: docker.DockerClient) -> None:
    registries_module.forget(client, f"{verified.image}:patched")
    with pytest.raises(ToolkitError, match=r"there is no image freeswitch-tp-error-test-\w+:patched: run `inv verify`"):
        push.push(verified, "127.0.0.1:9/x", ["edge"], console=quiet())


def test_version_is_pushed_once(verified: Settings, client: docker.DockerClient, registry: str, project: Path) -> None:
    target = f"{registry}/{uuid.uuid4().hex}"
    first = push.push(verified, target, console=quiet(), root=project)
    # A run that broke off is repeated.
    assert push.push(verified, target, console=quiet(), root=project) == first
    make(client, verified)
    with pytest.raises(
        ToolkitError, match=rf":1\.2\.3 is published already, as {first.digest}: a version is pushed once"
    ):
        push.push(verified, target, console=quiet(), root=project)
    assert manifest(registry, target.partition("/")[2], "latest")[0] == first.digest
    # Other tags may move.
    assert push.push(verified, target, ["latest"], console=quiet(), root=project).digest != first.digest


@pytest.mark.parametrize(
    "label", [f"{LABEL}.one", f"{LABEL}.series", "org.opencontainers.image.revision"], ids=["pin", "series", "revision"]
)
def test_version_is_made_from_its_own_sources(
    verified: Settings, client: docker.DockerClient, registry: str, project: Path, label: str
) -> None:
    make(client, verified, **{label: "0" * 40})
    target = f"{registry}/{uuid.uuid4().hex}"
    with pytest.raises(ToolkitError, match=rf"made from other sources .* label {re.escape(label)} is '0{{40}}', not"):
        push.push(verified, target, console=quiet(), root=project)
    with engine.connect() as connection:
        assert registry_module.digest(connection, f"{target}:1.2.3") == ""


def test_saved_image_is_loaded_elsewhere(verified: Settings, client: docker.DockerClient, registry: str) -> None:
    image = client.images.get(f"{verified.image}:patched")
    archive = push.save(verified, quiet())
    assert archive == verified.build_directory / "image.tar"
    registries_module.forget(client, f"{verified.image}:patched")
    push.load(verified, quiet())
    assert client.images.get(f"{verified.image}:patched").id == image.id
    pushed = push.push(verified, f"{registry}/{uuid.uuid4().hex}", ["edge"], console=quiet())
    assert pushed.image == image.id


def test_archive_of_another_image_is_refused_before_it_is_loaded(
    verified: Settings, client: docker.DockerClient
) -> None:
    saved = client.images.get(f"{verified.image}:patched")
    push.save(verified, quiet())
    image = make(client, verified)
    expected = rf"image\.tar has .*:patched as {saved.id}, but {image.id} was verified .*: nothing was loaded"
    with pytest.raises(ToolkitError, match=expected):
        push.load(verified, quiet())
    assert client.images.get(f"{verified.image}:patched").id == image.id


def test_registry_that_is_not_there(verified: Settings) -> None:
    with pytest.raises(
        ToolkitError, match=r"^127\.0\.0\.1:9/x:edge: 127\.0\.0\.1:9 does not answer .*check the network"
    ):
        push.push(verified, "127.0.0.1:9/x", ["edge"], console=quiet())
    assert not (verified.report_directory / "push.json").exists()
