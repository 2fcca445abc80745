"""What may be pushed, and under which tags."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from scripts.errors import ToolkitError
from scripts.machine import engine
from scripts.pins.settings import Settings, load
from scripts.publish import push
from scripts.publish.push import chosen_registry
from tests.conftest import git
from tests.publication import archive, quiet, release, report


def test_login_goes_to_what_is_pushed_to() -> None:
    settings = load(overrides=["push.repository=a.example.org/x", "build.cache=b.example.org/y"])
    usual = (settings.push.repository, settings.cache)
    assert chosen_registry("c.example.org/z", *usual) == "c.example.org/z"
    assert chosen_registry("", *usual) == "a.example.org/x"
    assert chosen_registry("", "", settings.cache) == "b.example.org/y"
    with pytest.raises(ToolkitError, match="no registry to log in to: give --registry"):
        chosen_registry("", "", "")


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
