"""The labels that say where an image comes from."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.errors import ToolkitError
from scripts.image import build, provenance
from scripts.machine import engine
from scripts.pins.settings import Settings, load
from scripts.sources import trees
from tests.conftest import git


@pytest.fixture
def project(tmp_path: Path, upstream: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a clone that stands in for the project."""
    path = upstream("project")
    (path / "pyproject.toml").write_text('[project]\nversion = "2.3"\n')
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message=Version")
    monkeypatch.setattr(provenance, "ROOT", path)
    return path


@pytest.fixture
def cloned(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the project's settings, with pins of a known date."""
    monkeypatch.setattr(trees, "committed", lambda source: 1_700_000_000)
    return load(overrides=["build.source_url=https://git.example.org/toolkit"])


def test_labels(project: Path, cloned: Settings) -> None:
    labels = provenance.labels(cloned, patched=True)
    tag = cloned.source("freeswitch").tag
    assert labels["org.opencontainers.image.version"] == f"{tag.removeprefix('v')}-tp2.3"
    assert labels["org.opencontainers.image.created"] == "2023-11-14T22:13:20Z"
    assert labels["org.opencontainers.image.source"] == "https://git.example.org/toolkit"
    assert labels["org.opencontainers.image.revision"] == git(project, "rev-parse", "HEAD")
    assert labels["org.opencontainers.image.base.name"] == cloned.base_image
    assert labels["org.freeswitch-tp-error.freeswitch"] == cloned.source("freeswitch").commit
    assert labels["org.freeswitch-tp-error.freeswitch.version"] == tag
    assert re.fullmatch("[0-9a-f]{64}", labels["org.freeswitch-tp-error.series"])
    # What goes into a tag of the image must be able to be one.
    assert re.fullmatch(r"[\w.-]{1,128}", labels["org.opencontainers.image.version"])


def test_digest_of_the_base_image(cloned: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a registry gives it; made with debootstrap, or not there, it has none."""
    known = {"debian:pulled": ["debian@sha256:12"], "debian:made": []}

    def get(name: str) -> SimpleNamespace:
        if name not in known:
            raise ToolkitError(f"Docker refused: no such image: {name}")
        return SimpleNamespace(attrs={"RepoDigests": known[name]})

    client = SimpleNamespace(images=SimpleNamespace(get=get))
    monkeypatch.setattr(engine, "connect", lambda: contextlib.nullcontext(client))
    digests = {"debian:pulled": "sha256:12", "debian:made": "", "debian:else": "", "a@sha256:34": "sha256:34"}
    for name, digest in digests.items():
        labels = provenance.labels(dataclasses.replace(cloned, base_image=name), patched=True)
        assert labels.get("org.opencontainers.image.base.digest", "") == digest


def test_stock_has_no_series(project: Path, cloned: Settings) -> None:
    labels = provenance.labels(cloned, patched=False)
    assert "org.freeswitch-tp-error.series" not in labels
    assert labels["org.opencontainers.image.version"] == cloned.source("freeswitch").tag.removeprefix("v")


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("README", True),
        ("tasks.py", True),
        ("scripts/tests/new.py", True),
        ("templates/freeswitch/conf/new.xml", True),
        ("templates/scenarios.yaml", True),
        ("templates/scenarios/new/table.yaml", False),
        ("docs/new.md", False),
        ("tests/unit/new.py", False),
        ("examples/compose/new.yaml", False),
    ],
)
@pytest.mark.parametrize("added", [False, True], ids=["untracked", "added"])
def test_changes_of_what_the_image_is_made_of_are_told(
    project: Path, cloned: Settings, file: str, told: bool, added: bool
) -> None:
    (project / file).parent.mkdir(parents=True, exist_ok=True)
    (project / file).write_text("changed\n")
    if added:
        git(project, "add", file)
    commit = git(project, "rev-parse", "HEAD")
    assert provenance.labels(cloned, patched=True)[provenance.REVISION] == commit + ("-dirty" if told else "")


def test_what_is_left_out_is_there_and_in_no_image(root: Path) -> None:
    assert all((root / directory).is_dir() for directory in provenance.ELSEWHERE)
    made = (build.TEMPLATES, build.ENTRYPOINT, build.DOCKERFILE, root / "templates/build", root / "templates/sipp")
    assert not [path for path in made for one in provenance.ELSEWHERE if path.is_relative_to(root / one)]


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        ("https://git.example.org/me/toolkit", "https://git.example.org/me/toolkit"),
        ("https://me:secret@git.example.org/toolkit.git", "https://git.example.org/toolkit.git"),
        ("git@git.example.org:me/toolkit", None),
        ("/home/me/toolkit", None),
    ],
)
def test_source_is_where_it_was_cloned_from(project: Path, cloned: Settings, origin: str, source: str | None) -> None:
    git(project, "remote", "add", "origin", origin)
    plain = load()
    assert provenance.labels(plain, patched=True).get("org.opencontainers.image.source") == source


def test_outside_of_git(project: Path, cloned: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked/pyproject.toml").write_text('[project]\nversion = "2.3"\n')
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "unpacked")
    labels = provenance.labels(load(), patched=True)
    assert provenance.REVISION not in labels
    assert "org.opencontainers.image.source" not in labels
