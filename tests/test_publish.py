"""What may be pushed, under which tags, and what is recorded of it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.images import Image
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.machine import engine
from scripts.machine import registry as registry_module
from scripts.machine.engine import LABEL
from scripts.patchset import series
from scripts.pins.settings import Settings
from scripts.publish import push
from tests import registries as registries_module
from tests.conftest import git

PYPROJECT = '[project]\nname = "x"\nversion = "{}"\n'


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def report(settings: Settings, image: str, passed: object = True, **changes: object) -> None:
    """Write a report of `inv verify` about `image`."""
    settings.report_directory.mkdir(parents=True, exist_ok=True)
    document = {
        "passed": passed,
        "images": [
            {"variant": "patched", "tag": "x:patched", "id": image, "labels": {}},
            {"variant": "stock", "tag": "x:stock", "id": "sha256:other", "labels": {}},
        ],
        "results": [{"image": "patched"}, {"image": "stock"}],
        **changes,
    }
    (settings.report_directory / "verify.json").write_text(json.dumps(document))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a repository with the version 1.2.3 and a commit of that tag."""
    path = tmp_path / "project"
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    release(path, "1.2.3")
    return path


def release(path: Path, version: str) -> None:
    (path / "pyproject.toml").write_text(PYPROJECT.format(version))
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message=Release", "--allow-empty")
    git(path, "tag", f"v{version}")


def test_version_gives_its_tags(project: Path) -> None:
    assert push.version_tags(project) == ["1.2.3", "1.2", "1", "latest"]


@pytest.mark.parametrize(
    ("newer", "tags"),
    [
        ("1.2.4", ["1.2.3"]),
        ("1.3.0", ["1.2.3", "1.2"]),
        ("2.0.0", ["1.2.3", "1.2", "1"]),
        ("1.1.9", ["1.2.3", "1.2", "1", "latest"]),
        ("2.0.0rc1", ["1.2.3", "1.2", "1", "latest"]),
    ],
)
def test_older_version_leaves_the_tags_of_a_newer_one_alone(project: Path, newer: str, tags: list[str]) -> None:
    git(project, "tag", f"v{newer}")
    assert push.version_tags(project) == tags


def test_number_counts_not_text(project: Path) -> None:
    git(project, "tag", "v1.2.10")
    git(project, "tag", "vnext")
    assert push.version_tags(project) == ["1.2.3"]


def test_prerelease_moves_no_tag(project: Path) -> None:
    release(project, "1.3.0rc1")
    assert push.version_tags(project) == ["1.3.0rc1"]


def test_commit_without_its_tag_has_no_version(project: Path) -> None:
    git(project, "commit", "--quiet", "--message=More", "--allow-empty")
    with pytest.raises(ToolkitError, match=r"the commit has no tag, and .* version 1\.2\.3: tag it v1\.2\.3, or name"):
        push.version_tags(project)
    git(project, "tag", "v1.2.4")
    with pytest.raises(ToolkitError, match=r"the commit has the tag v1\.2\.4, and pyproject\.toml has the version 1"):
        push.version_tags(project)


def test_check_looks_for_version_and_repository_only(
    settings: Settings, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(push, "ROOT", project)
    push.run(settings, "registry.example.org/voip/freeswitch", check_only=True)
    assert capsys.readouterr().out == "to be pushed to registry.example.org/voip/freeswitch as 1.2.3, 1.2, 1, latest\n"
    with pytest.raises(ToolkitError, match="no repository to push to"):
        push.run(settings, check_only=True)
    git(project, "tag", "--delete", "v1.2.3")
    with pytest.raises(ToolkitError, match=r"the commit has no tag, and pyproject\.toml has the version 1\.2\.3"):
        push.run(settings, "registry.example.org/voip/freeswitch", check_only=True)


def test_changed_tree_has_no_version(project: Path) -> None:
    (project / "new").touch()
    with pytest.raises(ToolkitError, match=r"is not v1\.2\.3, it has changes \(new\): commit them"):
        push.version_tags(project)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no image was verified: .*verify.json is missing, run `inv verify`"),
        ("{", "is not a report of `inv verify`"),
        ('{"passed": true}', "is not a report of `inv verify`"),
        ('{"passed": false, "images": [], "results": []}', "did not pass"),
        ('{"passed": 1, "images": [], "results": []}', "did not pass"),
        ('{"passed": true, "images": [], "results": []}', "does not tell of the patched image"),
        (
            '{"passed": true, "images": [{"variant": "patched", "id": "x", "tag": "y"}], "results": []}',
            "does not tell of the patched image",
        ),
    ],
)
def test_what_is_not_verified_is_refused(settings: Settings, content: str | None, message: str) -> None:
    """Without Docker even: nothing is looked at before the report."""
    settings.report_directory.mkdir(parents=True)
    if content is not None:
        (settings.report_directory / "verify.json").write_text(content)
    for action in (lambda: push.push(settings, "127.0.0.1:9/x", ["edge"]), lambda: push.save(settings)):
        with pytest.raises(ToolkitError, match=message):
            action()


