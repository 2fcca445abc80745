"""What somebody has done on the branch of the series, or beside it, is never lost."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from scripts.errors import ToolkitError
from scripts.patchset import branch, series
from scripts.pins.settings import Settings
from scripts.sources import trees
from tests.conftest import edited, git
from tests.unit.patchset.conftest import AddPatch, commit_all, everything, files, next_release, patch_file, tree


def test_edited_tree_is_left_alone(prepared: Settings) -> None:
    edited(tree(prepared, "two") / "src/main.c", 7)
    before = files(prepared)
    with pytest.raises(ToolkitError, match=r"two: .* has uncommitted changes \(src/main\.c\)"):
        branch.import_series(prepared)
    with pytest.raises(ToolkitError, match=r"two: .* has uncommitted changes \(src/main\.c\): commit them"):
        branch.export_series(prepared)
    assert files(prepared) == before


def test_work_that_was_not_exported_is_left_alone(prepared: Settings) -> None:
    path = tree(prepared)
    edited(path / "src/main.c", 7)
    commit_all(path, "Mine")
    with pytest.raises(ToolkitError, match=r"one: .* has commits that are not the toolkit's .*Mine"):
        branch.import_series(prepared)
    git(path, "checkout", "--quiet", "--detach", prepared.source("one").commit)
    with pytest.raises(ToolkitError, match=r"one: branch series .* has commits of yours .*Mine"):
        branch.import_series(prepared)


def elsewhere(settings: Settings) -> Settings:
    """Return `settings` that ask for a new tree of "one"."""
    one = dataclasses.replace(settings.source("one"), exclude=())
    return dataclasses.replace(settings, sources=(one, settings.source("two")))


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_branch_that_is_not_what_the_patches_make_is_not_removed(
    prepared: Settings, dropped: bool, detached: bool
) -> None:
    path = tree(prepared)
    if dropped:
        git(path, "reset", "--quiet", "--hard", "HEAD~1")
    else:
        edited(path / "src/main.c", 7)
        commit_all(path, "Mine")
    if detached:
        git(path, "checkout", "--quiet", "--detach", prepared.source("one").commit)
    before = everything(prepared)
    what = "branch series, which is not what the patches make" if dropped else r"\w+ Mine"
    for refused in (
        lambda: trees.clone(elsewhere(prepared).sources, prepared.patches),
        lambda: trees.check_unchanged(prepared.source("one")),
    ):
        with pytest.raises(ToolkitError, match=rf"^one: .*/one has local changes \({what}"):
            refused()
    assert everything(prepared) == before
    git(path, "checkout", "--quiet", trees.BRANCH)
    branch.export_series(prepared)
    assert [result.fresh for result in trees.clone(elsewhere(prepared).sources, prepared.patches)] == [True, False]


def test_branch_that_the_patches_make_is_replaced(prepared: Settings, add_patch: AddPatch) -> None:
    # An older series than that of the tree is the toolkit's own, too.
    add_patch("one", "Fourth", {"README": [1]})
    series.apply(prepared)
    assert git(tree(prepared), "log", "-1", "--format=%s", trees.BRANCH) == "Second"
    assert [result.fresh for result in trees.clone(elsewhere(prepared).sources, prepared.patches)] == [True, False]


def test_series_that_was_carried_over_is_not_removed(prepared: Settings, add_patch: AddPatch, tmp_path: Path) -> None:
    add_patch("one", "Fourth", {"src/main.c": [45]})
    upstream = tmp_path / "upstream/one"
    edited(upstream / "src/main.c", 47)
    following = next_release(prepared, upstream)
    branch.import_series(following, base=prepared)
    assert "changed 45\n" in (tree(following) / "src/main.c").read_text()
    with pytest.raises(ToolkitError, match=r"one: .* has local changes \(branch series, which is not what"):
        trees.clone(prepared.sources, prepared.patches)
    branch.export_series(following)
    assert [result.fresh for result in trees.clone(prepared.sources, prepared.patches)] == [True, False]


def test_tree_that_does_not_stand_on_the_pin(prepared: Settings) -> None:
    path = tree(prepared)
    git(path, "checkout", "--quiet", "--orphan", "other")
    git(path, "commit", "--quiet", "--message=Alone")
    before = files(prepared)
    with pytest.raises(ToolkitError, match=r"one: .* does not stand on the pin .*history is too shallow"):
        branch.export_series(prepared)
    assert files(prepared) == before


def test_patches_that_the_tree_was_not_made_from_are_not_overwritten(prepared: Settings) -> None:
    path = patch_file(prepared, "0001")
    path.write_text(path.read_text().replace("+changed 3\n", "+changed by hand\n"))
    before = files(prepared)
    with pytest.raises(ToolkitError, match=r"one: .*patches has changed since the import into"):
        branch.export_series(prepared)
    branch.import_series(prepared)
    assert "changed by hand\n" in (tree(prepared) / "src/main.c").read_text()
    series.revert(prepared)
    with pytest.raises(ToolkitError, match=r"one: .* is at the pin, and would leave no patches"):
        branch.export_series(prepared)
    assert files(prepared) == before
