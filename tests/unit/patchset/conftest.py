"""What the tests of the branch share: trees with the series on it, and what must stay as it is."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from scripts.errors import ToolkitError
from scripts.machine.files import remove
from scripts.patchset import branch
from scripts.pins.settings import Settings
from scripts.sources import trees
from tests.conftest import copied, git, new_patch, small_settings

AddPatch = Callable[..., Path]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, releases: Callable[[str], Path]) -> Path:
    """Return the directory of what `prepared` is a copy of."""
    directory = tmp_path_factory.mktemp("original")
    settings = small_settings(directory, functools.partial(copied, releases, directory))
    add = functools.partial(new_patch, settings.patches, directory)
    add("one", "First", {"src/main.c": [3], "new.c": []})
    add("one", "Second", {"src/main.c": [30, 55], "src/other.c": [10, 50]})
    add("two", "Third", {"src/main.c": [20]})
    trees.clone(settings.sources, settings.patches)
    branch.import_series(settings)
    branch.export_series(settings)
    return directory


@pytest.fixture
def prepared(settings: Settings, tmp_path: Path, original: Path) -> Settings:
    """Return settings with two patches for "one", one for "two", all as an export writes them."""
    remove(tmp_path / "upstream")
    shutil.copytree(original, tmp_path, symlinks=True, dirs_exist_ok=True)
    for config in tmp_path.rglob(".git/config"):
        config.write_text(config.read_text().replace(str(original), str(tmp_path)))
    for source in settings.sources:
        # The index knows the files by their times and numbers.
        git(source.path, "update-index", "-q", "--refresh")
    return settings


def files(settings: Settings) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(settings.patches.rglob("*")) if path.is_file()}


def tree(settings: Settings, name: str = "one") -> Path:
    return settings.source(name).path


def patch_file(settings: Settings, start: str) -> Path:
    return next((settings.patches / "one").glob(f"{start}*.patch"))


def commit_all(path: Path, message: str) -> None:
    git(path, "add", "--all")
    git(path, "commit", "--quiet", f"--message={message}")


def next_release(prepared: Settings, upstream: Path) -> Settings:
    """Commit what is in `upstream` as v2.0 of one; return the settings that pin it, with its tree."""
    git(upstream, "commit", "--quiet", "--all", "--message=Next")
    git(upstream, "tag", "v2.0")
    one = dataclasses.replace(prepared.source("one"), tag="v2.0", commit=git(upstream, "rev-parse", "HEAD"))
    following = dataclasses.replace(prepared, sources=(one, prepared.source("two")))
    remove(one.path)
    trees.clone(following.sources, following.patches)
    return following


def everything(settings: Settings) -> list[str]:
    """Return all that an interrupted task must leave alone: commits, branches, records, files."""
    commands = (
        ("rev-parse", "--abbrev-ref", "HEAD"), ("rev-parse", "HEAD"), ("for-each-ref",), ("ls-files", "--stage"),
        ("config", "--list", "--local"), ("status", "--porcelain"), ("diff", "HEAD"),
    )  # fmt: skip
    found = [git(tree(settings, name), *command) for name in ("one", "two") for command in commands]
    return ["\n".join(sorted(output.splitlines())) for output in found]


def interrupt(monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str, path: Path, words: str) -> None:
    """Have Ctrl-C come right after the git command in `path` that begins with `words`."""
    run = getattr(module, function)

    def interrupted(where: Path, *arguments: str, **options: object) -> str:
        if where != path or not " ".join(arguments).startswith(words):
            return str(run(where, *arguments, **options))
        monkeypatch.setattr(module, function, run)
        with contextlib.suppress(ToolkitError):
            run(where, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, function, interrupted)