@pytest.mark.parametrize(
    ("target", "tags", "message"),
    [
        ("", ["edge"], "no repository to push to: give --registry HOST/NAME"),
        ("registry.example.org/Name", ["edge"], "'--registry': 'registry.example.org/Name' is not a repository"),
        ("registry.example.org/name:tag", ["edge"], "is not a repository without a tag"),
        ("registry.example.org/name", ["a b"], "--tags: 'a b' is not a tag"),
        ("registry.example.org/name", ["-x"], "--tags: '-x' is not a tag"),
    ],
)
def test_mistakes_get_one_line(settings: Settings, target: str, tags: list[str], message: str) -> None:
    report(settings, "sha256:1")
    with pytest.raises(ToolkitError, match=re.escape(message)) as error:
        push.push(settings, target, tags)
    assert "\n" not in str(error.value)


def test_stages_have_tags_of_their_own(settings: Settings) -> None:
    with pytest.raises(ToolkitError, match="leave out --registry and --tags"):
        push.run(settings, tags="edge", stages=True)


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    with engine.connect(registry_module.TIMEOUT) as connection:
        yield connection


@pytest.fixture
def verified(settings: Settings, client: docker.DockerClient, registries: Settings) -> Iterator[Settings]:
    """Return settings of a name of their own, with a small image that passes for the verified one."""
    name = f"freeswitch-tp-error-test-{uuid.uuid4().hex[:8]}"
    mine = dataclasses.replace(settings, image=name, base_image=registries.base_image, push_repository="")
    make(client, mine)
    yield mine
    every = [tag for image in client.images.list(filters={"label": f"{LABEL}.test={name}"}) for tag in image.tags]
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


