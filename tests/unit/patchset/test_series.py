"""Rendering, checking, applying and reverting the series."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from scripts.errors import ToolkitError
from scripts.machine import git as git_module
from scripts.machine.files import ROOT
from scripts.machine.git import Failure, GitError, Reason
from scripts.patchset import branch, series
from scripts.pins.settings import Settings
from scripts.sources import trees
from tests.conftest import AUTHOR, edited, git

AddPatch = Callable[..., Path]


@pytest.fixture
def prepared(settings: Settings, add_patch: AddPatch) -> Settings:
    """Return settings with two patches for "one", one for "two", and the trees cloned."""
    add_patch("one", "First", {"src/main.c": [3], "new.c": []})
    add_patch("one", "Second", {"src/main.c": [3, 30, 55], "src/other.c": [10, 50]})
    add_patch("two", "Third", {"src/main.c": [20]})
    trees.clone(settings.sources, settings.patches)
    return settings


def state(settings: Settings) -> list[str]:
    """Return all that a failure must leave alone: commits, files, records, index."""
    found = []
    for source in settings.sources:
        found.append(git(source.path, "rev-parse", "HEAD"))
        found.append(git(source.path, "ls-files", "--stage"))
        found.append(git(source.path, "config", "--local", "--list"))
        files = sorted(path for path in source.path.rglob("*") if path.is_file() and ".git" not in path.parts)
        found += [f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return found


def replace(path: Path, old: str, new: str) -> None:
    """Replace the text `old`, which must be there, in the file `path`."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def patch_file(settings: Settings, start: str) -> Path:
    """Return the patch of "one" whose name begins with `start`."""
    return next((settings.patches / "one").glob(f"{start}*.patch"))


def test_render(prepared: Settings) -> None:
    replace(patch_file(prepared, "0001"), "+changed 3", "+%{ nua_event }% {{ x }} {% y %} %{ esl_event }%")
    first, second = series.render(prepared, prepared.source("one"))
    assert (first.name, first.subject) == ("0001-first.patch", "First")
    assert f"+{prepared.nua_event} {{{{ x }}}} {{% y %}} {prepared.esl_event}\n" in first.text
    assert [dataclasses.astuple(file) for file in second.diffstat] == [("src/main.c", 2, 2), ("src/other.c", 2, 2)]


def test_unknown_variable(prepared: Settings) -> None:
    path = patch_file(prepared, "0001")
    replace(path, "+changed 3", "+%{ nua_evnt }%")
    line = 1 + path.read_text().splitlines().index("+%{ nua_evnt }%")
    with pytest.raises(
        ToolkitError, match=rf"0001-first\.patch:{line}: unknown variable 'nua_evnt': use nua_event, esl"
    ):
        series.render(prepared, prepared.source("one"))


def test_template_error(prepared: Settings) -> None:
    path = patch_file(prepared, "0001")
    replace(path, "+changed 3", "+%{ nua_event")
    with pytest.raises(ToolkitError, match=r"0001-first\.patch:\d+: "):
        series.render(prepared, prepared.source("one"))


def test_corrupt_diff(prepared: Settings) -> None:
    path = patch_file(prepared, "0002")
    replace(path, " line 32\n", "")
    with pytest.raises(ToolkitError, match=r"0002-second\.patch:\d+: "):
        series.render(prepared, prepared.source("one"))


def test_hunk_that_git_cannot_read(prepared: Settings) -> None:
    path = patch_file(prepared, "0002")
    lines = path.read_text().splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if line.startswith("@@ "))
    path.write_text("".join([*lines[:number], "@@ -x @@\n", *lines[number + 1 :]]))
    with pytest.raises(ToolkitError, match=rf"0002-second\.patch:{number + 1}: git can't read the diff there: take"):
        series.check(prepared)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Just words\n", "has no 'From:' header"),
        ("From: A <a@example.org>\nDate: now\nSubject: [PATCH] x\n\nWords\n", "has no diff"),
        ("From: A <a@example.org>\r\n", "carriage returns"),
    ],
)
def test_not_a_patch(prepared: Settings, content: str, message: str) -> None:
    patch_file(prepared, "0001").write_bytes(content.encode())
    with pytest.raises(ToolkitError, match=rf"0001-first\.patch: .*{message}"):
        series.render(prepared, prepared.source("one"))


