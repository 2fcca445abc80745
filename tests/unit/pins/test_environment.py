"""The variables of the environment, and what Invoke can't read, which is told before it fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts.errors import ToolkitError
from scripts.pins import environment


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of invoke.yaml that is checked in its place."""
    copy = tmp_path / "invoke.yaml"
    copy.write_text(environment.FILE.read_text())
    monkeypatch.setattr(environment, "FILE", copy)
    return copy


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("run: {}\n", "there is no setting 'run': remove it"),
        ("1: 2\n", "there is no setting '1': remove it"),
        ("build_jobs: 2\n", "there is no setting 'build_jobs': remove it"),
    ],
)
def test_what_invoke_fails_on_is_told_without_any_variable(file: Path, more: str, line: str) -> None:
    file.write_text(file.read_text() + more)
    with pytest.raises(ToolkitError, match=rf"^invoke\.yaml: {line}$"):
        environment.check()


def test_file_without_groups_is_told(file: Path) -> None:
    file.write_text("[]\n")
    with pytest.raises(ToolkitError, match=r"^invoke\.yaml: the setting 'sources' is missing: add it$"):
        environment.check()


def test_models_are_not_imported_without_need(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`inv --list` would take half as long again."""
    monkeypatch.delitem(sys.modules, "scripts.pins.schema", raising=False)
    monkeypatch.delattr("scripts.pins.schema", raising=False)
    monkeypatch.setenv("INVOKE_RUN_ECHO", "1")
    environment.check()
    assert "scripts.pins.schema" not in sys.modules


def test_value_is_of_the_type_that_invoke_makes_of_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOKE_BUILD_GROWTH", "2.5")
    with pytest.raises(ToolkitError, match=r"INVOKE_BUILD_GROWTH: '2\.5' is not a whole number"):
        environment.check()
    file.write_text(file.read_text().replace("growth: 10", "growth: 10.0"))
    environment.check()


def test_list_is_not_set_by_a_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOKE_PATCHES_EXCLUDE", "freeswitch/0003")
    line = "INVOKE_PATCHES_EXCLUDE: a list is set with --set patches.exclude=first,second"
    with pytest.raises(ToolkitError, match=line):
        environment.check()
    file.write_text(file.read_text().replace("exclude: []", "exclude:"))
    with pytest.raises(ToolkitError, match=line):
        environment.check()