def test_provenance_tells_what_the_image_was_made_from(
    verified: Settings, client: docker.DockerClient, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_RUN_ID", raising=False)
    monkeypatch.delenv("GITHUB_WORKFLOW_REF", raising=False)
    target = f"{registry}/{uuid.uuid4().hex}"
    pushed = push.push(verified, target, ["edge"], console=quiet())
    document = json.loads((verified.report_directory / "provenance.json").read_text())
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "https://slsa.dev/provenance/v1"
    assert document["subject"] == [{"name": target, "digest": {"sha256": pushed.digest.removeprefix("sha256:")}}]
    definition = document["predicate"]["buildDefinition"]
    commits = {
        entry["name"]: entry["digest"]["gitCommit"]
        for entry in definition["resolvedDependencies"]
        if entry.get("uri", "").startswith("git+file:")
    }
    assert commits == {source.name: source.commit for source in verified.sources}
    assert definition["internalParameters"]["series"] == series.series_hash(verified)
    base = client.images.get(verified.base_image).id.removeprefix("sha256:")
    assert {"name": verified.base_image, "digest": {"sha256": base}} in definition["resolvedDependencies"]
    details = document["predicate"]["runDetails"]
    assert details["builder"]["id"].endswith("/local-machine/v1")
    assert [file["name"] for file in details["byproducts"]] == ["verify.json"]


def test_provenance_on_github_names_workflow_and_run(
    verified: Settings, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "GITHUB_SERVER_URL": "https://git.example.org",
        "GITHUB_REPOSITORY": "voip/toolkit",
        "GITHUB_RUN_ID": "42",
        "GITHUB_RUN_ATTEMPT": "2",
        "GITHUB_WORKFLOW_REF": "voip/toolkit/.github/workflows/release.yml@refs/tags/v1.2.3",
    }.items():
        monkeypatch.setenv(name, value)
    push.push(verified, f"{registry}/{uuid.uuid4().hex}", ["edge"], console=quiet())
    document = json.loads((verified.report_directory / "provenance.json").read_text())
    details = document["predicate"]["runDetails"]
    workflow = "https://git.example.org/voip/toolkit/.github/workflows/release.yml@refs/tags/v1.2.3"
    assert details["builder"]["id"] == workflow
    run = "https://git.example.org/voip/toolkit/actions/runs/42/attempts/2"
    assert details["metadata"] == {"invocationId": run}
    first = document["predicate"]["buildDefinition"]["resolvedDependencies"][0]
    assert first["uri"] == "git+https://git.example.org/voip/toolkit"


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


def archive(settings: Settings, tags: Sequence[str], layers: Sequence[str] = ("layer.tar",), lost: int = 0) -> None:
    """Write an archive of an image as Docker does, a layer and the last `lost` bytes missing; report that it passed."""
    configuration = "{}"
    files = {
        "layer.tar": "x" * 100_000,
        "config.json": configuration,
        "manifest.json": json.dumps([{"Config": "config.json", "RepoTags": tags, "Layers": layers}]),
    }
    report(settings, f"sha256:{hashlib.sha256(configuration.encode()).hexdigest()}")
    data = engine.tar(files)
    (settings.build_directory / "image.tar").write_bytes(data[: len(data) - lost])


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["other:patched"], "has other:patched, not {} alone: nothing was loaded, write it anew (`inv save`)"),
        (["{}", "debian:bookworm-slim"], "has {}, debian:bookworm-slim, not {} alone: nothing was loaded"),
        (None, "has an image without a tag, not {} alone"),
    ],
)
def test_archive_with_another_tag_is_refused(settings: Settings, tags: list[str] | None, message: str) -> None:
    tag = f"{settings.image}:patched"
    archive(settings, tags and [name.format(tag) for name in tags])  # type: ignore[arg-type]
    with pytest.raises(ToolkitError, match=re.escape(message.format(tag, tag))):
        push.load(settings, quiet())


@pytest.mark.parametrize(
    ("layers", "lost", "why"),
    [
        (("layer.tar",), 60_000, "unexpected end of data"),
        (("layer.tar",), 10_752, "manifest.json is missing"),
        (("layer.tar", "other.tar"), 0, "other.tar is missing"),
        (("layer.tar",), 1_000_000, "empty file"),
    ],
)
def test_archive_that_is_not_whole_is_refused(settings: Settings, layers: tuple[str], lost: int, why: str) -> None:
    archive(settings, [f"{settings.image}:patched"], layers, lost)
    expected = f"image.tar is not the whole archive of an image ({why}): copy it again, or write it anew (`inv save`)"
    with pytest.raises(ToolkitError, match=re.escape(expected)):
        push.load(settings, quiet())


def test_image_is_known_by_its_manifest_too(settings: Settings, tmp_path: Path) -> None:
    """As containerd's image store has it."""
    tag, manifest_text = f"{settings.image}:patched", '{"layers": []}'
    digest = hashlib.sha256(manifest_text.encode()).hexdigest()
    files = {
        "index.json": json.dumps({"manifests": [{"digest": f"sha256:{digest}"}]}),
        f"blobs/sha256/{digest}": manifest_text,
        "blobs/sha256/config": "{}",
        "manifest.json": json.dumps([{"Config": "blobs/sha256/config", "RepoTags": [tag], "Layers": []}]),
    }
    (tmp_path / "image.tar").write_bytes(engine.tar(files))
    push._check_archive(tmp_path / "image.tar", tag, {"id": f"sha256:{digest}", "tag": tag})
    with pytest.raises(ToolkitError, match="but sha256:0 was verified"):
        push._check_archive(tmp_path / "image.tar", tag, {"id": "sha256:0", "tag": tag})


def test_missing_archive_is_named(settings: Settings) -> None:
    report(settings, "sha256:1")
    with pytest.raises(ToolkitError, match=r"image\.tar is missing: `inv save` writes it"):
        push.load(settings)


def test_registry_that_is_not_there(verified: Settings) -> None:
    with pytest.raises(
        ToolkitError, match=r"^127\.0\.0\.1:9/x:edge: 127\.0\.0\.1:9 does not answer .*check the network"
    ):
        push.push(verified, "127.0.0.1:9/x", ["edge"], console=quiet())
    assert not (verified.report_directory / "push.json").exists()