def test_badly_named_files(prepared: Settings) -> None:
    patch_file(prepared, "0001").rename(prepared.patches / "one/first.patch")
    with pytest.raises(ToolkitError, match=r"first\.patch: name it NNNN-"):
        series.render(prepared, prepared.source("one"))
    (prepared.patches / "three").mkdir()
    with pytest.raises(ToolkitError, match="three: there is no source of that name, use one, two"):
        series.render(prepared, prepared.source("one"))


def test_series_hash(prepared: Settings) -> None:
    before = series.series_hash(prepared)
    assert len(before) == 64
    assert series.series_hash(dataclasses.replace(prepared, nua_event="nua_i_other")) == before
    patch_file(prepared, "0001").rename(prepared.patches / "one/0001-other.patch")
    assert series.series_hash(prepared) != before


def test_apply_commits_the_series(prepared: Settings) -> None:
    outcomes = series.apply(prepared)
    assert [outcome.action for outcome in outcomes] == ["applied", "applied"]
    path = prepared.source("one").path
    assert git(path, "log", "--format=%s", f"{prepared.source('one').commit}..").splitlines() == ["Second", "First"]
    assert git(path, "log", "-1", "--format=%ae %ce %cI").split() == [
        "ann@example.org",
        trees.COMMITTER_EMAIL,
        "2024-05-06T07:08:09Z",
    ]
    assert "changed 30\n" in (path / "src/main.c").read_text()
    assert git(path, "status", "--porcelain") == ""


def test_apply_gives_the_same_commits_whatever_the_user_configured(prepared: Settings) -> None:
    series.apply(prepared)
    commits = [git(source.path, "rev-parse", "HEAD") for source in prepared.sources]
    for source in prepared.sources:
        shutil.rmtree(source.path)
    for name, value in {"commit.gpgSign": "true", "apply.whitespace": "fix", "am.threeWay": "true"}.items():
        subprocess.run(["git", "config", "--global", name, value], check=True)
    trees.clone(prepared.sources, prepared.patches)
    series.apply(prepared)
    assert [git(source.path, "rev-parse", "HEAD") for source in prepared.sources] == commits


def test_apply_again_does_nothing(prepared: Settings) -> None:
    series.apply(prepared)
    before = state(prepared)
    assert [outcome.action for outcome in series.apply(prepared)] == ["already applied", "already applied"]
    assert state(prepared) == before


def test_apply_replaces_an_older_series(prepared: Settings, add_patch: AddPatch) -> None:
    series.apply(prepared)
    add_patch("one", "Fourth", {"README": [1]})
    assert [outcome.action for outcome in series.apply(prepared)] == ["replaced an older series", "already applied"]
    assert git(prepared.source("one").path, "log", "-3", "--format=%s").splitlines() == ["Fourth", "Second", "First"]


def test_check_leaves_the_trees(prepared: Settings) -> None:
    (prepared.source("one").path / "src/main.c").write_text("mine\n")
    before = state(prepared)
    assert [outcome.action for outcome in series.check(prepared)] == ["applies", "applies"]
    assert state(prepared) == before


def test_hunk_that_does_not_apply_is_named(prepared: Settings) -> None:
    replace(patch_file(prepared, "0002"), " line 49\n-line 50\n", " line 49\n-line fifty\n")
    before = state(prepared)
    where = r"0002-second\.patch: hunk 2 of src/other\.c \(@@ -47,7\)"
    expected = where + r" does not apply to one v1\.0 with the patches before it"
    for action in (series.check, series.apply):
        with pytest.raises(ToolkitError, match=expected):
            action(prepared)
    assert state(prepared) == before


def test_patch_of_a_missing_file_is_named(prepared: Settings) -> None:
    path = patch_file(prepared, "0002")
    path.write_text(path.read_text().replace("src/other.c", "src/gone.c"))
    with pytest.raises(ToolkitError, match=r"0002-second\.patch: src/gone\.c: does not exist in index"):
        series.check(prepared)


