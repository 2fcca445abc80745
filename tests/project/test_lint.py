"""The linters: what they look at, what they find, and what is said of one that is missing."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.upkeep import lint
from tests.conftest import git

WORKFLOW = """
on: push
permissions: {}
jobs:
  one:
    runs-on: ubuntu-24.04
    timeout-minutes: 5
    permissions: {}
    steps:
      - run: "true"
"""
GOOD = {
    "pyproject.toml": "[tool.mypy]\nfiles = ['good.py']\nstrict = true\n",
    "good.py": "ANSWER = 42\n",
    "run": '#!/bin/sh\necho "$1"\n',
    "Dockerfile.x": "FROM debian:bookworm-slim\nUSER 1000\n",
    ".github/workflows/x.yml": WORKFLOW,
    ".github/dependabot.yml": "version: 2\nupdates: []\n",
    ".gitignore": "/ignored/\n.*_cache/\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in GOOD.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    return tmp_path


def run(project: Path) -> tuple[bool, str]:
    output = io.StringIO()
    good = lint.lint(project, Console(file=output, width=200))
    return good, output.getvalue()


def marks(output: str) -> dict[str, str]:
    return {line[2:].partition(":")[0]: line[0] for line in output.splitlines() if line[:2] in ("✓ ", "✗ ", "- ")}


def test_good_project_passes(project: Path) -> None:
    good, output = run(project)
    assert good, output
    assert set(marks(output).values()) <= {"✓", "-"}
    assert marks(output)["ruff check"] == marks(output)["schema of workflows"] == "✓"


@pytest.mark.parametrize(
    ("name", "text", "linter", "told"),
    [
        ("bad.py", "import os\n", "ruff check", "F401"),
        ("bad.py", "x  =  1\n", "ruff format", "bad.py"),
        ("good.py", "ANSWER: int = 'x'\n", "mypy", "Incompatible types"),
        ("deep/script", "#!/usr/bin/env bash\nrm $1\n", "shellcheck", "SC2086"),
        ("x.sh", "#! /bin/sh\nrm $1\n", "shellcheck", "SC2086"),
        ("deep/sourced", "# shellcheck shell=sh\nrm $1\n", "shellcheck", "SC2086"),
        ("deep/Dockerfile", "FROM debian:bookworm-slim\nRUN sudo true\n", "hadolint", "DL3004"),
        (".github/workflows/y.yml", WORKFLOW.replace("runs-on", "run-on"), "schema of workflows", "run-on"),
        (".github/workflows/y.yml", WORKFLOW.replace("    timeout-minutes: 5\n", ""), "time limits of jobs", "timeout"),
        (".github/dependabot.yml", "version: 2\nupdate: []\n", "schema of dependabot", "update"),
        (
            ".github/workflows/y.yml",
            WORKFLOW.replace('"true"', 'echo "${{ github.event.head_commit.message }}"'),
            "zizmor",
            "template-injection",
        ),
    ],
)
def test_mistake_is_found(project: Path, name: str, text: str, linter: str, told: str) -> None:
    if lint.find(linter) is None and linter in ("shellcheck", "zizmor"):
        pytest.skip(f"{linter} is not there for this processor")
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    (project / name).write_text(text)
    good, output = run(project)
    assert not good
    assert marks(output)[linter] == "✗"
    assert told in output


def test_ignored_files_are_left_alone(project: Path) -> None:
    (project / "ignored").mkdir()
    (project / "ignored/x.sh").write_text("#!/bin/sh\nrm $1\n")
    (project / "ignored/Dockerfile").write_text("nonsense\n")
    assert run(project)[0]


def test_missing_linter_is_named_with_the_way_to_get_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = lint.find
    monkeypatch.setattr(lint, "find", lambda tool: None if tool in ("shellcheck", "actionlint") else real(tool))
    good, output = run(project)
    assert not good
    assert "✗ shellcheck: missing: install it (`apt-get install shellcheck`)" in output
    assert "- actionlint: not here, others check the same files: `go install " in output


def test_what_is_not_a_clone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="is not a git clone"):
        lint.lint(tmp_path)


def test_linter_comes_out_of_the_environment_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ruff").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "ruff").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert shutil.which("ruff") == str(tmp_path / "ruff")
    assert lint.find("ruff") != str(tmp_path / "ruff")