def build_applies(prepared: Settings) -> bool:
    """Return whether the build's `patch` takes the series of "one"."""
    script = ROOT / "scripts/image/stages/build-patch.sh"
    command: list[str | Path] = ["sh", script, prepared.patches / "one", prepared.source("one").path]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_hunk_that_only_the_build_refuses_is_named(prepared: Settings) -> None:
    path = patch_file(prepared, "0002")
    replace(path, "@@ -47,7 +47,7 @@", "@@ -47,5 +47,5 @@")
    replace(path, "+changed 50\n line 51\n line 52\n line 53\n", "+changed 50\n line 51\n")
    before = state(prepared)
    where = r"0002-second\.patch: hunk 2 of src/other\.c \(@@ -47,5\)"
    expected = where + " has 3 lines of context above and 1 below, and is not at the end of the file"
    for action in (series.check, series.apply):
        with pytest.raises(ToolkitError, match=expected) as error:
            action(prepared)
        assert "\n" not in str(error.value)
    assert state(prepared) == before
    assert not build_applies(prepared)


def test_hunk_at_the_end_of_a_file_has_less_context_below(prepared: Settings, add_patch: AddPatch) -> None:
    add_patch("one", "Fourth", {"src/main.c": [59], "src/other.c": [2]})
    assert [outcome.action for outcome in series.check(prepared)] == ["applies", "applies"]
    assert build_applies(prepared)


def test_uneven_hunk_is_mended_by_an_export(prepared: Settings) -> None:
    path = patch_file(prepared, "0002")
    replace(path, "@@ -47,7 +47,7 @@", "@@ -47,5 +47,5 @@")
    replace(path, "+changed 50\n line 51\n line 52\n line 53\n", "+changed 50\n line 51\n")
    branch.import_series(prepared)
    branch.export_series(prepared)
    assert [outcome.action for outcome in series.check(prepared)] == ["applies", "applies"]


def test_check_without_a_clone(settings: Settings) -> None:
    with pytest.raises(ToolkitError, match=r"is missing: run `inv clone`, with the same options"):
        series.run(settings, check_only=True)
    assert not settings.sources[0].path.parent.exists()


@pytest.mark.parametrize("action", [series.apply, series.revert])
def test_dirty_tree_is_left_alone(prepared: Settings, action: Callable[[Settings], object]) -> None:
    series.apply(prepared)
    patch_file(prepared, "0002").unlink()
    edited(prepared.source("two").path / "src/other.c", 5)
    (prepared.source("two").path / "untracked").write_text("mine\n")
    before = state(prepared)
    with pytest.raises(ToolkitError, match=r"two: .* has uncommitted changes \(src/other\.c, untracked\)"):
        action(prepared)
    assert state(prepared) == before


@pytest.mark.parametrize("action", [series.apply, series.revert])
def test_commit_of_the_user_is_left_alone(prepared: Settings, action: Callable[[Settings], object]) -> None:
    series.apply(prepared)
    patch_file(prepared, "0002").unlink()
    path = prepared.source("two").path
    edited(path / "src/other.c", 5)
    git(path, "commit", "--quiet", "--all", "--message=My work")
    before = state(prepared)
    with pytest.raises(ToolkitError, match=r"two: .* commits that are not the toolkit's .*My work"):
        action(prepared)
    assert state(prepared) == before


def test_failure_in_the_second_upstream_rolls_the_first_back(prepared: Settings) -> None:
    # An untracked file in the way passes the check of the pin and is unknown to `git status`.
    path = prepared.source("two").path
    add = prepared.patches / "two/0002-add.patch"
    add.write_text(
        f"From: {AUTHOR['GIT_AUTHOR_NAME']} <ann@example.org>\nDate: {AUTHOR['GIT_AUTHOR_DATE']}\n"
        "Subject: [PATCH] Add\n\n---\n"
        "diff --git a/ignored b/ignored\nnew file mode 100644\n--- /dev/null\n+++ b/ignored\n@@ -0,0 +1 @@\n+new\n"
    )
    (path / ".git/info/exclude").write_text("/ignored\n")
    (path / "ignored").write_text("mine\n")
    before = state(prepared)
    with pytest.raises(ToolkitError, match=r"git am failed: .*ignored: already exists in working directory"):
        series.apply(prepared)
    assert state(prepared) == before
    assert not (path / ".git/rebase-apply").exists()


def interrupted(prepared: Settings) -> Path:
    """Leave a `git am` in the middle, as a killed run of the toolkit does; return the tree."""
    source = prepared.source("one")
    mail = prepared.patches.parent / "bad.patch"
    mail.write_text(patch_file(prepared, "0002").read_text().replace("-line 30", "-line thirty"))
    environment = {
        **os.environ,
        "GIT_COMMITTER_NAME": trees.COMMITTER_NAME,
        "GIT_COMMITTER_EMAIL": trees.COMMITTER_EMAIL,
    }
    command = ["git", "am", "--quiet", str(patch_file(prepared, "0001")), str(mail)]
    assert subprocess.run(command, cwd=source.path, env=environment, capture_output=True, check=False).returncode
    assert (source.path / ".git/rebase-apply").exists()
    edited(source.path / "src/other.c", 10)
    return source.path


def test_interrupted_am_of_the_toolkit_is_cleared_away(prepared: Settings) -> None:
    path = interrupted(prepared)
    git(path, "config", "toolkit.applying", json.dumps(["new.c", "src/main.c", "src/other.c"]))
    series.apply(prepared)
    assert git(path, "log", "-2", "--format=%s").splitlines() == ["Second", "First"]
    assert not (path / ".git/rebase-apply").exists()
    assert git(path, "status", "--porcelain") == ""


def test_interrupted_am_of_the_user_is_left_alone(prepared: Settings) -> None:
    path = interrupted(prepared)
    before = state(prepared)
    with pytest.raises(ToolkitError, match=r"one: .* is in the middle of a `git am`.* am --abort"):
        series.apply(prepared)
    assert state(prepared) == before
    assert (path / ".git/rebase-apply").exists()


def forget_one(prepared: Settings) -> None:
    """Do what `inv clean` does before it removes the tree of "one"."""
    trees.check_unchanged(prepared.source("one"))


@pytest.mark.parametrize("action", [series.apply, series.revert, branch.import_series, forget_one])
def test_operation_of_the_user_is_left_alone(prepared: Settings, action: Callable[[Settings], object]) -> None:
    series.apply(prepared)
    path = prepared.source("one").path
    environment = {**os.environ, **AUTHOR, "GIT_SEQUENCE_EDITOR": "sed -i 1s/pick/edit/"}
    command = ["git", "rebase", "--quiet", "--interactive", "HEAD~2"]
    subprocess.run(command, cwd=path, env=environment, capture_output=True, check=True)
    before = state(prepared)
    expected = (
        rf"one: .* is in the middle of a `git rebase`: finish it \(`git -C {path} rebase --continue`\) or give it"
    )
    with pytest.raises(ToolkitError, match=expected):
        action(prepared)
    assert state(prepared) == before
    git(path, "rebase", "--abort")
    action(prepared)


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("MERGE_HEAD", "merge"),
        ("REVERT_HEAD", "revert"),
        ("sequencer", "cherry-pick"),
        ("rebase-apply", "am"),
        ("rebase-apply/rebasing", "rebase"),
    ],
)
def test_operation_is_called_by_its_name(prepared: Settings, name: str, operation: str) -> None:
    (prepared.source("one").path / ".git" / name).mkdir(parents=True)
    with pytest.raises(ToolkitError, match=f"is in the middle of a `git {operation}`: .* {operation} --continue"):
        series.revert(prepared)


def test_revert(prepared: Settings) -> None:
    before = state(prepared)
    series.apply(prepared)
    assert [outcome.action for outcome in series.revert(prepared)] == ["back at the pin", "back at the pin"]
    assert state(prepared) == before
    assert [outcome.action for outcome in series.revert(prepared)] == ["at the pin already", "at the pin already"]


def test_show_names_every_file_in_full(prepared: Settings) -> None:
    output = io.StringIO()
    series.run(prepared, console=Console(file=output))
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert ["one", "v1.0:", "applied", "(2", "patches)"] in lines
    assert ["0002-second.patch"] in lines and ["src/other.c", "2", "2"] in lines


def test_check_and_revert_exclude_each_other(settings: Settings) -> None:
    with pytest.raises(ToolkitError, match="exclude each other"):
        series.run(settings, check_only=True, to_pins=True)


def test_real_series_applies_and_reverts(real_settings: Settings) -> None:
    for source in real_settings.sources:
        if why := trees.unreachable(source):
            pytest.skip(f"{source.url}: {why.what}")
    trees.clone(real_settings.sources, real_settings.patches)
    outcomes = series.apply(real_settings)
    for outcome in outcomes:
        commits = git(outcome.source.path, "rev-list", "--count", f"{outcome.source.commit}..HEAD")
        assert int(commits) == len(outcome.patches)
        assert git(outcome.source.path, "status", "--porcelain") == ""
    series.revert(real_settings)
    assert [git(source.path, "rev-parse", "HEAD") for source in real_settings.sources] == [
        source.commit for source in real_settings.sources
    ]


def test_excluded(prepared: Settings) -> None:
    names = [patch.name for patch in series.render(prepared, prepared.sources[0])]
    without = dataclasses.replace(prepared, excluded_patches=("one/0002",))
    assert [patch.name for patch in series.render(without, prepared.sources[0])] == names[:1]
    assert series.series_hash(without) != series.series_hash(prepared)
    series.apply(prepared)
    (outcome, _) = series.apply(without)
    assert [patch.name for patch in outcome.patches] == names[:1]


@pytest.mark.parametrize("excluded", ["one/0009", "three/0001"])
def test_excluded_unknown(prepared: Settings, excluded: str) -> None:
    with pytest.raises(ToolkitError, match=f"there is no patch {excluded}"):
        series.check(dataclasses.replace(prepared, excluded_patches=(excluded,)))


def test_directory_that_is_not_there(prepared: Settings) -> None:
    astray = dataclasses.replace(prepared, patches=prepared.patches / "nowhere")
    with pytest.raises(ToolkitError, match=r"nowhere is not a directory: correct the setting 'patches\.directory'"):
        series.run(astray, check_only=True)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("0001-again.patch", r"0001-first\.patch: another patch has this number: give it the next free one"),
        ("0009-last.patch", r"0009-last\.patch: there is no patch 000\d before it: take it back, or number without"),
    ],
)
def test_number_that_is_missing_or_taken(prepared: Settings, name: str, line: str) -> None:
    second = next(path for path in (prepared.patches / "one").iterdir() if path.name.startswith("0002-"))
    second.rename(second.with_name(name))
    with pytest.raises(ToolkitError, match=line):
        series.check(prepared)


@pytest.mark.parametrize("lock", ["index.lock", "config.lock"])
def test_lock_of_a_git_that_was_killed_is_told_before_anything_changes(prepared: Settings, lock: str) -> None:
    series.apply(prepared)
    heads = [git(source.path, "rev-parse", "HEAD") for source in prepared.sources]
    # The second one: the first must not be taken back before it is seen.
    (prepared.sources[1].path / ".git" / lock).touch()
    for action in (series.revert, series.apply):
        with pytest.raises(ToolkitError, match=rf"^two: git is at work in .*, or was killed there: .*{lock}$"):
            action(prepared)
    assert [git(source.path, "rev-parse", "HEAD") for source in prepared.sources] == heads


@pytest.mark.parametrize("header", ["Date: nonsense", "From: <>", "From: "])
def test_author_that_git_would_not_take_fails_the_check(prepared: Settings, header: str) -> None:
    path = next((prepared.patches / "one").glob("0001-*.patch"))
    name = header.partition(":")[0]
    path.write_text(re.sub(rf"^{name}: .*$", header, path.read_text(), count=1, flags=re.MULTILINE))
    with pytest.raises(
        ToolkitError, match=rf"{path.name}: git can't commit it \(.+\): correct its 'From:' and 'Date:'"
    ):
        series.check(prepared)


def test_failure_that_is_none_of_the_patch(prepared: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        why = Reason(Failure.FULL_DISK, "unable to write file: No space left on device", "No space left on device")
        raise GitError("one: git apply failed", why)

    monkeypatch.setattr(git_module, "apply", full)
    with pytest.raises(ToolkitError) as error:
        series.run(prepared, check_only=True)
    assert "No space left" in str(error.value) and "make the patch anew" not in str(error.value)
